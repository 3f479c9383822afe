"""Homomorphic rounds over a grid: exact sums, losses, refusals, a key holder that is gone."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from tests.he_fakes import OTHER_IDENTITY, HeFleet, make_holder
from tests.round_fakes import LAYOUT, FlowerApp, request

from wildflower.server.keyholder import Terms
from wildflower.simulation.fleet import seeded_entropy
from wildflower.simulation.grid import App, Death, InProcessGrid
from wildflower.strategies.arrays import Entry, Layout
from wildflower.strategies.dp.contribution import Bounds
from wildflower.strategies.dp.rule import ClientRule
from wildflower.strategies.errors import KeyHolderError, RoundAbortedError
from wildflower.strategies.fixed_point import Encoding
from wildflower.strategies.flower_compat.messages import empty_run
from wildflower.strategies.he.packing import MAX_LENGTH
from wildflower.strategies.he.protection import RECORD
from wildflower.strategies.he_round import he_round
from wildflower.strategies.round_request import RoundRequest, RoundResult

ENTROPY = bytes(range(32))
STEPS = [0.25, -0.5, 1.0, 0.125, -0.25, 0.75]
WEIGHTS = [10, 20, 30, 5, 1, 100]
Tamper = Callable[[dict[str, Any]], dict[str, Any]]


def ordinary(count: int = 6) -> list[FlowerApp]:
    pairs = list(zip(STEPS, WEIGHTS, strict=True))[:count]
    return [FlowerApp(step, weight, {"loss": 0.5, "seen": 2.0}) for step, weight in pairs]


Build = Callable[..., HeFleet]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Return what makes a fleet of ordinary apps, or of those that are given."""

    def built(apps: Sequence[FlowerApp] | None = None, **options: Any) -> HeFleet:
        directory = Path(tempfile.mkdtemp(dir=tmp_path))
        return HeFleet(directory, [each.app for each in apps or ordinary()], **options)

    return built


@pytest.fixture
def fleet(build: Build) -> HeFleet:
    return build()


def go(fleet: HeFleet, asked: RoundRequest | None = None, **options: Any) -> RoundResult:
    given = {"grid": fleet.grid, "nodes": fleet.nodes, "entropy": ENTROPY, **options}
    grid, nodes = given.pop("grid"), given.pop("nodes")
    return he_round(
        grid,
        nodes,
        asked or request(),
        is_gone=grid.is_gone,
        ca_pem=fleet.ca.pem,
        key_holder=fleet.holder,
        **given,
    )


def test_a_round_is_the_plain_fixed_point_sum_bit_for_bit(fleet: HeFleet) -> None:
    result = go(fleet)
    encoding = Encoding.for_cohort(
        size=LAYOUT.size,
        clip=4.0,
        max_weight=100.0,
        clients=6,
        statistics=request().statistics,
        bits=16,
    )
    residues = np.zeros(encoding.length, np.uint16)
    for index, app in enumerate(ordinary()):
        told = {"examples": app.examples, "mean.loss": 0.5 * app.examples, "seen": 2.0}
        update = app.update.__class__(app.update.vector, app.examples, told)
        residues += encoding.encode(update, seeded_entropy(f"test/{index}")(32))
    expected = encoding.decode(residues, 6)
    assert np.array_equal(result.total.vector, expected.vector)
    assert result.total.weight == expected.weight == sum(WEIGHTS)
    assert result.total.statistics == expected.statistics
    assert result.total.statistics["seen"] == pytest.approx(12.0, abs=1e-3)
    assert (result.survivors, result.refusals) == (tuple(fleet.nodes), {})
    assert list(result.stages) == ["key", "train", "decrypt"]


def test_noise_that_devices_add_is_in_the_sum(fleet: HeFleet) -> None:
    rule = ClientRule(1.0, (("loss", Bounds(0.0, 4.0)),))
    result = go(fleet, request(rule=rule, noise=0.1))
    longest = np.sqrt(LAYOUT.size)
    clipped = sum(step * min(1.0, 1 / (abs(step) * longest)) for step in STEPS)
    error = result.total.vector - clipped
    assert result.total.weight == 6.0
    assert 0 < np.abs(error).max() < 1.0  # ten standard deviations of the noise


def test_the_key_holder_is_asked_once_for_the_sum(fleet: HeFleet) -> None:
    told: list[str] = []
    go(fleet, on_stage=told.append)
    (asked,) = fleet.holder.asked
    assert (asked.run, asked.round, asked.addends) == ("training-1/1", 1, 6)
    assert told == ["key", "train", "decrypt"]


