"""The mod: unchanged apps behind it, one answer per session, nothing said before it is stored."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.round_fakes import LAYOUT, MODEL, STATISTICS, Fleet, FlowerApp, request

from wildflower.simulation.grid import App
from wildflower.strategies import round_messages as wire
from wildflower.strategies.arrays import Layout
from wildflower.strategies.errors import LayoutError, UpdateRefusedError
from wildflower.strategies.flower_compat.messages import SERVER_NODE, assume_identity
from wildflower.strategies.mod import FAILED, REFUSED, UpdateMod
from wildflower.strategies.secagg.client_state import State
from wildflower.strategies.secagg.protection import SecAgg
from wildflower.strategies.secagg.sessions import KEEP_S, MemorySessions
from wildflower.strategies.trips import secure_round

CONTEXT = Context(run_id=1, node_id=11, node_config={}, state=RecordDict(), run_config={})


def message(content: RecordDict, kind: str = wire.TRAIN) -> Message:
    assume_identity()
    return Message(content, 11, kind)


def model(statistics: Iterable[str] = STATISTICS, parameters: object = None) -> RecordDict:
    named = MODEL if parameters is None else parameters
    layout = Layout.of(named)  # type: ignore[arg-type]  # a test's own arrays
    vector = layout.pack(named)  # type: ignore[arg-type]  # likewise
    return wire.model_content(vector, layout, {"epochs": 2}, tuple(statistics))


@pytest.fixture
def mod() -> UpdateMod:
    return Fleet([FlowerApp(1.0).app]).guards[0].mod


def recorded(kind: str, apps: list[FlowerApp] | None = None) -> tuple[Fleet, list[Message]]:
    """Go through a secure round; return the fleet and what node 11 was sent of a kind."""
    apps = apps or [FlowerApp(0.5) for _ in range(4)]
    fleet = Fleet([each.app for each in apps])
    secure_round(
        fleet.grid,
        fleet.nodes,
        request(),
        is_gone=fleet.grid.is_gone,
        entropy=bytes(32),
        ca_pem=fleet.ca.pem,
    )
    sent = [m for m in fleet.seen if m.metadata.message_type == kind]
    return fleet, [m for m in sent if m.metadata.dst_node_id == 11]


def test_an_app_gets_named_arrays_and_the_config(mod: UpdateMod) -> None:
    got: list[RecordDict] = []

    def app(received: Message, context: Context) -> Message:
        got.append(received.content)
        return FlowerApp(1.0).app(received, context)

    reply = mod(message(model()), CONTEXT, app)
    assert list(got[0]) == ["arrays", "config"]
    assert got[0].config_records["config"]["epochs"] == 2
    for name, array in got[0].array_records["arrays"].items():
        assert np.array_equal(array.numpy(), MODEL[name])
    update = wire.read_update(reply.content, LAYOUT.size, STATISTICS)
    assert update.vector.tolist() == [1.0] * LAYOUT.size
    assert update.weight == 10


def test_arrays_that_are_known_by_their_order_keep_it(mod: UpdateMod) -> None:
    parameters = {str(index): np.full(1, index, np.float32) for index in range(12)}
    seen: list[list[float]] = []

    def app(received: Message, context: Context) -> Message:
        arrays = received.content.array_records["arrays"].to_numpy_ndarrays()
        seen.append([float(array[0]) for array in arrays])
        changed = ArrayRecord([array + 1 for array in arrays])
        content = RecordDict({"a": changed, "m": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=received)

    reply = mod(message(model(parameters=parameters)), CONTEXT, app)
    assert seen == [[float(index) for index in range(12)]]
    assert wire.read_update(reply.content, 12, ()).vector.tolist() == [1.0] * 12


def test_statistics_are_sums_of_what_the_app_reports(mod: UpdateMod) -> None:
    app = FlowerApp(1.0, 8, {"accuracy": 0.75, "seen": 3.0})
    names = ("examples", "mean.accuracy", "seen", "unknown")
    reply = mod(message(model(names)), CONTEXT, app.app)
    found = wire.read_update(reply.content, LAYOUT.size, names).statistics
    assert found == {"examples": 8.0, "mean.accuracy": 6.0, "seen": 3.0, "unknown": 0.0}


def test_messages_of_other_servers_reach_the_app_as_they_are(mod: UpdateMod) -> None:
    content = RecordDict({"x": ConfigRecord({"y": 1})})

    def echo(received: Message, context: Context) -> Message:
        return Message(received.content, reply_to=received)

    reply = mod(message(content, "query.anything"), CONTEXT, echo)
    assert reply.content == content


def raises(received: Message, context: Context) -> Message:
    raise ValueError("the secret is 42")


def answers_an_error(received: Message, context: Context) -> Message:
    return Message(Error(5, "the secret is 42"), reply_to=received)


@pytest.mark.parametrize("app", [raises, answers_an_error])
def test_what_a_failing_app_says_stays_on_the_device(mod: UpdateMod, app: App) -> None:
    reply = mod(message(model()), CONTEXT, app)
    assert reply.error.code == FAILED
    assert "42" not in (reply.error.reason or "")


def answering(*records: ArrayRecord | MetricRecord) -> App:
    content = RecordDict({f"r{index}": record for index, record in enumerate(records)})
    return lambda received, context: Message(content, reply_to=received)


ARRAYS = ArrayRecord({name: Array(array) for name, array in MODEL.items()})
METRICS = MetricRecord({"num-examples": 1})
UNREADABLE = ArrayRecord(
    {name: Array("float32", (2,), "numpy.ndarray", b"no array") for name in MODEL}
)
ODD = {
    "0 ArrayRecords": answering(METRICS),
    "2 ArrayRecords": answering(ARRAYS, ARRAYS, METRICS),
    "0 MetricRecords": answering(ARRAYS),
    "2 MetricRecords": answering(ARRAYS, METRICS, METRICS),
    "lack 'num-examples'": answering(ARRAYS, MetricRecord({"n": 1})),
    "cannot be read": answering(UNREADABLE, METRICS),
}


@pytest.mark.parametrize("why", ODD)
def test_an_odd_answer_of_the_app_is_refused_with_its_reason(mod: UpdateMod, why: str) -> None:
    reply = mod(message(model()), CONTEXT, ODD[why])
    assert reply.error.code == REFUSED
    assert why in (reply.error.reason or "")


def test_a_repeated_request_gets_the_same_bytes_and_trains_nothing_again() -> None:
    for kind in (wire.ADVERTISE, wire.SHARE, wire.TRAIN, wire.UNMASK):
        apps = [FlowerApp(0.5) for _ in range(4)]
        fleet, [again] = recorded(kind, apps)
        (before,) = [
            m
            for m in fleet.seen
            if m.metadata.src_node_id == 11 and m.metadata.message_type == kind
        ]
        reply = fleet.guards[0].mod(again, CONTEXT, apps[0].app)
        assert reply.content == before.content
        assert apps[0].calls == ["train"]


def test_a_second_different_unmask_request_is_refused() -> None:
    fleet, [asked] = recorded(wire.UNMASK)
    fields = wire.secagg_fields(asked.content)
    dead, alive = fields["alive"][:32], fields["alive"][32:]
    changed = {**fields, "dead": dead, "alive": alive}
    content = RecordDict({wire.SECAGG: ConfigRecord(changed)})
    reply = fleet.guards[0].mod(message(content, wire.UNMASK), CONTEXT, FlowerApp(1.0).app)
    assert "second, different" in (reply.error.reason or "")


def test_a_device_that_lost_its_session_says_so() -> None:
    fleet, [asked] = recorded(wire.UNMASK)
    fleet.guards[0].mod.end_all()
    assert list(fleet.sessions[0].sessions()) == []
    reply = fleet.guards[0].mod(asked, CONTEXT, FlowerApp(1.0).app)
    assert "in no such session" in (reply.error.reason or "")


class FullDisk(MemorySessions):
    """Storage that fails from some save on."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 10**6

    def save(self, session: bytes, state: bytes, *, now: datetime) -> None:
        if self.left == 0:
            raise OSError("no space left on device")
        self.left -= 1
        super().save(session, state, now=now)


