"""The LAN cache: fetched once, kept within a quota, served while it comes, trusted for nothing."""

import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.client_fakes import FakeServer, until
from tests.ota_fakes import FaultServer
from tests.update_fakes import Kit, blobs_asked, offer

from wildflower.cli import main
from wildflower.client import cache_server
from wildflower.client.blob_cache import BlobCache, Filling, part_of
from wildflower.client.cache_server import (
    LIFE_S,
    MAX_DOCUMENT,
    CacheServer,
    Documents,
    HttpUpstream,
    answer,
    run_cache,
)
from wildflower.client.errors import AgentError
from wildflower.client.identity import Identity
from wildflower.ota.device.report import Outcome
from wildflower.ota.errors import FetchError, OtaError, RefusedError, StorageError
from wildflower.ota.release.connection import Connection
from wildflower.ota.release.trust import NotThereError

ONE, TWO, THREE = (letter * 300_000 for letter in (b"1", b"2", b"3"))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class FakeUpstream:
    """A server in memory, which stops in mid-file while it is told to.

    Attributes:
        blobs: Contents by digest.
        asked: Digests that were fetched.
        middle: Set when half of a file has come.
        go_on: Cleared to hold the second half back.
        failure: What a fetch ends with instead; None for well.
    """

    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    middle: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    failure: OtaError | None = None

    def __post_init__(self) -> None:
        self.blobs = {digest(data): data for data in (ONE, TWO, THREE)}
        self.go_on.set()

    def length(self, digest: str) -> int:
        if digest not in self.blobs:
            raise NotThereError(digest)
        return len(self.blobs[digest])

    def fetch(
        self, digest: str, length: int, destination: Path, on_bytes: Callable[[int], None]
    ) -> None:
        self.asked.append(digest)
        data, half = self.blobs[digest], length // 2
        with part_of(destination).open("wb", buffering=0) as file:
            file.write(data[:half])
            on_bytes(half)
            self.middle.set()
            assert self.go_on.wait(20)
            if self.failure is not None:
                raise self.failure
            file.write(data[half:])
            on_bytes(length)
        part_of(destination).rename(destination)


@pytest.fixture
def upstream() -> FakeUpstream:
    return FakeUpstream()


@pytest.fixture
def cache(upstream: FakeUpstream, tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "cache", 700_000, upstream)


def read(cache: BlobCache, data: bytes, start: int = 0) -> bytes:
    blob = cache.find(digest(data))
    return b"".join(blob.pieces(start, blob.length - start))