def test_what_the_devices_send_are_ciphertexts_and_nothing_else(fleet: HeFleet) -> None:
    seen: list[Message] = []
    grid = InProcessGrid(fleet.grid._apps, watch=seen.append)
    go(fleet, grid=grid)
    replies = [each.content for each in seen if each.metadata.dst_node_id == 1]
    assert len(replies) == 6
    assert {tuple(each) for each in replies} == {(RECORD,)}
    names = {"version", "kind", "session", "device", "ciphertexts", "certificate", "signature"}
    assert {frozenset(each.config_records[RECORD]) for each in replies} == {frozenset(names)}


def test_an_evaluation_adds_up_statistics_and_nothing_else(fleet: HeFleet) -> None:
    result = go(fleet, evaluate_only=True)
    assert result.total.vector.size == 0
    assert result.total.weight == 0.0
    assert result.total.statistics["mean.loss"] == pytest.approx(0.5 * sum(WEIGHTS), abs=1e-3)


@pytest.mark.parametrize("death", Death)
def test_a_lost_device_is_not_in_the_sum(build: Build, death: Death) -> None:
    fleet = build(dies={(12, "train"): death})
    result = go(fleet)
    assert result.survivors == (11, 13, 14, 15, 16)
    assert result.total.weight == sum(WEIGHTS) - WEIGHTS[1]
    assert "lost its connection" in result.refusals[12]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_bad_update_is_left_out(build: Build, bad: float) -> None:
    fleet = build([*ordinary(), FlowerApp(bad)])
    result = go(fleet)
    assert set(result.refusals) == {17}
    assert result.total.weight == sum(WEIGHTS)


def test_one_device_at_two_nodes_counts_once(fleet: HeFleet) -> None:
    grid = InProcessGrid({**fleet.grid._apps, 17: fleet.grid._apps[11]})
    result = go(fleet, grid=grid, nodes=[*fleet.nodes, 17])
    assert "is at another node already" in result.refusals[17]
    assert result.total.weight == sum(WEIGHTS)


def tampered(app: App, tamper: Tamper) -> App:
    def answer(message: Message, context: Context) -> Message:
        fields = dict(app(message, context).content.config_records[RECORD])
        content = RecordDict({RECORD: ConfigRecord(tamper(fields))})
        return Message(content, reply_to=message)

    return answer


def ciphertexts(change: Callable[[bytes], bytes]) -> Tamper:
    return lambda fields: {
        **fields,
        "ciphertexts": [change(each) for each in fields["ciphertexts"]],
    }


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


TAMPERS: dict[str, tuple[Tamper, str]] = {
    "altered": (ciphertexts(flipped), "not signed by it"),
    "truncated": (ciphertexts(lambda data: data[:100]), "not signed by it"),
    "empty": (ciphertexts(lambda _: b""), "ciphertexts must be"),
    "none": (lambda fields: {**fields, "ciphertexts": []}, "ciphertexts must be"),
    "no list": (lambda fields: {**fields, "ciphertexts": b"x"}, "ciphertexts must be"),
    "another session": (lambda fields: {**fields, "session": bytes(32)}, "another session"),
    "another device": (lambda fields: {**fields, "device": bytes(32)}, "shows the certificate of"),
    "a further field": (lambda fields: {**fields, "more": 1}, "fields must be"),
}


@pytest.mark.parametrize("kind", TAMPERS)
def test_a_ciphertext_that_is_not_its_devices_is_left_out_and_named(
    fleet: HeFleet, kind: str
) -> None:
    tamper, why = TAMPERS[kind]
    grid = InProcessGrid({**fleet.grid._apps, 13: tampered(fleet.grid._apps[13], tamper)})
    result = go(fleet, grid=grid)
    assert set(result.refusals) == {13}
    assert why in result.refusals[13]
    assert result.total.weight == sum(WEIGHTS) - WEIGHTS[2]


def test_devices_of_another_ca_are_left_out(build: Build, fleet: HeFleet) -> None:
    foreign = build()
    grid = InProcessGrid({**fleet.grid._apps, 16: foreign.grid._apps[16]})
    result = go(fleet, grid=grid)
    assert set(result.refusals) == {16}
    assert "not signed by the pinned CA" in result.refusals[16]


def test_a_round_below_its_quorum_aborts_before_the_key_holder_is_asked(build: Build) -> None:
    fleet = build(dies={(node, "train"): Death.BEFORE for node in (11, 12)})
    with pytest.raises(RoundAbortedError, match="4 devices sent an encrypted update, at least 5"):
        go(fleet, request(min_clients=5))
    assert fleet.holder.asked == []


def test_128_devices_are_refused_before_anything_is_sent(fleet: HeFleet) -> None:
    with pytest.raises(RoundAbortedError, match="room for 127 devices, found 128") as caught:
        go(fleet, nodes=list(range(11, 139)))
    assert "smaller cohort" in caught.value.hint