@pytest.mark.parametrize("saves", range(5))
def test_nothing_is_sent_that_could_not_be_stored(saves: int) -> None:
    apps = [FlowerApp(0.5) for _ in range(5)]
    fleet = Fleet([each.app for each in apps], sessions=FullDisk)
    disk = fleet.sessions[0]
    assert isinstance(disk, FullDisk)
    disk.left = saves
    result = secure_round(
        fleet.grid,
        fleet.nodes,
        request(),
        is_gone=fleet.grid.is_gone,
        entropy=bytes(32),
        ca_pem=fleet.ca.pem,
    )
    answers = [m for m in fleet.seen if m.metadata.src_node_id == 11 and m.has_content()]
    assert len(answers) == min(saves, 2) + max(0, saves - 3)  # opening the shares is not an answer
    assert (11 in result.survivors) == (saves >= 4)


def test_a_session_that_is_smaller_than_the_policy_allows_is_refused() -> None:
    fleet, [asked] = recorded(wire.ADVERTISE)
    secagg = fleet.secagg[0]
    secagg.end_all()
    strict = SecAgg(secagg.identity, secagg.ca, secagg.sessions, min_cohort=5)
    reply = UpdateMod((strict,))(asked, CONTEXT, FlowerApp(1.0).app)
    assert "this device joins 5 or more" in (reply.error.reason or "")


