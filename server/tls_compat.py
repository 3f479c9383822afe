"""What uvicorn does not do: tell the application who the peer of a TLS connection is.

The ASGI TLS extension (asgiref, "TLS Extension") names the place: `scope["extensions"]["tls"]`.
uvicorn does not implement it, so this protocol class, given to it as `http=`, adds the one entry
that we read. It reaches into `HttpToolsProtocol`, which promises nothing: this is the only module
that does, and its contract test fails loudly when uvicorn moves.

OpenSSL has verified the chain, the dates and the purpose (clientAuth) before a request is read:
a certificate that is here is one of our CA's. Whether its device is revoked is ours to ask.
"""

import ssl
from collections.abc import Mapping
from typing import Any, Final

from cryptography import x509
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

EXTENSION: Final = "tls"
ENTRY: Final = "client_cert_chain"


class PeerCertificateProtocol(HttpToolsProtocol):
    """HTTP/1.1 that adds the client's certificate, PEM, to each request's scope."""

    def on_message_begin(self) -> None:
        """Start a request's scope as uvicorn does, and add the peer."""
        super().on_message_begin()
        connection = self.transport.get_extra_info("ssl_object")
        der = connection.getpeercert(binary_form=True) if connection is not None else None
        chain = [] if der is None else [ssl.DER_cert_to_PEM_cert(der)]
        extensions: dict[str, Any] = dict(self.scope.get("extensions") or {})
        self.scope["extensions"] = {**extensions, EXTENSION: {ENTRY: chain}}


def peer_certificate(scope: Mapping[str, Any]) -> x509.Certificate | None:
    """Return the certificate the client of a request has shown, or None."""
    chain = scope.get("extensions", {}).get(EXTENSION, {}).get(ENTRY, [])
    return x509.load_pem_x509_certificate(chain[0].encode()) if chain else None
