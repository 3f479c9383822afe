"""What the server sees looks random, does not depend on who sent what, and holds no secret."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from tests.secagg_cases import BITS
from tests.secagg_fakes import Play, entropy_of, make_params, make_update

from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.secagg.client_state import State
from wildflower.strategies.secagg.messages import Masked, Reveal

CHANCE = 1e-9  # a correct build fails one test in a billion
WINDOW = 8  # bytes that do not repeat by chance


def vector_of(message: Masked, bits: int) -> Residues:
    found: Residues = np.frombuffer(message.residues, f"<u{bits // 8}")
    return found


# Extremes.


def p_values(column: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Return how likely a column of bytes is, if they are drawn uniformly and independently."""
    counts = np.bincount(column, minlength=256)
    ones = int(np.unpackbits(column).sum())
    centred = column.astype(np.float64) - 127.5
    serial = float(np.corrcoef(centred[:-1], centred[1:])[0, 1])
    spread = (column + np.random.default_rng(0).random(column.size)) / 256
    return {
        "chi2": stats.chisquare(counts).pvalue,
        "KS": stats.kstest(spread, "uniform").pvalue,
        "monobit": stats.binomtest(ones, 8 * column.size).pvalue,
        "serial correlation": 2 * stats.norm.sf(abs(serial) * np.sqrt(column.size - 1)),
    }


