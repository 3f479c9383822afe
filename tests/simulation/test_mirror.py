import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from tests.certificates import self_signed

from wildflower.simulation.local.mirror import HostileMirror, Lie, tell

METADATA = json.dumps({"signatures": [{"keyid": "k", "sig": "00ff"}], "signed": {"a": 1}}).encode()


def test_a_flipped_byte_changes_one_bit_of_blobs_alone() -> None:
    body = bytes(range(100))
    changed = tell(Lie.FLIPPED_BYTE, "/blobs/abc", body)
    assert len(changed) == len(body)
    assert sum(a != b for a, b in zip(body, changed, strict=True)) == 1
    assert tell(Lie.FLIPPED_BYTE, "/tuf/metadata/timestamp.json", METADATA) == METADATA


def test_a_wrong_signature_leaves_what_is_signed_as_it_was() -> None:
    changed = json.loads(tell(Lie.WRONG_SIGNATURE, "/tuf/metadata/timestamp.json", METADATA))
    assert changed["signed"] == {"a": 1}
    assert changed["signatures"][0]["sig"] != "00ff"
    assert tell(Lie.WRONG_SIGNATURE, "/blobs/abc", b"body") == b"body"


@pytest.mark.parametrize("body", [b"", b"not json", b"{}", b'{"signatures": []}'])
def test_what_is_no_metadata_passes_unchanged(body: bytes) -> None:
    assert tell(Lie.WRONG_SIGNATURE, "/tuf/metadata/timestamp.json", body) == body


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A TLS server that has one blob."""

    class Request(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/blobs/abc"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(b"the model" if found else b"")

        def log_message(self, *_: object) -> None: ...

    certificate, key = self_signed(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}", certificate
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_mirror_serves_the_origin_with_its_lie(origin: tuple[str, Path]) -> None:
    url, certificate = origin
    with HostileMirror(Lie.FLIPPED_BYTE, url, str(certificate)) as mirror:
        lied = httpx.get(f"{mirror.url}/blobs/abc")
        missing = httpx.get(f"{mirror.url}/blobs/other")
    assert lied.status_code == 200
    assert lied.content != b"the model"
    assert missing.status_code == 404
    assert mirror.told == ["/blobs/abc"]


def test_a_mirror_without_its_origin_answers_with_a_gateway_error(tmp_path: Path) -> None:
    certificate, _ = self_signed(tmp_path)
    with HostileMirror(Lie.FLIPPED_BYTE, "https://127.0.0.1:9", str(certificate)) as mirror:
        assert httpx.get(f"{mirror.url}/blobs/abc").status_code == 502
