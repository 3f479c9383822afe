"""The device's half of a one-shot session: one trip, in which it sends all it will ever send.

    residues + mask(seed 1) + ... + mask(seed m)    to the server
    seed j, sealed to helper j                      through the server, which cannot open it

The server adds up what devices send; each helper adds up the masks of those devices and tells
their sum and nothing else. Whoever lacks the seeds of one helper learns nothing of one device's
update, so the server and all but one of the helpers may collude. What a device guards:

* the helpers are those of its owner's list, all of them and no others: the file `policy.toml` in
  the device's directory, key `helpers`. A server that could leave one out would choose the one it
  is in league with;
* the session is no smaller than the policy's `min_cohort`, which is signed and sealed in, because
  only helpers see how many devices are in the sum;
* there is one answer to a session; it is stored before it is sent, and sent again when asked again.

The masks are fresh for each answer and are forgotten at once: what is stored holds no secret. So
even a device that has forgotten a session and answers it anew gives nothing away: a helper tells
one sum of one session, ever.

Source: the one-shot seeds of xaynet's PET protocol (sealed to "sum participants"); we deviate in
that the number of helpers is fixed and each holds a mask of its own, instead of a share of one.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final, Self

from wildflower.strategies.errors import ProtocolError, SecAggError, StoredStateError
from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg import keys, one_shot_keys
from wildflower.strategies.secagg.masking import add_masks
from wildflower.strategies.secagg.messages import Masked
from wildflower.strategies.secagg.one_shot_messages import (
    MAX_PARAMS,
    SMALLEST,
    OneShotAnswer,
    OneShotParams,
    SealedSeeds,
)

MAX_ANSWER: Final = 8192  # bytes of a stored answer without its residues


@dataclass(frozen=True, slots=True)
class Made:
    """The answer to a session, as a device keeps it; it holds no secret.

    Made.from_bytes(made.to_bytes()) == made

    Attributes:
        params: What it answers.
        answer: What it sent, or was about to send.
    """

    params: OneShotParams
    answer: OneShotAnswer

    def to_bytes(self) -> bytes:
        """Return the stored form: one line of JSON, then the masked residues as they are."""
        fields = self.answer.to_fields()
        residues: bytes = fields.pop("residues")
        line = flat.to_bytes(
            {
                **flat.header("one-shot-made", self.params.session),
                "params": flat.to_bytes(self.params.to_fields()),
                "answer": flat.to_bytes(fields),
            }
        )
        return line + b"\n" + residues

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the answer that `to_bytes` stored.

        Raises:
            StoredStateError: Not a stored answer.
        """
        line, _, residues = data.partition(b"\n")
        try:
            reader = flat.Reader("one-shot-made", flat.from_bytes(line), ("params", "answer"))
            params = flat.from_bytes(reader.octets("params", MAX_PARAMS))
            answer = flat.from_bytes(reader.octets("answer", MAX_ANSWER))
            return cls(
                OneShotParams.from_fields(params),
                OneShotAnswer.from_fields({**answer, "residues": residues}),
            )
        except SecAggError as error:
            raise StoredStateError(f"not the stored answer to a session: {error}") from error


def check_params(params: OneShotParams, *, helpers: Collection[str], smallest: int) -> None:
    """Refuse a session that the device's owner would not have it join; do it before training.

    Args:
        params: What the server proposes.
        helpers: Digests of the helpers that the owner trusts, hex.
        smallest: Fewest devices in a sum that the policy lets it join.

    Raises:
        ProtocolError: Too small a session, other helpers, or a card that is not its helper's.
    """
    if not helpers:
        raise ProtocolError(
            "this device trusts no helper",
            hint="Name the helpers' digests in the device's policy.toml, key helpers.",
        )
    proposed = {card.digest for card in params.helpers}
    if proposed != set(helpers):
        raise ProtocolError(
            f"the session's helpers are {_short(proposed)}, this device's are {_short(helpers)}",
            hint="Both must be the same: see helpers in the device's policy.toml.",
        )
    if params.encoding.clients < smallest:
        raise ProtocolError(
            f"a session of {params.encoding.clients} clients, this device joins {smallest} or more",
            hint="Lower min_cohort in the device's policy, or ask for a larger cohort.",
        )
    for card in params.helpers:
        one_shot_keys.check_card(card)


def make_answer(
    params: OneShotParams,
    identity: keys.Identity,
    residues: Residues,
    *,
    smallest: int,
    entropy: bytes,
) -> Made:
    """Mask an encoded update; a session is answered once, so store this before it is sent.

    Args:
        params: The session's, checked.
        identity: The device's identity.
        residues: The encoded update, shape (params.encoding.length,); it is masked in place, so
            that nothing unmasked is left behind and no second vector needs memory.
        smallest: Fewest devices in a sum that the policy lets it join.
        entropy: 32 or more secret random bytes, for this call only.
    """
    encoding, session = params.encoding, params.session
    if residues.shape != (encoding.length,) or residues.dtype != encoding.dtype:
        raise ValueError(
            f"{encoding.length} residues of {encoding.dtype}, found {residues.dtype} of shape"
            f" {residues.shape}"
        )
    if len(entropy) < 32:
        raise ValueError(f"entropy has {len(entropy)} bytes, at least 32 are needed")
    private = keys.derive(entropy, session, b"one-shot/ephemeral")
    seeds = [
        keys.derive(entropy, session, b"one-shot/seed/" + card.digest.encode())
        for card in params.helpers
    ]
    unsealed = SealedSeeds(
        identity.device_id,
        max(SMALLEST, smallest, params.encoding.min_cohort),
        keys.public_key(private),
        (),
        identity.certificate_der,
        b"",
    )
    sealed = tuple(
        one_shot_keys.seal_seed(params, unsealed, card, seed, private=private)
        for card, seed in zip(params.helpers, seeds, strict=True)
    )
    unsigned = replace(unsealed, sealed=sealed)
    signature = identity.sign(one_shot_keys.signed_bytes(params, unsigned))
    add_masks(residues, [one_shot_keys.mask_key(seed, session) for seed in seeds], [])
    answer = OneShotAnswer(replace(unsigned, signature=signature), Masked.of(session, residues))
    return Made(params, answer)


def repeat_answer(made: Made, params: OneShotParams) -> OneShotAnswer:
    """Return the stored answer to a server that asks again.

    Raises:
        ProtocolError: The parameters changed.
    """
    if params.digest != made.params.digest:
        raise ProtocolError(
            "the parameters of the session changed since it was answered",
            hint="Two answers could be subtracted from each other: begin a new session.",
        )
    return made.answer


def _short(digests: Collection[str]) -> str:
    return ", ".join(digest[:12] for digest in sorted(digests))