def test_a_new_session_erases_those_it_makes_obsolete_and_no_others() -> None:
    fleet, [asked] = recorded(wire.ADVERTISE)
    mod, sessions = fleet.guards[0].mod, fleet.sessions[0]
    (done,) = [session for session, _ in sessions.sessions()]
    stored = sessions.load(done)
    assert stored is not None
    now = datetime.now(UTC)
    sessions.save(b"d" * 32, b"damaged", now=now)
    fields = {**wire.secagg_fields(asked.content), "session": b"n" * 32}
    for training, kept in (("training-2", True), ("training-1", False)):
        content = RecordDict({wire.SECAGG: ConfigRecord({**fields, "training": training})})
        mod(message(content, wire.ADVERTISE), CONTEXT, FlowerApp(1.0).app)
        assert (sessions.load(done) is not None) == kept
        sessions.erase(b"n" * 32)
    assert sessions.load(b"d" * 32) is None
    sessions.save(done, stored, now=now - timedelta(seconds=KEEP_S + 60))
    content = RecordDict({wire.SECAGG: ConfigRecord({**fields, "training": "training-3"})})
    mod(message(content, wire.ADVERTISE), CONTEXT, FlowerApp(1.0).app)
    assert sessions.load(done) is None


def test_no_secret_is_left_when_a_session_is_through() -> None:
    fleet, _ = recorded(wire.UNMASK)
    ((session, _),) = fleet.sessions[0].sessions()
    state = State.from_bytes(fleet.sessions[0].load(session) or b"")
    assert (state.secrets, state.held) == ((), {})


def test_an_app_without_evaluate_is_told_apart_from_a_refusal(mod: UpdateMod) -> None:
    reply = mod(message(model(), wire.EVALUATE), CONTEXT, ClientApp())
    assert reply.error.code == FAILED


SCALARS = st.one_of(st.integers(-3, 3), st.floats(), st.binary(max_size=40), st.text(max_size=6))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([wire.ADVERTISE, wire.SHARE, wire.TRAIN, wire.EVALUATE, wire.UNMASK]),
    st.dictionaries(
        st.sampled_from(["version", "kind", "session", "devices", "sealed", "alive", "layout"]),
        SCALARS,
    ),
    st.binary(max_size=40),
)
def test_no_request_breaks_the_device(kind: str, fields: dict[str, object], data: bytes) -> None:
    device = Fleet([FlowerApp(1.0).app]).guards[0].mod
    arrays = ArrayRecord({"flat": Array("float32", (2,), "numpy.ndarray", data)})
    content = RecordDict(
        {
            wire.SECAGG: ConfigRecord(dict(fields)),  # type: ignore[arg-type]  # any fields
            wire.LAYOUT: ConfigRecord(dict(fields)),  # type: ignore[arg-type]  # any fields
            wire.ARRAYS: arrays,
        }
    )
    reply = device(message(content, kind), CONTEXT, FlowerApp(1.0).app)
    assert reply.error.code == REFUSED
    assert reply.metadata.dst_node_id == SERVER_NODE


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=10), st.binary(max_size=60))
def test_only_a_model_is_read_as_a_model(layout: str, names: str, data: bytes) -> None:
    record = ConfigRecord({"layout": layout, "statistics": names})
    arrays = ArrayRecord({"flat": Array("float32", (2,), "numpy.ndarray", data)})
    with pytest.raises(LayoutError):
        wire.read_model(RecordDict({wire.LAYOUT: record, wire.ARRAYS: arrays}))
    with pytest.raises(UpdateRefusedError):
        wire.read_update(RecordDict({wire.ARRAYS: arrays, wire.METRICS: METRICS}), 2, ())


def test_a_model_and_an_update_survive_their_messages() -> None:
    vector, layout, names = wire.read_model(model())
    assert (layout, names) == (LAYOUT, STATISTICS)
    assert np.array_equal(vector, LAYOUT.pack(MODEL))
    update = FlowerApp(0.5).update
    again = wire.read_update(wire.update_content(update), LAYOUT.size, ())
    assert again.vector.tolist() == update.vector.tolist()
    assert again.weight == update.weight


@pytest.mark.parametrize(
    "changes",
    [{"layout": 3}, {"statistics": 3}, {"layout": "[]"}, {"layout": "[" * 100_000}],
    ids=["no text", "no names", "another size", "deep"],
)
def test_a_damaged_layout_is_refused(changes: dict[str, int | str]) -> None:
    content = model()
    content[wire.LAYOUT] = ConfigRecord({**content.config_records[wire.LAYOUT], **changes})
    with pytest.raises(LayoutError):
        wire.read_model(content)


def test_an_answer_without_a_weight_is_no_update() -> None:
    content = wire.update_content(FlowerApp(0.5).update)
    content[wire.METRICS] = MetricRecord({"loss": 1.0})
    with pytest.raises(UpdateRefusedError, match="num-examples"):
        wire.read_update(content, LAYOUT.size, ())
