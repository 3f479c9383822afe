"""What `server init` makes, and that it makes all of it or nothing."""

import hashlib
import json
import random
import socket
import ssl
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store
from tuf.api.metadata import Metadata, Root

from wildflower.server import initialise as module
from wildflower.server import ports
from wildflower.server.ca import Authority
from wildflower.server.errors import ConflictError, SettingsError, StartError
from wildflower.server.initialise import Initialised, Options, initialise, is_server
from wildflower.server.records import Event
from wildflower.server.settings import load_settings
from wildflower.server.sql import SqlStore

NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Initialised:
    """A server of profile single, made once."""
    directory = tmp_path_factory.mktemp("made") / "server"
    return initialise(directory, Options(names=("fl.example.org",)), now=NOW)


def modes(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): stat.S_IMODE(path.stat().st_mode)
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_an_initialised_server_holds_what_the_documents_say(made: Initialised) -> None:
    files = set(modes(made.directory))
    assert files >= {
        ".wildflower",
        "server.toml",
        "operator.json",
        "wildflower.db",
        "ca/ca.key",
        "ca/ca.pem",
        "tls/server.key",
        "tls/server.pem",
        "superlink/server.key",
        "superlink/server.pem",
        "superlink/ca.pem",
        "superlink/superexec.secret",
        "keys/snapshot.pem",
        "keys/timestamp.pem",
        "keys/rollout.pem",
        "signer/key.pem",
        "tuf/metadata/1.root.json",
        "tuf/metadata/timestamp.json",
    }
    for name in ("blobs", "build", "logs", "tuf/targets"):
        assert (made.directory / name).is_dir()


def test_no_secret_can_be_read_by_others(made: Initialised) -> None:
    secret = {
        name
        for name in modes(made.directory)
        if name.endswith((".key", "secret", "operator.json", ".db"))
        or (name.startswith(("keys/", "signer/")) and name.endswith(".pem"))
    }
    assert len(secret) >= 13
    assert {modes(made.directory)[name] for name in secret} == {0o600}
    for name in ("ca", "keys", "signer", "superlink", "tls"):
        assert stat.S_IMODE((made.directory / name).stat().st_mode) == 0o700


def test_offline_keys_lie_apart_and_the_operator_is_told_to_move_them(made: Initialised) -> None:
    offline = {path.name for path in (made.directory / "keys" / "offline").iterdir()}
    assert offline == {"root.pem", "targets.pem", "approved-1.pem", "approved-2.pem"}
    online = {path.name for path in (made.directory / "keys").glob("*.pem")}
    assert online == {"snapshot.pem", "timestamp.pem", "rollout.pem"}
    [note] = made.notes
    assert str(made.directory / "keys" / "offline") in note
    assert "Move" in note


def test_the_demo_keeps_all_keys_and_says_what_that_gives_up(tmp_path: Path) -> None:
    demo = initialise(tmp_path / "demo", Options(profile="demo"), now=NOW)
    keys = {path.name for path in (demo.directory / "keys").glob("*.pem")}
    assert keys >= {"root.pem", "targets.pem", "approved-1.pem", "approved-2.pem", "rollout.pem"}
    assert not (demo.directory / "keys" / "offline").exists()
    [note] = demo.notes
    assert "whoever owns it can sign any release" in note
    assert load_settings(demo.directory).profile == "demo"


def test_the_digests_are_what_a_device_will_pin(made: Initialised) -> None:
    root = (made.directory / "tuf" / "metadata" / "1.root.json").read_bytes()
    assert made.root == hashlib.sha256(root).hexdigest()
    assert made.ca == Authority.load(made.directory / "ca").digest
    Metadata[Root].from_bytes(root).verify_delegate("root", Metadata[Root].from_bytes(root))


def test_the_server_is_certified_for_its_names(made: Initialised) -> None:
    pem = (made.directory / "tls" / "server.pem").read_bytes()
    trusted = Store([Authority.load(made.directory / "ca").certificate])
    for name in ("fl.example.org", "localhost"):
        verifier = PolicyBuilder().store(trusted).time(NOW)
        certificate = x509.load_pem_x509_certificate(pem)
        verifier.build_server_verifier(x509.DNSName(name)).verify(certificate, [])


def test_the_superlink_cannot_speak_as_the_server(made: Initialised) -> None:
    ours = ssl.create_default_context(cafile=made.directory / "ca" / "ca.pem")
    theirs = (made.directory / "superlink" / "ca.pem").read_text()
    assert ssl.PEM_cert_to_DER_cert(theirs) not in ours.get_ca_certs(binary_form=True)
    superlink = x509.load_pem_x509_certificate(
        (made.directory / "superlink" / "server.pem").read_bytes()
    )
    authority = x509.load_pem_x509_certificate(theirs.encode())
    superlink.verify_directly_issued_by(authority)
    assert not (made.directory / "superlink" / "ca.key").exists()


def test_the_operator_finds_the_server(made: Initialised) -> None:
    told = json.loads((made.directory / "operator.json").read_text())
    assert told["url"] == made.operator_url == "http://127.0.0.1:8440"
    assert len(told["token"]) >= 43