def masked_extremes(bits: int) -> dict[str, Residues]:
    """Return what three clients send whose updates are all zeros, all ones, and the middle."""
    largest = 2**bits - 1
    extremes = {"zeros": 0, "ones": largest, "middle": largest // 2}
    play = Play(make_params(3, size=50_000, bits=bits))
    encoding = play.params.encoding
    for device, value in zip(play.devices, extremes.values(), strict=True):
        play.updates[device] = np.full(encoding.length, value, encoding.dtype)
    play.mask(play.share(play.advertise()))
    sent = [message for message in play.sent if isinstance(message, Masked)]
    return dict(zip(extremes, (vector_of(each, bits) for each in sent), strict=True))


EXTREMES = ("zeros", "ones", "middle")


@pytest.mark.parametrize("bits", BITS)
def test_masked_extremes_look_uniform_at_every_byte_position(bits: int) -> None:
    for name, vector in masked_extremes(bits).items():
        columns = vector.view(np.uint8).reshape(-1, bits // 8).T
        for place, column in enumerate(columns):
            found = p_values(np.ascontiguousarray(column))
            assert min(found.values()) > CHANCE, (name, place, found)


@pytest.mark.parametrize("bits", BITS)
def test_masked_extremes_have_nothing_to_do_with_each_other(bits: int) -> None:
    vectors = masked_extremes(bits)
    for left, right in itertools.combinations(vectors.values(), 2):
        correlation = np.corrcoef(left.astype(float), right.astype(float))[0, 1]
        assert 2 * stats.norm.sf(abs(correlation) * np.sqrt(left.size)) > CHANCE


def test_the_tests_of_uniformity_notice_what_is_not_uniform() -> None:
    rng = np.random.default_rng(1)
    steady = rng.integers(0, 256, 50_000).astype(np.uint8)
    assert min(p_values(steady).values()) > CHANCE
    missing = np.where(steady == 255, 0, steady).astype(np.uint8)  # as Flower's masks: no top value
    assert p_values(missing)["chi2"] < CHANCE
    ascii_only = (steady & 0x7F).astype(np.uint8)
    assert max(p_values(ascii_only)[name] for name in ("chi2", "KS", "monobit")) < CHANCE
    smooth = ((steady.astype(int) + np.roll(steady, 1)) // 2).astype(np.uint8)
    assert p_values(smooth)["serial correlation"] < CHANCE


# Telling two worlds apart: the same sum, made of the same updates, sent by other clients.

SESSIONS = 1000
SIZE = 8


def worlds(bits: int) -> tuple[Residues, Residues]:
    """Return two updates as unlike as can be; in the other world, their senders are exchanged."""
    encoding = make_params(3, size=SIZE, bits=bits).encoding
    high = np.full(encoding.length, 2 ** (bits - 1) // 3, encoding.dtype)
    return high, np.zeros(encoding.length, encoding.dtype)


def transcript(number: int, bits: int) -> tuple[int, npt.NDArray[np.float64]]:
    """Return which world a session was of, and the bytes of what two clients sent to the server."""
    world = int(entropy_of("world", number)[0] & 1)
    play = Play(make_params(3, size=SIZE, bits=bits, session=entropy_of("session", number)))
    pair = worlds(bits)
    first, second, _ = play.devices
    play.updates[first], play.updates[second] = pair if world else pair[::-1]
    play.run()
    seen = [message for message in play.sent if isinstance(message, Masked | Reveal)]
    row = b"".join(
        message.residues
        if isinstance(message, Masked)
        else b"".join(message.seeds[device] for device in sorted(message.seeds))
        for message in seen
    )
    return world, np.frombuffer(row, np.uint8).astype(np.float64)


def right_guesses(labels: npt.NDArray[np.int_], rows: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Return how many sessions of the second half a line fitted to the first half tells apart."""
    half = len(labels) // 2
    centred = (rows - 127.5) / 128
    design = np.hstack([centred, np.cos(np.pi * centred), np.ones((len(labels), 1))])
    train, test = design[:half], design[half:]
    penalty = len(train) * 0.1 * np.eye(design.shape[1])
    line = np.linalg.solve(train.T @ train + penalty, train.T @ (2.0 * labels[:half] - 1))
    guesses = (test @ line > 0).astype(int)
    return int((guesses == labels[half:]).sum()), len(test)


@pytest.mark.slow
@pytest.mark.timeout(900)  # seconds; six on an idle machine
@pytest.mark.parametrize("bits", BITS)
def test_a_thousand_transcripts_do_not_tell_who_sent_which_update(bits: int) -> None:
    found = [transcript(number, bits) for number in range(SESSIONS)]
    labels = np.array([world for world, _ in found])
    rows = np.array([row for _, row in found])
    right, asked = right_guesses(labels, rows)
    assert stats.binomtest(right, asked).pvalue > CHANCE
    for column in rows.T:
        if np.ptp(column):  # of a share the first byte is 0 or 1: its prime has 257 bits
            gap = stats.ks_2samp(column[labels == 0], column[labels == 1])
            assert gap.pvalue > CHANCE


@pytest.mark.parametrize("bits", BITS)
def test_without_masks_the_same_guesser_is_always_right(bits: int) -> None:
    pair = worlds(bits)
    labels = np.array([entropy_of("world", number)[0] & 1 for number in range(200)])
    noise = np.random.default_rng(0).integers(0, 256, (200, 3 * SIZE))
    sent = [np.concatenate(pair if world else pair[::-1]) for world in labels]
    rows = np.hstack([noise, np.array([each.view(np.uint8) for each in sent])])
    right, asked = right_guesses(labels, rows.astype(np.float64))
    assert right == asked


# Bytes.


def windows(data: bytes) -> set[bytes]:
    return {data[start : start + WINDOW] for start in range(len(data) - WINDOW + 1)}


def carried(message: Any) -> bytes:
    """Return everything that a message carries, its texts and numbers as well."""
    values = message.to_fields().values()
    items = [item for each in values for item in (each if isinstance(each, list) else [each])]
    return b"|".join(item if isinstance(item, bytes) else repr(item).encode() for item in items)


def played(bits: int) -> tuple[Play, dict[str, bytes]]:
    """Return a session of five that lost one client before the upload, and all secrets of it."""
    play = Play(make_params(5, size=40, bits=bits))
    secrets: dict[str, bytes] = {}
    lost = max(play.devices)
    play.gone = {3: [lost]}
    rosters = play.advertise()
    for number, device in enumerate(play.devices):
        update = make_update(number, 40)
        secrets[f"vector of {number}"] = update.vector.tobytes()
        secrets[f"residues of {number}"] = play.updates[device].tobytes()
        secrets[f"weight of {number}"] = np.float64(update.weight).tobytes()
        secrets[f"loss of {number}"] = np.float64(update.statistics["loss"]).tobytes()
        for name, key in zip(
            ("sealing", "masking", "seed"), play.states[device].secrets, strict=True
        ):
            secrets[f"{name} of {number}"] = key
    deliveries = play.share(rosters)
    play.unmask(play.mask(deliveries))
    return play, secrets


@pytest.mark.parametrize("bits", BITS)
def test_no_message_to_the_server_holds_a_part_of_a_secret(bits: int) -> None:
    play, secrets = played(bits)
    assert len(play.sent) == 5 + 5 + 4 + 4
    seen = set().union(*(windows(carried(message)) for message in play.sent))
    assert len(seen) > 5_000
    leaks = {name for name, secret in secrets.items() if windows(secret) & seen}
    assert leaks == set()


@pytest.mark.parametrize("bits", BITS)
def test_the_search_finds_what_a_client_does_send(bits: int) -> None:
    play, _ = played(bits)
    seen = set().union(*(windows(carried(message)) for message in play.sent))
    state = next(iter(play.states.values()))
    assert windows(state.advertisement.masking_key) <= seen


def test_before_the_last_trip_no_share_is_seen_in_the_open() -> None:
    play = Play(make_params(5))
    rosters = play.advertise()
    play.mask(play.share(rosters))
    seen = set().union(*(windows(carried(message)) for message in play.sent))
    for state in play.states.values():
        assert len(state.held) == 5
        for shares in state.held.values():
            assert not windows(shares) & seen


@pytest.mark.parametrize("bits", BITS)
def test_of_each_client_the_server_learns_shares_of_one_secret_only(bits: int) -> None:
    play, _ = played(bits)
    lost = max(play.devices)
    reveals = [message for message in play.sent if isinstance(message, Reveal)]
    assert all(set(reveal.keys) == {lost} for reveal in reveals)
    assert all(lost not in reveal.seeds for reveal in reveals)


# Texts.


def phases() -> Iterator[tuple[str, State, Any]]:
    """Yield a client's state after each of its answers, and the answer."""
    play = Play(make_params(3, size=20))
    device = min(play.devices)
    rosters = play.advertise()
    yield "advertised", play.states[device], play.sent[0]
    deliveries = play.share(rosters)
    yield "shared", play.states[device], play.sent[3]
    requests = play.mask(deliveries)
    yield "masked", play.states[device], play.sent[6]
    play.unmask(requests)
    yield "revealed", play.states[device], play.sent[9]


def hidden(state: State, message: Any) -> Iterator[bytes]:
    """Yield what must not be read in a log."""
    yield from state.secrets
    yield from state.held.values()
    if isinstance(message, Reveal):
        yield from message.seeds.values()
    if isinstance(message, Masked):
        yield message.residues


def test_no_text_of_a_state_or_a_message_shows_a_secret() -> None:
    shown = 0
    for _, state, message in phases():
        texts = repr(state) + str(state) + repr(message) + f"{message}"
        for secret in hidden(state, message):
            shown += 1
            assert secret.hex()[:16] not in texts
            assert repr(secret)[2:34] not in texts
            assert str(int.from_bytes(secret))[:16] not in texts
    assert shown > 10


def is_stored(secret: bytes, stored: bytes) -> bool:
    """Look for the digits of a secret in a state, and in the messages inside of it."""
    digits = secret.hex().encode()
    return digits in stored or digits.hex().encode() in stored


def test_a_stored_state_of_a_finished_session_holds_no_secret_of_it() -> None:
    states = {name: state for name, state, _ in phases()}
    secrets = [*states["advertised"].secrets, *states["masked"].held.values()]
    assert len(secrets) == 6
    stored = states["revealed"].to_bytes()
    assert not any(is_stored(secret, stored) for secret in secrets[:3])
    # what it gave up itself is kept until the session is over, to be given again
    assert is_stored(secrets[3][:33], stored)
    assert states["revealed"].held == {}
