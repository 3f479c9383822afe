"""Helpers in this process: the code of `wildflower helper run` without its network and disk."""

from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.helper import Helper, MemoryClaims
from wildflower.strategies.secagg.one_shot_keys import make_card
from wildflower.strategies.secagg.one_shot_messages import SMALLEST, HelperCard, SumRequest


class SimulatedHelper:
    """A helper that lives as long as the simulation; see `strategies.one_shot_round.HelperLink`.

    Attributes:
        helper: What answers.
    """

    def __init__(self, ca: x509.Certificate, entropy: bytes, *, min_cohort: int = SMALLEST) -> None:
        """Make a helper with keys of its own.

        Args:
            ca: The enrolment CA whose devices it believes.
            entropy: 32 or more bytes that its sealing key comes from.
            min_cohort: Fewest devices whose masks it adds up.
        """
        identity = ec.generate_private_key(ec.SECP256R1())
        private = keys.derive(entropy, b"", b"simulated-helper")
        card = make_card(
            identity.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            keys.public_key(private),
            min_cohort,
            lambda data: identity.sign(data, ec.ECDSA(hashes.SHA256())),
        )
        self.helper = Helper(card, private, ca, MemoryClaims())

    @property
    def card(self) -> HelperCard:
        """Its card."""
        return self.helper.card

    def check(self, request: SumRequest) -> None:
        """Look at devices' seeds; see `Helper.check`."""
        self.helper.check(request, now=datetime.now(UTC))

    def sum(self, request: SumRequest) -> Residues:
        """Return the sum of their masks; see `Helper.sum`."""
        return self.helper.sum(request, now=datetime.now(UTC))
