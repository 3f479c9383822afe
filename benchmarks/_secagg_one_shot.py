"""What a device pays for a one-shot session: from a finished update to the stored answer."""

from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding as Form
from cryptography.hazmat.primitives.serialization import PublicFormat

from benchmarks._secagg_ours import Clock, entropy_of, updates_of
from wildflower.simulation.identities import SimulatedCa
from wildflower.strategies.fixed_point import Encoding
from wildflower.strategies.secagg import keys, one_shot, one_shot_keys
from wildflower.strategies.secagg.one_shot_messages import HelperCard, OneShotParams

CLIENTS: Final = 100
TURNS: Final = 7


def one_shot_client_ms(size: int) -> float:
    """Return a device's CPU time with one helper, in milliseconds: the least of several turns."""
    encoding = Encoding.for_cohort(
        size=size, clip=1.0, max_weight=100.0, clients=CLIENTS, statistics=("loss",)
    )
    card = _card()
    params = OneShotParams(entropy_of("one-shot"), "benchmark", 1, encoding, (card,))
    device = SimulatedCa().enrol()
    update = updates_of(size)[0]
    found = []
    for turn in range(TURNS):
        clock = Clock()
        with clock:
            one_shot.check_params(params, helpers={card.digest}, smallest=3)
            residues = encoding.encode(update, entropy_of("rounding", turn))
            made = one_shot.make_answer(
                params, device, residues, smallest=3, entropy=entropy_of("answer", turn)
            )
            made.to_bytes()
            made.answer.to_fields()
        found.append(1000 * clock.seconds)
    return min(found)


def _card() -> HelperCard:
    key = ec.generate_private_key(ec.SECP256R1())
    identity = key.public_key().public_bytes(Form.DER, PublicFormat.SubjectPublicKeyInfo)
    sealing_key = keys.public_key(entropy_of("helper"))
    return one_shot_keys.make_card(
        identity, sealing_key, 3, lambda data: key.sign(data, ec.ECDSA(hashes.SHA256()))
    )
