"""Join tokens: leave to enrol, and the two digests that let a device trust its first contact.

    wf1.<base64url of {"url", "secret", "ca", "root"}>

`ca` is the SHA-256 of the enrolment CA's DER, `root` of the first TUF root's bytes: a device
checks both before it sends the secret anywhere. We store the secret's digest alone.
"""

import base64
import hashlib
import hmac
import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Self

from wildflower.server.errors import EnrolmentError
from wildflower.server.records import JoinToken

PREFIX: Final = "wf1."
MAX_TOKEN: Final = 2048  # characters; ours have about 300
SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43}")
HEX_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a join token says.

    Attributes:
        url: Where to enrol.
        secret: 32 random bytes in base64url, without padding.
        ca: SHA-256 of the enrolment CA's DER, hex.
        root: SHA-256 of the first TUF root's bytes, hex.
    """

    url: str
    secret: str = field(repr=False)
    ca: str
    root: str

    @classmethod
    def make(cls, url: str, ca: str, root: str, *, entropy: bytes) -> Self:
        """Return an invitation whose secret is 32 bytes of entropy."""
        if len(entropy) != 32:
            raise ValueError(f"an invitation takes 32 bytes of entropy, not {len(entropy)}")
        return cls(url, _encode(entropy), ca, root)

    def to_text(self) -> str:
        """Return the token as people pass it on."""
        body = {"ca": self.ca, "root": self.root, "secret": self.secret, "url": self.url}
        return PREFIX + _encode(json.dumps(body, separators=(",", ":")).encode())


def mint(invitation: Invitation, *, ring: str, uses: int, expires_at: datetime) -> JoinToken:
    """Return the record that the store keeps of an invitation.

    Args:
        invitation: As `Invitation.make` made it.
        ring: The ring its devices join.
        uses: How many devices may enrol with it.
        expires_at: Until when.
    """
    return JoinToken(
        token_id_of(invitation.secret), digest_of(invitation.secret), expires_at, uses, ring
    )


def parse(text: str) -> Invitation:
    """Return what a join token says.

    Raises:
        EnrolmentError: Not a join token.
    """
    body = text.strip()
    if not body.startswith(PREFIX) or len(body) > MAX_TOKEN:
        raise EnrolmentError("not a join token", hint=f"It starts with {PREFIX}")
    try:
        found = json.loads(_decode(body.removeprefix(PREFIX)))
        invitation = Invitation(found["url"], found["secret"], found["ca"], found["root"])
        whole = (
            invitation.url.startswith("https://")
            and SECRET.fullmatch(invitation.secret)
            and HEX_DIGEST.fullmatch(invitation.ca)
            and HEX_DIGEST.fullmatch(invitation.root)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EnrolmentError("the join token is damaged", hint="Copy it whole.") from error
    if not whole:
        raise EnrolmentError("the join token is damaged", hint="Copy it whole.")
    return invitation


def token_id_of(secret: str) -> str:
    """Return the id under which a secret's token is stored; it gives the secret away to nobody."""
    return digest_of(secret)[:16]


def digest_of(secret: str) -> str:
    """Return the secret's SHA-256, hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def opens(secret: str, token: JoinToken) -> bool:
    """Whether this is the token's secret; takes the same time for every wrong one."""
    return hmac.compare_digest(digest_of(secret), token.secret_digest)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