def test_the_settings_are_what_was_chosen(tmp_path: Path) -> None:
    options = Options(
        host="127.0.0.2", settings={"quorum": 3, "round_deadline_s": 30.0, "app": "task.py"}
    )
    result = initialise(tmp_path / "s", options, now=NOW)
    settings = load_settings(tmp_path / "s")
    assert (settings.quorum, settings.round_deadline_s, settings.app) == (3, 30.0, "task.py")
    assert settings.enrol_url == result.enrol_url == "https://127.0.0.2:8442"


def test_the_database_is_ready(made: Initialised) -> None:
    with SqlStore.open(load_settings(made.directory).database_url) as store:
        assert store.events() == []


def test_a_directory_too_deep_for_the_signers_socket_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    with pytest.raises(SettingsError, match="more than 106 bytes") as caught:
        initialise(deep, Options(free_ports=True), now=datetime.now(UTC))
    assert "shorter path" in caught.value.hint
    assert not deep.exists()


def test_two_servers_share_no_secret(tmp_path: Path, made: Initialised) -> None:
    other = initialise(tmp_path / "other", Options(), now=NOW)
    for name in ("ca/ca.key", "superlink/superexec.secret", "operator.json", "signer/key.pem"):
        assert (other.directory / name).read_bytes() != (made.directory / name).read_bytes()
    assert other.ca != made.ca
    assert other.root != made.root


def test_free_ports_are_chosen_once_and_differ(tmp_path: Path) -> None:
    initialise(tmp_path / "s", Options(free_ports=True), now=NOW)
    chosen = load_settings(tmp_path / "s")
    chosen.require_ports()
    assert len({*chosen.ports.values()}) == 5
    assert not set(chosen.ports.values()) & {8440, 8442, 8443, 8444, 9092}


def test_a_server_is_never_made_over_another(made: Initialised) -> None:
    before = (made.directory / "ca" / "ca.key").read_bytes()
    with pytest.raises(ConflictError, match="is a server already") as caught:
        initialise(made.directory, Options(), now=NOW)
    assert "server up" in caught.value.hint
    assert (made.directory / "ca" / "ca.key").read_bytes() == before


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("three years of work")
    with pytest.raises(ConflictError, match="not empty and is no server"):
        initialise(tmp_path, Options(), now=NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / ".wildflower").write_text('{"kind": "device"}')
    with pytest.raises(ConflictError, match="no server"):
        initialise(tmp_path, Options(), now=NOW)
    with pytest.raises(ConflictError, match="no server"):
        initialise(tmp_path / "thesis.tex", Options(), now=NOW)


def test_an_empty_directory_becomes_a_server(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    initialise(tmp_path / "s", Options(), now=NOW)
    assert is_server(tmp_path / "s")


def test_a_marker_that_is_damaged_is_no_marker(tmp_path: Path) -> None:
    assert not is_server(tmp_path)
    (tmp_path / ".wildflower").write_text("{")
    assert not is_server(tmp_path)


@pytest.mark.parametrize(
    "step", ["_write_identity", "_make_superlink", "_make_repository", "_make_database"]
)
def test_an_init_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, step, fail)
    with pytest.raises(OSError, match="disk full"):
        initialise(tmp_path / "s", Options(), now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_holds_a_fleet_is_not_taken_over(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    with SqlStore.open(url) as store:
        store.put(events=[Event(0, "device.enrolled", "d", {}, NOW)])
    with pytest.raises(ConflictError, match="holds a fleet already"):
        initialise(tmp_path / "s", Options(settings={"database": url}), now=NOW)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (Options(profile="split"), "profile = 'split'"),
        (Options(profile="dmeo"), "profile = 'dmeo': allowed is one of single"),
        (Options(host="a b"), "host = 'a b'"),
        (Options(settings={"quorom": 2}), "no key quorom"),
        (Options(settings={"quorum": 0}), "quorum = 0"),
        (Options(settings={"directory": "/"}), "no key directory"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_made(
    tmp_path: Path, options: Options, found: str
) -> None:
    with pytest.raises(SettingsError, match=found):
        initialise(tmp_path / "s", options, now=NOW)
    assert list(tmp_path.iterdir()) == []


# Ports ---------------------------------------------------------------------------------------


def test_ports_in_use_are_not_chosen() -> None:
    first = ports.choose_ports(1, ["127.0.0.1"], random.Random(1))[0]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        again = ports.choose_ports(1, ["127.0.0.1"], random.Random(1))[0]
    assert again != first


def test_ports_stay_below_those_of_outgoing_connections() -> None:
    lowest = ports._first_ephemeral()
    chosen = ports.choose_ports(50, ["127.0.0.1", "::1"], random.Random(2))
    assert all(ports.LOWEST <= port < max(lowest, ports.LOWEST + ports.TRIES) for port in chosen)
    assert len(set(chosen)) == 50


def test_a_host_that_is_not_this_machine_has_no_free_ports() -> None:
    with pytest.raises(StartError, match="no 5 free ports"):
        ports.choose_ports(5, ["192.0.2.1"], random.Random(3))


def test_an_unreadable_range_is_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "RANGE", tmp_path / "missing")
    assert ports._first_ephemeral() == ports.USUAL_EPHEMERAL
