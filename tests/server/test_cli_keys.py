"""`wildflower keys` and `wildflower sign --bundle` as an operator types them."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.command_lines import answer
from tests.ota_fakes import Origin, file_entry, release_of

from wildflower.ota.errors import FormatError, RefusedError, SigningError
from wildflower.ota.release import audit
from wildflower.ota.release.keys import APPROVED, AUTO
from wildflower.ota.release.manifest import Lineage, Release, target_path
from wildflower.ota.release.method import Method
from wildflower.ota.release.provenance import RoundRecord
from wildflower.ota.release.repository import Changes
from wildflower.ota.release.statement import (
    Provenance,
    open_statement,
    read_statement,
    sign_statement,
    statement_path,
)
from wildflower.server.cli.remote import Remote
from wildflower.server.cli.sign import (
    load_signers,
    make_statement,
    prepare_bundle,
    sign_bundle,
    sign_release,
    submit_bundle,
)

TODAY = datetime.now(UTC).replace(microsecond=0)
SECRET = "correct horse"

Say = Callable[..., dict[str, Any]]


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path / "server", TODAY)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Type a command; return its answer, whether it succeeded or not."""
    monkeypatch.setenv("WILDFLOWER_KEY_PASSPHRASE", SECRET)

    return partial(answer, capsys)


def vault(origin: Origin) -> Path:
    """Take the offline keys away; return where they are."""
    place = origin.directory.parent / "vault"
    place.mkdir(exist_ok=True)
    for name in ("root", "targets", "approved-1", "approved-2"):
        path = origin.directory / "keys" / f"{name}.pem"
        path.rename(place / path.name)
    return place