def test_fewer_devices_than_the_key_holder_wants_are_refused_before_they_train(
    build: Build,
) -> None:
    apps = ordinary(4)
    fleet = build(apps, terms=Terms(min_cohort=5))
    with pytest.raises(RoundAbortedError, match="4 devices, the key holder decrypts sums of 5"):
        go(fleet)
    assert [each.calls for each in apps] == [[]] * 4


def test_fewer_survivors_than_the_key_holder_wants_abort_the_round(build: Build) -> None:
    fleet = build(dies={(11, "train"): Death.BEFORE}, terms=Terms(min_cohort=6))
    with pytest.raises(RoundAbortedError, match="a sum of 5 updates, 6 to 127 are decrypted"):
        go(fleet)


def test_a_model_that_is_too_large_is_refused_before_anything_is_sent(fleet: HeFleet) -> None:
    layout = Layout((Entry("w", (MAX_LENGTH,), "float32"),))
    with pytest.raises(RoundAbortedError, match=r"no session: .* at most 6144000 of 16 bits"):
        go(fleet, request(layout=layout))


@pytest.mark.parametrize("question", ["key", "decrypt"])
def test_a_key_holder_that_is_gone_aborts_the_round(fleet: HeFleet, question: str) -> None:
    fleet.holder.fails[question] = KeyHolderError("it does not answer", hint="Start it.")
    with pytest.raises(RoundAbortedError, match="homomorphic aggregation: it does not") as caught:
        go(fleet)
    assert caught.value.hint == "Start it."


def test_a_round_is_answered_once(fleet: HeFleet) -> None:
    go(fleet)
    with pytest.raises(RoundAbortedError, match="answered already, for another sum"):
        go(fleet, entropy=bytes(32))
    assert go(fleet, request(number=2)).total.weight == sum(WEIGHTS)


def test_a_training_that_is_resumed_may_repeat_its_round(fleet: HeFleet) -> None:
    first = go(fleet).total
    resumed = empty_run(2)
    fleet.grid.set_run(resumed)
    again = go(fleet, entropy=bytes(32)).total
    assert again.weight == first.weight
    assert len({each.key for each in fleet.holder.asked}) == 2


def test_devices_that_pinned_another_key_holder_do_not_train(build: Build) -> None:
    apps = ordinary()
    fleet = build(apps, pinned=OTHER_IDENTITY.digest)
    with pytest.raises(RoundAbortedError, match=r"0 devices sent .* pinned is"):
        go(fleet)
    assert [each.calls for each in apps] == [[]] * 6


def test_devices_refuse_a_key_for_smaller_sums_than_they_want(build: Build) -> None:
    fleet = build(min_cohort=4)
    with pytest.raises(RoundAbortedError, match="decrypts sums of 3, this device wants 4"):
        go(fleet)


def test_a_key_that_its_holder_did_not_sign_is_noticed_before_it_is_sent(fleet: HeFleet) -> None:
    real = fleet.holder.holder
    forged = make_holder(real._runs.parent / "other", identity=OTHER_IDENTITY)
    fake = forged.key("training-1/1")
    good = real.key("training-1/1")
    mixed = type(good)(
        good.run, fake.context, good.min_cohort, good.expires, good.identity, good.signature
    )
    fleet.holder.key = lambda run: mixed  # type: ignore[method-assign]  # an aggregator's own key
    with pytest.raises(RoundAbortedError, match="is not signed by it"):
        go(fleet)


def test_the_key_of_another_training_is_not_used(fleet: HeFleet) -> None:
    real = fleet.holder.holder
    fleet.holder.key = lambda run: real.key("another")  # type: ignore[method-assign]  # mixed up
    with pytest.raises(RoundAbortedError, match="sends the key of 'another'"):
        go(fleet)


def test_nonsense_of_one_device_ends_the_round_without_a_model(fleet: HeFleet) -> None:
    victim = fleet.protections[2]
    foreign = make_holder(fleet.holder.holder._runs.parent / "other").key("training-1/1").context

    def spoils(message: Message, context: Context) -> Message:
        from wildflower.strategies.he.bfv import PublicKey
        from wildflower.strategies.he.messages import Invitation

        asked = Invitation.from_fields(dict(message.content.config_records[RECORD]))
        nonsense = np.arange(asked.encoding.length, dtype=np.uint16)
        answer = victim._signed(asked, PublicKey.load(foreign).encrypt(nonsense))
        return Message(RecordDict({RECORD: ConfigRecord(answer.to_fields())}), reply_to=message)

    grid = InProcessGrid({**fleet.grid._apps, 13: spoils})
    with pytest.raises(RoundAbortedError, match="no sum of 6 updates"):
        go(fleet, grid=grid)
