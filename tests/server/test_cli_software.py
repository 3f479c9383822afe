"""`wildflower software` from what an operator types to the handler that ran on a device."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.client_fakes import FakeServer
from tests.command_lines import answer
from tests.update_fakes import Kit, offer

from wildflower.client.policy import Policy
from wildflower.server.blobs import BlobStore

HANDLER = '#!/bin/sh\ntest "$1" != Install || cp "$2"/files/* "$WILDFLOWER_DIR/"\n'
Say = Callable[..., dict[str, Any]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        (found.releases.directory / "server.toml").write_text("")
        yield found


@pytest.fixture
def place(server: FakeServer) -> Path:
    """The server's directory, as far as signing goes."""
    return server.releases.directory


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Type a command; return its answer, whether it succeeded or not."""
    monkeypatch.delenv("WILDFLOWER_KEY_PASSPHRASE", raising=False)

    return partial(answer, capsys)


@pytest.fixture
def vault(tmp_path: Path, place: Path, say: Say) -> Path:
    """Where the two keys lie that may sign software from now on."""
    keys, change = tmp_path / "vault", tmp_path / "change.json"
    for name in ("software-1", "software-2"):
        say("keys", "init", keys, "--name", name, "--plain")
    say(
        "keys", "delegate-software", "--add", keys / "software-1.pub.json",
        "--add", keys / "software-2.pub.json", "--out", change, "--dir", place,
    )  # fmt: skip
    assert say("sign", "--bundle", change, "--keys", keys)["missing"] != []  # the keys of targets
    assert say("keys", "publish", change, "--dir", place)["changed"] == ["targets", "software"]
    return keys


@pytest.fixture
def kit(server: FakeServer, tmp_path: Path) -> Kit:
    found = Kit(server.enrol(tmp_path / "device"), policy=Policy(software=("labels",)))
    handler = found.directory / "handlers" / "labels"
    handler.parent.mkdir()
    handler.write_text(HANDLER)
    handler.chmod(0o755)
    return found


def serve(server: FakeServer) -> None:
    """Let devices have the blobs, as the gateway of a real server does."""
    files = (server.releases.directory / "blobs").glob("??/*")
    server.releases.blobs |= {path.name: path.read_bytes() for path in files}


def file(tmp_path: Path, text: str, name: str = "labels.txt") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_two_commands_bring_a_file_to_the_handler_of_a_device(
    kit: Kit, server: FakeServer, place: Path, vault: Path, tmp_path: Path, say: Say
) -> None:
    offer(server, 1)
    added: dict[str, Any] = {}
    for order, text in ((1, "dark\nbright\n"), (2, "night\nday\n")):
        words = ("software", "add", "labels", file(tmp_path, text), "--keys", vault)
        added = say(*words, "--dir", place)
        assert (added["name"], added["order"], added["handler"]) == ("labels", order, "labels")
        serve(server)
        kit.look()
        assert (kit.directory / "labels.txt").read_text() == text
    assert [outcome for outcome, _ in kit.told()] == ["committed"] * 3
    shown = say("software", "ls", "--dir", place)
    [line] = shown["lines"]
    assert (line["order"], line["files"], line["digest"]) == (2, ["labels.txt"], added["digest"])
    assert (shown["threshold"], len(shown["keys"])) == (2, 2)


def test_a_bundle_goes_to_the_machines_with_the_keys(
    kit: Kit, server: FakeServer, place: Path, vault: Path, tmp_path: Path, say: Say
) -> None:
    bundle, other = tmp_path / "b.json", tmp_path / "other"
    other.mkdir()
    for name in ("software-2.pem", "software-2.pub.json"):
        (vault / name).rename(other / name)
    words = ("software", "add", "labels", file(tmp_path, "a\nb\n"), "--class", "linux-generic")
    made = say(*words, "--agent-min", "0.0.1", "--out", bundle, "--dir", place)
    assert made["missing"][0].startswith("software: 2 of")
    assert any("software/labels.json" in line for line in made["says"])
    say("sign", "--bundle", bundle, "--keys", vault)
    early = say("keys", "publish", bundle, "--dir", place)
    assert "signatures are missing: software needs 1 more" in early["error"]["message"]
    say("sign", "--bundle", bundle, "--keys", other)
    say("keys", "publish", bundle, "--dir", place)
    serve(server)
    kit.look()
    assert (kit.directory / "labels.txt").read_text() == "a\nb\n"


def test_one_of_two_keys_publishes_nothing(
    place: Path, vault: Path, tmp_path: Path, say: Say
) -> None:
    (vault / "software-2.pem").unlink()
    (vault / "software-2.pub.json").unlink()
    words = ("software", "add", "labels", file(tmp_path, "a"), "--keys", vault, "--dir", place)
    assert "software needs 1 more" in say(*words)["error"]["message"]
    assert say("software", "ls", "--dir", place)["lines"] == []


def test_keys_of_software_are_rotated_as_all_others_are(
    place: Path, vault: Path, tmp_path: Path, say: Say
) -> None:
    change = tmp_path / "rotate.json"
    words = ("software", "add", "labels", file(tmp_path, "a"), "--keys", vault, "--dir", place)
    say(*words)
    say("keys", "init", vault, "--name", "software-3", "--plain")
    old = json.loads((vault / "software-1.pub.json").read_text())["keyid"]
    say(
        "keys", "revoke", old[:10], "--add", vault / "software-3.pub.json", "--out", change,
        "--dir", place,
    )  # fmt: skip
    say("sign", "--bundle", change, "--keys", vault)
    published = say("keys", "publish", change, "--dir", place)
    assert published["changed"] == ["targets", "software"]
    assert old not in say("software", "ls", "--dir", place)["keys"]
    assert say(*words)["order"] == 2


def test_orders_only_grow(place: Path, vault: Path, tmp_path: Path, say: Say) -> None:
    words = ("software", "add", "labels", file(tmp_path, "a"), "--keys", vault, "--dir", place)
    assert say(*words, "--order", "7")["order"] == 7
    assert "7 is published already" in say(*words, "--order", "7")["error"]["message"]
    assert say(*words)["order"] == 8


def test_without_the_role_it_is_said_how_to_appoint_signers(
    place: Path, tmp_path: Path, say: Say
) -> None:
    for words in (
        ("software", "ls"),
        ("software", "add", "labels", file(tmp_path, "a"), "--keys", tmp_path),
    ):
        error = say(*words, "--dir", place)["error"]
        assert "no role software" in error["message"]
        assert "delegate-software" in error["hint"]


def test_what_cannot_be_is_told(place: Path, vault: Path, tmp_path: Path, say: Say) -> None:
    here = ("--dir", place)
    lacks = say("software", "add", "labels", tmp_path / "gone", "--keys", vault, *here)
    assert "gone cannot be read" in lacks["error"]["message"]
    trick = say("software", "add", "../labels", file(tmp_path, "a"), "--keys", vault, *here)
    assert "not a plain name" in trick["error"]["message"]
    twice = say("software", "add", "labels", *[file(tmp_path, "a")] * 2, "--keys", vault, *here)
    assert "different names" in twice["error"]["message"]
    neither = say("software", "add", "labels", file(tmp_path, "a"), *here)
    assert "--keys" in neither["error"]["message"]
    none = say("keys", "delegate-software", "--out", tmp_path / "c.json", *here)
    assert "there already" in none["error"]["message"]


def test_files_lie_with_the_servers_others(
    place: Path, vault: Path, tmp_path: Path, say: Say
) -> None:
    say("software", "add", "labels", file(tmp_path, "a\n"), "--keys", vault, "--dir", place)
    digest = "87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7"
    assert BlobStore(place / "blobs").read(digest) == b"a\n"
