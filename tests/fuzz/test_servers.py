"""Raw bytes at the cache's socket, and files that other programs leave where the agent reads."""

import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from wildflower.client.blob_cache import BlobCache
from wildflower.client.cache_server import CacheServer, Documents
from wildflower.client.hold import FOLDER, LONGEST_S, Holds
from wildflower.ota.release.trust import NotThereError


class Empty:
    """A server behind that has nothing."""

    def length(self, digest: str) -> int:
        raise NotThereError(digest)

    def fetch(self, digest: str, *_: object) -> None:
        raise NotThereError(digest)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run a cache; yield its port."""

    def read(path: str) -> bytes:
        if path != "tuf/metadata/timestamp.json":
            raise NotThereError(path)
        return b"{}"

    blobs = BlobCache(tmp_path_factory.mktemp("cache"), 1_000_000, Empty())
    with CacheServer(("127.0.0.1", 0), blobs, Documents(read)) as server:
        worker = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        worker.start()
        yield server.server_address[1]
        server.shutdown()
        worker.join()


def said(port: int, data: bytes) -> bytes:
    """Send bytes and return what comes until the other side has had enough."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        try:
            return raw.makefile("rb").read()
        except ConnectionResetError:  # it hung up before it had read everything
            return b""


LINES = st.sampled_from([b"GET ", b"HEAD ", b"POST ", b"PUT ", b"OPTIONS ", b"", b"\0"])
PATHS = st.sampled_from(
    [b"/tuf/metadata/timestamp.json", b"/blobs/" + b"a" * 64, b"/", b"//", b"/../", b"*", b"\xff"]
)
HEADERS = st.sampled_from(
    [
        b"Range: bytes=0-", b"Range: bytes=9-1", b"Range: bytes=" + b"9" * 400 + b"-",
        b"Range: lines=1", b"Content-Length: -1", b"Content-Length: 1" + b"0" * 400,
        b"Transfer-Encoding: chunked", b"Connection: keep-alive", b"Host: \xff", b": ",
        b"X: " * 100,
    ]
)  # fmt: skip


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.binary(max_size=300)
    | st.builds(
        lambda line, path, noise, headers: b"".join(
            [line, path, noise, b" HTTP/1.1\r\n", *[one + b"\r\n" for one in headers], b"\r\n"]
        ),
        LINES,
        PATHS,
        st.binary(max_size=8),
        st.lists(HEADERS, max_size=4),
    )
)
@example(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n")
@example(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2_000 + b"\r\n")
def test_whatever_comes_to_the_cache_the_next_device_is_served(cache: int, data: bytes) -> None:
    assert b"Traceback" not in said(cache, data)
    with httpx.Client(trust_env=False, timeout=10) as client:
        answer = client.get(f"http://127.0.0.1:{cache}/tuf/metadata/timestamp.json")
    assert (answer.status_code, answer.content) == (200, b"{}")


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(["a.hold", "b", ".hold", "x.json", "a.lock"]),
    data=st.binary(max_size=200)
    | st.sampled_from(
        [b"[" * 4000, b'{"until_s": 1e999}', b'{"until_s": "x"}', b"\xff", b"9" * 4000]
    ),
)
def test_whatever_lies_among_the_holds_nobody_holds_for_ever(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: bytes
) -> None:
    root = tmp_path_factory.mktemp("device")
    (root / FOLDER).mkdir()
    (root / FOLDER / name).write_bytes(data)
    assert all(0 <= one.left_s <= LONGEST_S for one in Holds(root).standing())