def test_a_root_key_is_rotated_by_four_commands(
    origin: Origin, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, change = vault(origin), tmp_path / "new", tmp_path / "change.json"
    made = say("keys", "init", new, "--name", "root-2")
    assert (new / "root-2.pem").read_bytes().count(b"ENCRYPTED") == 2
    roles = say("keys", "show", "--dir", origin.directory)["roles"]
    [before] = [line["keys"] for line in roles if line["role"] == "root"]
    proposed = say(
        "keys", "rotate", "root", "--add", new / "root-2.pub.json", "--remove", before[0][:10],
        "--out", change, "--dir", origin.directory,
    )  # fmt: skip
    assert len(proposed["missing"]) == 2
    assert f"  root: + key {made['keyid'][:12]}" in proposed["says"]
    early = say("keys", "publish", change, "--dir", origin.directory)
    assert early["error"]["type"] == "SigningError"
    signed = say("sign", "--bundle", change, "--keys", new)
    assert signed["signed"] == [f"root by {made['keyid'][:12]}"]
    monkeypatch.setenv("WILDFLOWER_KEY_PASSPHRASE", "")
    assert say("sign", "--bundle", change, "--keys", old)["missing"] == []
    assert say("keys", "publish", change, "--dir", origin.directory)["root"] == 2
    shown = say("keys", "show", "--dir", origin.directory, "--keys", new)
    [line] = [line for line in shown["roles"] if line["role"] == "root"]
    assert (line["keys"], line["holder"], shown["missing"]) == ([made["keyid"]], ["root-2"], [])


def test_a_bundle_shows_what_it_would_make_and_what_it_lacks(
    origin: Origin, tmp_path: Path, say: Say
) -> None:
    made = say("keys", "init", tmp_path / "new", "--name", "approved-3")
    change = tmp_path / "change.json"
    say(
        "keys", "rotate", APPROVED, "--add", tmp_path / "new" / "approved-3.pub.json",
        "--threshold", "3", "--out", change, "--dir", origin.directory,
    )  # fmt: skip
    shown = say("keys", "show", "--bundle", change)
    [line] = [line for line in shown["roles"] if line["role"] == APPROVED]
    assert (line["threshold"], line["keys"][2]) == (3, made["keyid"])
    assert [lack.partition(":")[0] for lack in shown["missing"]] == ["targets", APPROVED]


def test_a_key_is_revoked_by_the_beginning_of_its_id(
    origin: Origin, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, change = vault(origin), tmp_path / "change.json"
    say("keys", "init", tmp_path / "new", "--name", "approved-3")
    gone = origin.keys[APPROVED].public_keys[0].keyid
    words = ("keys", "revoke", gone[:8], "--out", change, "--dir", origin.directory)
    assert "threshold of 2" in say(*words)["error"]["message"]
    say(*words, "--add", tmp_path / "new" / "approved-3.pub.json")
    say("sign", "--bundle", change, "--keys", tmp_path / "new")
    monkeypatch.setenv("WILDFLOWER_KEY_PASSPHRASE", "")
    say("sign", "--bundle", change, "--keys", place)
    published = say("keys", "publish", change, "--dir", origin.directory)
    assert published["changed"] == ["targets", APPROVED]
    roles = say("keys", "show", "--dir", origin.directory)["roles"]
    assert gone not in [key for line in roles for key in line["keys"]]
    assert "0 keys begin with" in say(*words)["error"]["message"]


@pytest.mark.parametrize(("passphrase", "plain"), [("", False), (SECRET, True)])
def test_a_key_has_a_passphrase_or_is_plain_on_purpose(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch, passphrase: str, plain: bool
) -> None:
    monkeypatch.setenv("WILDFLOWER_KEY_PASSPHRASE", passphrase)
    answer = say("keys", "init", tmp_path, "--name", "k", *["--plain"] * plain)
    assert "passphrase, or --plain" in answer["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_plain_key_is_for_a_server(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WILDFLOWER_KEY_PASSPHRASE")
    assert say("keys", "init", tmp_path, "--name", "k", "--plain")["uri"] == "file:k.pem"


def test_a_token_that_is_not_there_is_told(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYKCS11LIB", raising=False)
    answer = say("keys", "init", tmp_path, "--name", "k", "--uri", "hsm:2?label=x")
    assert "PYKCS11LIB" in answer["error"]["hint"]


def test_every_signature_is_in_the_trail_beside_the_key(
    origin: Origin, tmp_path: Path, say: Say
) -> None:
    change = tmp_path / "change.json"
    say("keys", "init", tmp_path / "new", "--name", "root-2")
    say(
        "keys", "rotate", "root", "--add", tmp_path / "new" / "root-2.pub.json",
        "--threshold", "2", "--out", change, "--dir", origin.directory,
    )  # fmt: skip
    say("sign", "--bundle", change, "--keys", tmp_path / "new")
    shown = say("keys", "audit", tmp_path / "new")
    assert shown["signatures"] == 1
    assert "root 2" in shown["last"][0]
    again = say("sign", "--bundle", change, "--keys", tmp_path / "new")
    assert "no key in" in again["error"]["message"]
    trail = tmp_path / "new" / audit.FILE
    assert say("keys", "audit", trail, "--head", shown["head"])["signatures"] == 1
    assert (
        "does not contain" in say("keys", "audit", trail, "--head", "ee" * 32)["error"]["message"]
    )
    trail.write_bytes(trail.read_bytes().replace(b"root 2", b"root 3"))
    assert say("keys", "audit", trail, "--last", "0")["last"] == []
    assert (
        "does not contain"
        in say("keys", "audit", trail, "--head", shown["head"])["error"]["message"]
    )


def test_files_that_cannot_be_read_are_named(tmp_path: Path, say: Say, origin: Origin) -> None:
    for words in (
        ("keys", "publish", tmp_path / "nowhere"),
        ("keys", "audit", tmp_path / "nowhere"),
        ("keys", "show", "--bundle", tmp_path / "nowhere"),
        ("keys", "show", "--dir", tmp_path / "nowhere"),
        ("sign", "--bundle", tmp_path / "nowhere"),
    ):
        assert "nowhere" in say(*words)["error"]["message"]
    unwritable = tmp_path / "file"
    unwritable.write_text("no directory")
    answer = say(
        "keys", "rotate", APPROVED, "--threshold", "1", "--out", unwritable / "b.json",
        "--dir", origin.directory,
    )  # fmt: skip
    assert "cannot be written" in answer["error"]["message"]


def test_a_model_sig_is_signed_by_a_key_of_the_vault(tmp_path: Path, say: Say) -> None:
    say("keys", "init", tmp_path / "vault", "--name", "oms", "--ecdsa")
    (tmp_path / "manifest.json").write_bytes(release_of(b"model").to_bytes())
    words = ("keys", "model-sig", tmp_path / "manifest.json", tmp_path / "vault" / "oms.pub.json")
    made = say(*words, "--out", tmp_path / "model.sig")
    assert made["files"] == ["model.onnx"]
    assert b"sigstore.bundle" in Path(made["signature"]).read_bytes()
    assert b"PUBLIC KEY" in Path(made["public_key"]).read_bytes()
    assert say("keys", "audit", tmp_path / "vault")["last"][0].split()[4] == "DSSE"


class Published:
    """The part of the operator API that signing needs, over a real repository."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.views: list[dict[str, Any]] = []

    def release(self, data: bytes, method: Method) -> Release:
        """Publish an automatic release with its statement, as the release signer makes them."""
        release = self.origin.publish(data, not_before=TODAY)
        lineage, path = release.lineage, target_path("auto", release.target_group, 1)
        record = RoundRecord(
            lineage.training, lineage.round_number, lineage.model, 8, 7, True, {}, TODAY, method
        )
        [key] = self.origin.keys[AUTO].signers
        envelope = sign_statement(Provenance.of(release, record, {"onnx": "1"}), [key])
        self.origin.put(AUTO, statement_path(path), envelope)
        self.views.append(view_of(release, path) | {"role": "auto"})
        return release

    @property
    def remote(self) -> Remote:
        return Remote("http://127.0.0.1:1", "token", httpx.MockTransport(self.answer))

    def answer(self, request: httpx.Request) -> httpx.Response:
        _, _, path = request.url.path.partition("/api/v1/")
        if path.startswith("repository/"):
            role = path.removeprefix("repository/")
            return httpx.Response(200, content=self.origin.repository.current(role))
        if path.endswith("/statement"):
            [named] = [one["path"] for one in self.views if one["digest"] in path]
            found = self.origin.repository.target(AUTO, statement_path(named))
            return httpx.Response(200, content=found)
        if request.method == "GET":
            return httpx.Response(200, json={"items": self.views, "next": ""})
        body = json.loads(request.content)
        manifest, statement = body["manifest"].encode(), body.get("statement", "").encode()
        release = Release.from_bytes(manifest)
        path = f"models/approved/{release.target_group}/{release.order}.json"
        beside = {statement_path(path): statement} if statement else {}
        self.origin.repository.publish(
            Changes({APPROVED: body["metadata"].encode()}, {path: manifest, **beside}),
            self.origin.keys,
            TODAY,
        )
        return httpx.Response(201, json=view_of(release, path))


def view_of(release: Release, path: str) -> dict[str, Any]:
    return {
        "digest": release.digest,
        "model": release.lineage.model,
        "target_group": release.target_group,
        "order": release.order,
        "role": "approved",
        "path": path,
        "device_class": release.requires.device_class,
        "artifact": release.artifact.digest,
        "created_at": TODAY.isoformat(),
    }


def test_a_release_is_signed_on_machines_that_see_no_server(origin: Origin, tmp_path: Path) -> None:
    place, file = vault(origin), tmp_path / "release.json"
    first, second = tmp_path / "alice", tmp_path / "bob"
    for holder, name in ((first, "approved-1"), (second, "approved-2")):
        holder.mkdir()
        (place / f"{name}.pem").rename(holder / f"{name}.pem")
    release, remote = release_of(b"model", not_before=TODAY), Published(origin).remote
    made = prepare_bundle(remote, release, file, expires=TODAY + timedelta(days=30))
    assert made.missing[0].startswith("models/approved: 2 of")
    assert any("models/approved/digits.linux-generic/1.json" in line for line in made.says)
    assert sign_bundle(file, first, {}).missing[0].startswith("models/approved: 1 of")
    assert sign_bundle(file, second, {}).missing == []
    done = submit_bundle(remote, file)
    assert (done.release, done.order, done.signatures) == (release.digest, 1, 2)


def test_a_release_takes_along_where_it_comes_from_and_its_first_signer_signs_that(
    origin: Origin, tmp_path: Path
) -> None:
    place, file = vault(origin), tmp_path / "release.json"
    first, second = tmp_path / "alice", tmp_path / "bob"
    for holder, name in ((first, "approved-1"), (second, "approved-2")):
        holder.mkdir()
        (place / f"{name}.pem").rename(holder / f"{name}.pem")
    server = Published(origin)
    release = server.release(b"model", Method("fedavg", "secagg"))
    made = prepare_bundle(server.remote, release, file, expires=TODAY + timedelta(days=30))
    told = "round t1/3, secagg+fedavg, 7 of 8 devices, no privacy told"
    assert any(line.endswith(told) for line in made.says)
    says = sign_bundle(file, first, {}).says
    assert any(line.endswith(told) for line in says)
    assert sign_bundle(file, second, {}).missing == []
    done = submit_bundle(server.remote, file)
    assert (done.order, done.signatures) == (2, 2)
    envelope = origin.repository.target(APPROVED, statement_path(done.path))
    keys = origin.keys[APPROVED].public_keys
    found = open_statement(envelope, keys)
    found.check(replace(release, order=2))
    assert (found.toolchain, found.method) == ({"onnx": "1"}, Method("fedavg", "secagg"))
    with pytest.raises(RefusedError):
        open_statement(envelope, keys[1:])
    [line] = [one for one in audit.follow((first / audit.FILE).read_bytes()) if one.what == "DSSE"]
    assert line.key == keys[0].keyid


def test_keys_on_one_machine_sign_the_statement_together(origin: Origin, tmp_path: Path) -> None:
    server, place = Published(origin), vault(origin)
    release = server.release(b"model", Method("fedavg", "secagg"))
    expires = TODAY + timedelta(days=30)
    signed, view = sign_release(server.remote, release, load_signers(place), expires=expires)
    envelope = origin.repository.target(APPROVED, statement_path(view.path))
    open_statement(envelope, origin.keys[APPROVED].public_keys, threshold=2).check(signed)


def test_of_a_model_that_no_round_here_made_nothing_is_stated(origin: Origin) -> None:
    server = Published(origin)
    server.release(b"model", Method("fedavg", "secagg"))
    other = release_of(b"model", lineage=Lineage("ab" * 32, "", 0, ""))
    assert make_statement(server.remote, other, []) == b""
    another = release_of(b"model", lineage=Lineage("cd" * 32, "t1", 3, ""))
    assert make_statement(server.remote, another, []) == b""


def test_a_file_that_was_built_anew_says_nothing_of_what_built_it(origin: Origin) -> None:
    server = Published(origin)
    release = server.release(b"model", Method("fedavg", "secagg"))
    other = replace(release, files=(file_entry(b"another artifact"),))
    found = read_statement(make_statement(server.remote, other, []))
    assert found.toolchain == {}
    found.check(other)


def test_a_server_cannot_invent_where_a_release_comes_from(origin: Origin) -> None:
    server = Published(origin)
    release = server.release(b"model", Method("fedavg", "secagg"))
    path = statement_path(target_path("auto", release.target_group, 1))
    genuine = read_statement(origin.repository.target(AUTO, path))
    lie = sign_statement(replace(genuine, survivors=8), origin.keys[APPROVED].signers)
    origin.put(AUTO, path, lie)
    with pytest.raises(RefusedError, match="wrong signature"):
        make_statement(server.remote, release, [])


def test_a_change_of_keys_is_no_release(origin: Origin, tmp_path: Path, say: Say) -> None:
    file = tmp_path / "change.json"
    say(
        "keys", "rotate", APPROVED, "--threshold", "1", "--out", file, "--dir", origin.directory
    )  # fmt: skip
    with pytest.raises(FormatError, match="holds no release"):
        submit_bundle(Published(origin).remote, file)


def test_a_machine_without_a_key_for_it_says_whose_are_wanted(
    origin: Origin, tmp_path: Path
) -> None:
    file = tmp_path / "release.json"
    release = release_of(b"model", not_before=TODAY)
    prepare_bundle(Published(origin).remote, release, file, expires=TODAY + timedelta(days=30))
    with pytest.raises(SigningError, match="no key in") as refused:
        sign_bundle(file, tmp_path, {})
    assert origin.keys[APPROVED].public_keys[1].keyid[:12] in refused.value.hint
