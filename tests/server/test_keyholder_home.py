"""A key holder's directory and process: made once, run once, survives a kill, over real TLS."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.flower_fakes import free_port
from tests.he_fakes import HeFleet
from tests.round_fakes import LAYOUT, FlowerApp, request

from wildflower.cli import main
from wildflower.server.cli.service import read_place
from wildflower.server.errors import ConflictError, ServerError, SettingsError, StartError
from wildflower.server.keyholder import Terms
from wildflower.server.keyholder_home import (
    SETTINGS_FILE,
    TOKEN_FILE,
    make_key_holder,
    open_key_holder,
    run_key_holder,
    token_digest,
)
from wildflower.server.keyholder_link import KeyHolderLink
from wildflower.server.listener import Place
from wildflower.strategies.errors import KeyHolderError, RoundAbortedError
from wildflower.strategies.he.bfv import PublicKey
from wildflower.strategies.he.messages import SumRequest
from wildflower.strategies.he_round import he_round

ENTROPY = bytes(range(32))


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_key_holder(tmp_path / "kh", Terms(4, 7), entropy=ENTROPY, now=now())
    return tmp_path / "kh"


def test_a_new_key_holder_has_an_identity_terms_and_a_token(directory: Path) -> None:
    home = open_key_holder(directory, now=now)
    assert home.terms == Terms(4, 7)
    assert home.holder.key("t1").holder == home.identity.digest
    token = (directory / TOKEN_FILE).read_bytes()
    assert home.token_digest == token_digest(token)
    assert token not in (directory / SETTINGS_FILE).read_bytes()
    for name in (TOKEN_FILE, SETTINGS_FILE, "identity.key"):
        assert (directory / name).stat().st_mode & 0o777 == 0o600
    assert (directory / "runs").stat().st_mode & 0o777 == 0o700
    assert token.decode() not in repr(home)


def test_a_key_holder_is_made_once(directory: Path) -> None:
    with pytest.raises(ConflictError, match="not empty"):
        make_key_holder(directory, Terms(), entropy=ENTROPY, now=now())


@pytest.mark.parametrize("terms", [Terms(2, 7), Terms(128, 7), Terms(3, 0), Terms(3, 3651)])
def test_terms_out_of_range_are_refused_by_name(tmp_path: Path, terms: Terms) -> None:
    with pytest.raises(SettingsError, match=r"(min_cohort|days) = \d+ is not allowed") as caught:
        make_key_holder(tmp_path / "kh", terms, entropy=ENTROPY, now=now())
    assert "Allowed: " in caught.value.hint
    assert not (tmp_path / "kh").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not toml",
        'min_cohort = 3\ndays = 7\ntoken_digest = "x"\nmore = 1',
        "min_cohort = 3\ndays = 7\ntoken_digest = 1",
        'min_cohort = "3"\ndays = 7\ntoken_digest = "x"',
        'min_cohort = true\ndays = 7\ntoken_digest = "x"',
    ],
)
def test_settings_that_are_none_are_refused(directory: Path, text: str) -> None:
    (directory / SETTINGS_FILE).write_text(text)
    with pytest.raises(SettingsError):
        open_key_holder(directory, now=now)


def test_a_directory_that_is_none_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        open_key_holder(tmp_path, now=now)
    assert "wildflower keyholder init" in caught.value.hint


def test_a_damaged_identity_is_named(directory: Path) -> None:
    (directory / "identity.key").write_bytes(b"noise")
    with pytest.raises(StartError, match="cannot be read"):
        open_key_holder(directory, now=now)


def test_two_in_one_directory_are_one_too_many(directory: Path) -> None:
    stopping, port = threading.Event(), free_port()
    place = Place("127.0.0.1", port, "--listen")
    first = threading.Thread(
        target=run_key_holder, args=(directory, place, stopping), kwargs={"now": now}
    )
    first.start()
    try:
        connected(directory, port).close()
        with pytest.raises(StartError, match="a key holder runs in"):
            run_key_holder(directory, place, stopping, now=now)
    finally:
        stopping.set()
        first.join()


def connected(directory: Path, port: int) -> KeyHolderLink:
    """Return a link to the key holder of a directory, once it answers."""
    digest = open_key_holder(directory, now=now).identity.digest
    token = (directory / TOKEN_FILE).read_text()
    link = KeyHolderLink(f"https://127.0.0.1:{port}", digest, token, patience_s=60)
    link.key("t1")
    return link


@contextlib.contextmanager
def process(directory: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "wildflower.cli", "keyholder", "run"]
    command += ["--dir", str(directory), "--listen", f"127.0.0.1:{port}", "--format", "json"]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def test_a_real_process_survives_a_kill_and_ends_when_told(directory: Path) -> None:
    port = free_port()
    with process(directory, port) as running:
        link = connected(directory, port)
        key = link.key("t1")
        public = PublicKey.load(key.context)
        total = public.zero(5)
        for _ in range(4):
            total.add(public.encrypt(np.arange(5, dtype=np.uint16)))
        request = SumRequest("t1", 1, key.digest, 4, 5, total.ciphertexts())
        first = link.decrypt(request)
        assert first.tolist() == [0, 4, 8, 12, 16]
        running.kill()
        running.wait()
    with process(directory, port) as running:
        assert link.decrypt(request).tolist() == first.tolist()
        total.add(public.encrypt(np.arange(5, dtype=np.uint16)))
        with pytest.raises(KeyHolderError, match="answered already, for another sum"):
            link.decrypt(SumRequest("t1", 1, key.digest, 5, 5, total.ciphertexts()))
        link.close()
        running.terminate()
        out, log = running.communicate(timeout=30)
    assert running.returncode == 0, log
    assert json.loads(out)["success"]
    assert b"sum answered" not in log  # it was answered before the kill
    assert b"key holder ready" in log


def test_a_round_asks_a_real_key_holder(directory: Path, tmp_path: Path) -> None:
    port, digest = free_port(), open_key_holder(directory, now=now).identity.digest
    apps = [FlowerApp(0.5, 10, {"loss": 0.5, "seen": 1.0}).app for _ in range(5)]
    fleet = HeFleet(tmp_path / "unused", apps, pinned=digest, min_cohort=4)
    with process(directory, port):
        link = connected(directory, port)
        result = he_round(
            fleet.grid,
            fleet.nodes,
            request(),
            is_gone=fleet.grid.is_gone,
            entropy=ENTROPY,
            ca_pem=fleet.ca.pem,
            key_holder=link,
        )
        link.close()
    assert result.total.weight == 50.0
    assert result.total.vector == pytest.approx(np.full(LAYOUT.size, 25.0), abs=0.5)
    with pytest.raises(RoundAbortedError, match="does not answer"):
        he_round(
            fleet.grid,
            fleet.nodes,
            request(number=2),
            is_gone=fleet.grid.is_gone,
            entropy=ENTROPY,
            ca_pem=fleet.ca.pem,
            key_holder=KeyHolderLink(f"https://127.0.0.1:{port}", digest, "token", patience_s=0),
        )


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        main(["keyholder", *words, "--format", "json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["success"] == (ended.value.code == 0)
    return found


def test_init_and_show_tell_who_it_is_and_what_may_be_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "kh")
    made = told(capsys, "init", "--dir", place, "--min-cohort", "20", "--days", "9")
    home = open_key_holder(Path(place), now=now)
    key = home.holder.key("training-1")
    shown = told(capsys, "show", "--dir", place)
    assert made["digest"] == shown["digest"] == home.identity.digest
    assert f'key_holder = "{home.identity.digest}"' in str(made["notes"])
    assert (shown["min_cohort"], shown["days"]) == (20, 9)
    assert "how many updates really are in a sum" in str(shown["cannot_see"])
    (run,) = shown["runs"]
    assert (run["run"], run["key"], run["rounds"]) == ("training-1", key.digest.hex(), 0)
    again = told(capsys, "init", "--dir", place)
    assert "not empty" in str(again["error"])


@pytest.mark.parametrize("host", ["127.0.0.1", "keys.example.org", "::1"])
def test_where_to_listen_is_host_and_port(host: str) -> None:
    shown = f"[{host}]" if ":" in host else host
    assert read_place(f"{shown}:8446") == Place(host, 8446, "--listen", "of this command")


@pytest.mark.parametrize("listen", ["", "8446", "host:", "host:port", ":1", "host:70000"])
def test_where_to_listen_is_checked(
    directory: Path, capsys: pytest.CaptureFixture[str], listen: str
) -> None:
    failed = told(capsys, "run", "--dir", str(directory), "--listen", listen)
    assert "--listen" in str(failed["error"])


def test_a_port_in_use_is_an_error_with_its_name(directory: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = Place("127.0.0.1", taken.getsockname()[1], "--listen", "of this command")
        with pytest.raises(ServerError, match="--listen of this command"):
            run_key_holder(directory, place, stopping, now=now)


def test_a_running_key_holder_looks_for_expired_keys_at_once(tmp_path: Path) -> None:
    make_key_holder(tmp_path / "kh", Terms(3, 1), entropy=ENTROPY, now=now())
    open_key_holder(tmp_path / "kh", now=lambda: datetime(2020, 1, 1, tzinfo=UTC)).holder.key("old")
    stopping = threading.Event()
    place = Place("127.0.0.1", 0, "--listen")
    running = threading.Thread(
        target=run_key_holder, args=(tmp_path / "kh", place, stopping), kwargs={"now": now}
    )
    running.start()
    end = time.monotonic() + 30
    while list((tmp_path / "kh").rglob("*.secret")) and time.monotonic() < end:
        time.sleep(0.01)
    stopping.set()
    running.join()
    assert list((tmp_path / "kh").rglob("*.secret")) == []