def kept(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").iterdir()}


def test_a_blob_is_fetched_once(cache: BlobCache, upstream: FakeUpstream) -> None:
    assert [read(cache, ONE) for _ in range(3)] == [ONE] * 3
    assert read(cache, ONE, 299_990) == b"1" * 10
    assert upstream.asked == [digest(ONE)]


def test_many_who_ask_at_once_cost_one_fetch_and_are_served_as_it_comes(
    cache: BlobCache, upstream: FakeUpstream
) -> None:
    upstream.go_on.clear()
    with ThreadPoolExecutor(9) as pool:
        early = pool.submit(cache.find, digest(ONE)).result(20)
        assert upstream.middle.wait(20)
        begun = early.pieces(0, len(ONE))
        first = next(begun)  # while the second half is not there
        assert first == ONE[: len(first)]
        all_of_them = [pool.submit(read, cache, ONE) for _ in range(8)]
        upstream.go_on.set()
        assert {one.result(20) for one in all_of_them} == {ONE}
        assert first + b"".join(begun) == ONE
    assert upstream.asked == [digest(ONE)]


def test_what_was_asked_for_the_longest_ago_gives_way(
    cache: BlobCache, upstream: FakeUpstream, tmp_path: Path
) -> None:
    read(cache, ONE)
    read(cache, TWO)
    cache.find(digest(ONE))
    read(cache, THREE)
    assert kept(tmp_path) == {digest(ONE), digest(THREE)}
    read(cache, TWO)
    assert upstream.asked == [digest(one) for one in (ONE, TWO, THREE, TWO)]


def test_who_reads_a_blob_that_gives_way_reads_it_to_its_end(
    cache: BlobCache, tmp_path: Path
) -> None:
    read(cache, ONE)
    pieces = cache.find(digest(ONE)).pieces(0, len(ONE))
    begun = next(pieces)
    (tmp_path / "cache" / digest(ONE)).unlink()
    assert begun + b"".join(pieces) == ONE


def test_a_blob_that_does_not_fit_is_not_fetched(upstream: FakeUpstream, tmp_path: Path) -> None:
    small = BlobCache(tmp_path / "cache", len(ONE) - 1, upstream)
    with pytest.raises(StorageError, match="the cache may take 299999"):
        small.find(digest(ONE))
    assert upstream.asked == []


def test_an_upstream_that_fails_in_mid_file_cuts_and_leaves_nothing(
    cache: BlobCache, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.failure = FetchError("gone")
    with pytest.raises(FetchError, match=r"upstream failed|ends early|not here any more"):
        read(cache, ONE)
    upstream.failure = None
    assert read(cache, ONE) == ONE
    assert kept(tmp_path) == {digest(ONE)}


def test_an_unknown_blob_is_told_and_asked_for_again_later(
    cache: BlobCache, upstream: FakeUpstream
) -> None:
    with pytest.raises(NotThereError):
        cache.find("ab" * 32)
    upstream.blobs["ab" * 32] = b"now"
    blob = cache.find("ab" * 32)
    assert b"".join(blob.pieces(0, 3)) == b"now"


def test_parts_of_a_cache_that_was_killed_are_cleared(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    part_of(tmp_path / "cache" / digest(ONE)).write_bytes(b"half")
    assert read(BlobCache(tmp_path / "cache", 700_000, upstream), ONE) == ONE


def test_a_document_is_the_same_to_all_for_seconds_and_then_asked_for_anew() -> None:
    now, asked = [100.0], []

    def look(path: str) -> bytes:
        asked.append(path)
        return f"{path} {len(asked)}".encode()

    documents = Documents(look, lambda: now[0])
    assert [documents.get("a"), documents.get("a"), documents.get("b")] == [b"a 1", b"a 1", b"b 2"]
    now[0] += LIFE_S
    assert documents.get("a") == b"a 3"


def test_a_hundred_who_ask_for_one_document_cost_one_request() -> None:
    asked, go_on = [], threading.Event()

    def look(path: str) -> bytes:
        asked.append(path)
        assert go_on.wait(20)
        return b"news"

    documents = Documents(look)
    with ThreadPoolExecutor(100) as pool:
        found = [pool.submit(documents.get, "a") for _ in range(100)]
        go_on.set()
        assert {one.result(20) for one in found} == {b"news"}
    assert asked == ["a"]


def test_a_document_that_cannot_be_had_is_not_remembered() -> None:
    answers: Iterator[bytes | OtaError] = iter([FetchError("down"), b"up"])

    def look(_: str) -> bytes:
        found = next(answers)
        if isinstance(found, OtaError):
            raise found
        return found

    documents = Documents(look)
    with pytest.raises(FetchError):
        documents.get("a")
    assert documents.get("a") == b"up"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(path=st.text(max_size=60) | st.text(max_size=30).map("/tuf/metadata/".__add__))
def test_only_plain_paths_reach_the_server_behind(path: str, cache: BlobCache) -> None:
    asked: list[str] = []

    def look(found: str) -> bytes:
        asked.append(found)
        return b"x"

    try:
        answer(path, "", cache, Documents(look))
    except NotThereError:
        assert asked == []
        return
    assert ".." not in asked[0]
    assert asked[0].startswith(("tuf/metadata/", "tuf/targets/"))
    assert asked[0].isascii()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def kit(server: FakeServer, tmp_path: Path) -> Kit:
    return Kit(server.enrol(tmp_path / "device"))


@contextmanager
def serving(kit: Kit, server: FakeServer, tmp_path: Path) -> Iterator[str]:
    """Run a cache before the server; yield its URL."""
    context = Identity.load(kit.directory).ssl_context()
    behind = HttpUpstream(server.url, lambda: Connection(context, timeout_s=10))
    blobs = BlobCache(tmp_path / "cache", 10_000_000, behind)
    with CacheServer(("127.0.0.1", 0), blobs, Documents(behind.document)) as found:
        worker = threading.Thread(
            target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        worker.start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()
        worker.join()


def test_a_second_device_costs_the_uplink_no_blob(
    kit: Kit, server: FakeServer, tmp_path: Path
) -> None:
    one = offer(server, 1)
    other = Kit(server.enrol(tmp_path / "other"))
    with serving(kit, server, tmp_path) as url:
        for device in (kit, other):
            device.changes = {"sources": (url,)}
            device.look()
            assert device.running == one.digest
    assert set(kit.told()) == {(Outcome.COMMITTED.value, "")}
    per_blob = blobs_asked(server) / len(one.release.files)
    assert per_blob == 2  # its length, then its bytes; nothing for the second device


def test_a_cache_that_lies_is_refused_told_and_the_server_asked_instead(
    kit: Kit, server: FakeServer, tmp_path: Path
) -> None:
    one = offer(server, 1)
    entry = one.release.artifact
    with serving(kit, server, tmp_path) as url:
        lie = bytearray(one.blobs[entry.digest])
        lie[0] ^= 1
        (tmp_path / "cache" / entry.digest).write_bytes(lie)
        kit.changes = {"sources": (url,)}
        kit.look()
    assert kit.running == one.digest
    refused = [reason for outcome, reason in kit.told() if outcome == Outcome.REFUSED.value]
    assert len(refused) == 1
    assert refused[0].startswith(f"{url} served {entry.name}: wrong digest")


def test_a_server_behind_that_lies_leaves_nothing_in_the_cache(
    kit: Kit, server: FakeServer, tmp_path: Path
) -> None:
    one = offer(server, 1)
    server.faults.flipped.add(one.release.artifact.digest)
    with serving(kit, server, tmp_path) as url, httpx.Client(trust_env=False) as client:
        with pytest.raises(httpx.RemoteProtocolError):  # cut, so that nobody has it whole
            client.get(f"{url}/blobs/{one.release.artifact.digest}")
        assert one.release.artifact.digest not in kept(tmp_path)


def test_ranges_heads_and_strange_paths_over_http(
    kit: Kit, server: FakeServer, tmp_path: Path
) -> None:
    one = offer(server, 1)
    entry = one.release.artifact
    data, path = one.blobs[entry.digest], f"/blobs/{entry.digest}"
    with serving(kit, server, tmp_path) as url, httpx.Client(base_url=url) as client:
        whole = client.get(path)
        assert (whole.status_code, whole.content) == (200, data)
        rest = client.get(path, headers={"Range": "bytes=5-"})
        assert (rest.status_code, rest.content) == (206, data[5:])
        assert rest.headers["Content-Range"] == f"bytes 5-{len(data) - 1}/{len(data)}"
        middle = client.get(path, headers={"Range": "bytes=5-9"})
        assert (middle.status_code, middle.content) == (206, data[5:10])
        behind = client.get(path, headers={"Range": f"bytes={len(data)}-"})
        assert (behind.status_code, behind.content) == (416, b"")
        several = client.get(path, headers={"Range": "bytes=0-1,3-4"})
        assert (several.status_code, several.content) == (200, data)
        head = client.head(path)
        assert (head.headers["Content-Length"], head.content) == (str(len(data)), b"")
        for strange in ("/", "/blobs/../x", "/v1/ca", "/tuf/metadata/../../v1/ca", "/blobs/AB"):
            assert client.get(strange).status_code == 404
        assert client.get(f"/blobs/{'ab' * 32}").status_code == 404
        assert client.post(path).status_code == 501
        timestamp = client.get("/tuf/metadata/timestamp.json")
        assert timestamp.content.startswith(b'{"signatures"')
        server.faults.down = True
        assert client.get("/tuf/metadata/2.root.json").status_code == 502
        assert client.get(path).content == data


class Large:
    """Has more at each path than a cache may read."""

    def read(self, _: str) -> bytes:
        return bytes(MAX_DOCUMENT + 1)


def test_an_endless_document_is_not_read_to_its_end() -> None:
    with FaultServer(Large(), unframed=True) as upstream:
        behind = HttpUpstream(upstream.url, lambda: Connection(None, timeout_s=10))
        with pytest.raises(RefusedError, match=str(MAX_DOCUMENT)):
            behind.document("tuf/metadata/timestamp.json")
        with pytest.raises(FetchError, match="no bytes"):
            behind.length("ab" * 32)


def test_it_runs_until_told_to_end_and_tells_what_it_cannot_use(tmp_path: Path) -> None:
    told: list[str] = []
    place, upstream = ("127.0.0.1", 0), "http://127.0.0.1:9"
    run_cache(
        tmp_path / "c", place, upstream, max_bytes=10**6, ca=None, until=lambda: told.append("end")
    )
    assert told == ["end"]
    with pytest.raises(AgentError, match="no cache in"):
        run_cache(
            tmp_path / "c",
            place,
            upstream,
            max_bytes=10**6,
            ca=tmp_path / "missing.pem",
            until=lambda: told.append("never"),
        )
    assert told == ["end"]


def test_the_command_serves_a_device_and_ends_when_told(
    kit: Kit, server: FakeServer, tmp_path: Path
) -> None:
    one = offer(server, 1)
    words = ["cache", "serve", "--dir", tmp_path / "cache", "--listen", "127.0.0.1:0"]
    words += ["--upstream", server.url, "--ca", kit.directory / "identity" / "ca.pem"]
    with subprocess.Popen(
        [sys.executable, "-m", "wildflower.cli", "-v", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "cache serves" in line)
            kit.changes = {"sources": (f"http://127.0.0.1:{line.split('port=')[1].strip()}",)}
            kit.look()
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert kit.running == one.digest
    assert kept(tmp_path) == {entry.digest for entry in one.release.files}


@pytest.mark.parametrize(
    "words",
    [("--listen", "nowhere", "--upstream", "http://a"), ("--upstream", "ftp://a")],
)
def test_what_is_no_address_is_refused(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["cache", "serve", "--dir", str(tmp_path), *words])
    assert end.value.code == 1
    assert "is no" in capsys.readouterr().err


def test_what_was_begun_anew_is_not_gone_on_with() -> None:
    filling = Filling()
    filling.starts(100)
    filling.came(60)
    filling.wait_for_more(0)
    filling.came(10)  # another file than the first 60 bytes were of, perhaps
    with pytest.raises(FetchError, match="begun anew"):
        filling.wait_for_more(0)


def test_a_disk_that_cannot_be_written_is_told(
    cache: BlobCache, upstream: FakeUpstream, tmp_path: Path
) -> None:
    (tmp_path / "cache").rmdir()
    with pytest.raises(StorageError, match="No such file"):
        cache.find(digest(ONE))


def test_a_client_too_many_is_hung_up_on_and_may_come_again(
    kit: Kit, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_server, "CONNECTIONS", 1)
    path = "/tuf/metadata/timestamp.json"
    with serving(kit, server, tmp_path) as url:
        with httpx.Client(base_url=url) as first, httpx.Client(base_url=url) as second:
            assert first.get(path).status_code == 200  # and keeps its connection
            with pytest.raises(httpx.TransportError):
                second.get(path)
        with httpx.Client(base_url=url) as third:
            until(lambda: is_answered(third, path))


def is_answered(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False
