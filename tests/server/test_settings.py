import contextlib
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.server.errors import ServerError, SettingsError
from wildflower.server.settings import PROFILES, Settings, load_settings

HERE = Path("/srv/wildflower")
TEXT = st.text(st.characters(codec="utf-8"), max_size=20).filter(str.isprintable)
HOSTS = st.sampled_from(["127.0.0.1", "::1", "fl.example.org", "a", "10.0.0.7", "2001:db8::1"])
SETTINGS = st.builds(
    Settings,
    directory=st.just(HERE),
    host=HOSTS,
    names=st.lists(HOSTS, max_size=3).map(tuple),
    profile=st.sampled_from(PROFILES),
    database=TEXT,
    app=TEXT,
    proxy_data=TEXT,
    blobs=TEXT.filter(bool),
    quorum=st.integers(1, 10**6),
    round_deadline_s=st.floats(1, 604_800),
    enrol_port=st.integers(1, 1000),
)


@settings(max_examples=100)
@given(SETTINGS)
def test_what_is_written_is_what_is_read(chosen: Settings) -> None:
    assert Settings.from_toml(chosen.to_toml(), HERE) == chosen


def test_a_file_comes_back_through_its_directory(tmp_path: Path) -> None:
    chosen = Settings(directory=tmp_path, app='a "quoted" \\ task', names=("fl.example.org",))
    chosen.write(tmp_path)
    assert load_settings(tmp_path) == chosen


def test_an_empty_file_is_all_defaults() -> None:
    assert Settings.from_toml("", HERE) == Settings(directory=HERE)


def test_defaults_are_what_the_documents_say() -> None:
    default = Settings(directory=HERE)
    assert dict(default.ports) == {
        "enrol_port": 8442,
        "device_port": 8443,
        "channel_port": 8444,
        "operator_port": 8440,
        "superlink_port": 9092,
    }
    assert default.database_url == "sqlite:////srv/wildflower/wildflower.db"
    assert default.enrol_url == "https://127.0.0.1:8442"
    assert default.device_url == "https://127.0.0.1:8443"
    assert default.channel_address == "127.0.0.1:8444"
    assert default.operator_url == "http://127.0.0.1:8440"
    assert default.superlink_address == "127.0.0.1:9092"
    assert default.blobs_path == HERE / "blobs"
    assert default.proxy_data_path is None


def test_paths_are_relative_to_the_directory_unless_absolute() -> None:
    chosen = Settings(directory=HERE, proxy_data="proxy.npz", blobs="/big/blobs")
    assert chosen.proxy_data_path == HERE / "proxy.npz"
    assert chosen.blobs_path == Path("/big/blobs")
    assert (
        dataclasses.replace(chosen, database="postgresql://x/y").database_url == "postgresql://x/y"
    )


def test_devices_are_told_the_first_name() -> None:
    chosen = Settings(directory=HERE, host="0.0.0.0", names=("fl.example.org", "10.0.0.1"))
    assert chosen.enrol_url == "https://fl.example.org:8442"
    assert Settings(directory=HERE, host="::1").device_url == "https://[::1]:8443"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_host_that_is_every_address_needs_a_name(host: str) -> None:
    with pytest.raises(SettingsError, match="names") as caught:
        Settings(directory=HERE, host=host)
    assert "example" in caught.value.hint


WRONG = {
    "port too high": ("[listeners]\nenrol_port = 70000", "enrol_port = 70000", "65535"),
    "port as text": ('[listeners]\nenrol_port = "8442"', "enrol_port = '8442'", "65535"),
    "port as a claim": ("[listeners]\nenrol_port = true", "enrol_port = True", "65535"),
    "unknown profile": ('[server]\nprofile = "dmeo"', "profile = 'dmeo'", "single, split, demo"),
    "no quorum": ("[learning]\nquorum = 0", "quorum = 0", "1000000"),
    "endless round": ("[learning]\nround_deadline_s = inf", "round_deadline_s = inf", "604800"),
    "no number": ("[learning]\nround_deadline_s = nan", "round_deadline_s = nan", "604800"),
    "names not a list": ('[server]\nnames = "a"', "names = 'a'", "list"),
    "names of numbers": ("[server]\nnames = [1]", "names = (1,)", "list"),
    "host with a path": ('[server]\nhost = "a/b"', "host = 'a/b'", "host name"),
    "a line break": ('[learning]\napp = "a\\nb"', "app = 'a\\nb'", "module:object"),
    "a model with a slash": ('[release]\nmodel_name = "a/b"', "model_name = 'a/b'", "letters"),
    "a probation of years": (
        "[release]\nprobation_s = 99999999",
        "probation_s = 99999999",
        "seconds in [0, 2592000]",
    ),
    "no blobs": ('[release]\nblobs = ""', "blobs = ''", "directory"),
    "a table": ("[server.host]\nx = 1", "host = {'x': 1}", "host name"),
}


@pytest.mark.parametrize(("text", "found", "allowed"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(
    text: str, found: str, allowed: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_toml(text, HERE)
    assert found in str(caught.value)
    assert allowed in str(caught.value)


UNKNOWN = {
    "mistyped": ("[listeners]\nenroll_port = 1", "listeners.enroll_port", "listeners.enrol_port"),
    "wrong section": ("[server]\nquorum = 2", "server.quorum", "learning.quorum"),
    "no section": ("quorum = 2", "quorum", "learning.quorum"),
    "mistyped section": ("[listener]\nenrol_port = 1", "listener.enrol_port", "listeners.enrol_p"),
    "nothing like it": ("[zzz]\nqqq = 1", "zzz.qqq", "Allowed: server.host"),
    "directory": ('[server]\ndirectory = "/"', "server.directory", ""),
}


@pytest.mark.parametrize(("text", "found", "guess"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_key_is_refused_with_a_guess(text: str, found: str, guess: str) -> None:
    with pytest.raises(SettingsError, match=f"no key {found}") as caught:
        Settings.from_toml(text, HERE)
    assert guess in caught.value.hint


def test_keys_can_be_chosen_by_name() -> None:
    chosen = Settings.choose(HERE, {"quorum": 3, "names": ["a"], "round_deadline_s": 5})
    assert chosen == Settings(HERE, quorum=3, names=("a",), round_deadline_s=5.0)
    with pytest.raises(SettingsError, match="no key quorom") as caught:
        Settings.choose(HERE, {"quorom": 3})
    assert "learning.quorum" in caught.value.hint


def test_two_listeners_cannot_have_one_port() -> None:
    with pytest.raises(SettingsError, match="device_port = 8442: enrol_port has the same port"):
        Settings.from_toml("[listeners]\ndevice_port = 8442", HERE)


def test_a_port_of_0_must_be_chosen_before_the_server_starts() -> None:
    chosen = Settings(directory=HERE, enrol_port=0, device_port=0)
    with pytest.raises(SettingsError, match="enrol_port = 0") as caught:
        chosen.require_ports()
    assert "--free-ports" in caught.value.hint
    Settings(directory=HERE).require_ports()


def test_a_directory_without_a_server_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"server\.toml is missing") as caught:
        load_settings(tmp_path)
    assert f"wildflower server init --dir {tmp_path}" in caught.value.hint


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path)
    (tmp_path / "server.toml").write_text("[server")
    with pytest.raises(SettingsError, match="not TOML"):
        load_settings(tmp_path)


@settings(max_examples=200)
@given(st.text(max_size=60) | st.text("[]server=host\"'\n.1,{}", max_size=60))
def test_any_text_is_settings_or_a_named_error(text: str) -> None:
    with contextlib.suppress(ServerError):
        Settings.from_toml(text, HERE)
