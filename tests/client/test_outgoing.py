"""The device's policy: with `secagg: required`, no app and no server gets anything out in plain."""

from collections.abc import Callable

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
from tests.round_fakes import LAYOUT, MODEL, Fleet, FlowerApp, request

from wildflower.client.outgoing import MAX_REASON, Outgoing
from wildflower.strategies import round_messages as wire
from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.errors import RoundAbortedError
from wildflower.strategies.flower_compat.messages import assume_identity
from wildflower.strategies.mod import App
from wildflower.strategies.trips import plain_round, secure_round

CONTEXT = Context(run_id=1, node_id=11, node_config={}, state=RecordDict(), run_config={})
PLAIN = RecordDict(
    {
        "arrays": ArrayRecord({name: Array(array) for name, array in MODEL.items()}),
        "metrics": MetricRecord({"num-examples": 3}),
    }
)


def message(kind: str = wire.TRAIN, *, secure: bool = True) -> Message:
    assume_identity()
    content = wire.model_content(LAYOUT.pack(MODEL), LAYOUT, {}, ())
    if secure:
        content[wire.SECAGG] = ConfigRecord({"kind": "delivery"})
    return Message(content, 11, kind)


def goes_around(content: RecordDict) -> App:
    """Return an app that answers on its own, whatever it is asked."""
    return lambda received, context: Message(content, reply_to=received)


def stored_record(fleet: Fleet, **changes: int | bytes) -> RecordDict:
    """Return a message that the protocol made for node 11, with changes."""
    made = [m for m in fleet.seen if m.metadata.src_node_id == 11][-1]
    return RecordDict(
        {wire.SECAGG: ConfigRecord({**made.content.config_records[wire.SECAGG], **changes})}
    )


@pytest.fixture
def fleet() -> Fleet:
    fleet = Fleet([FlowerApp(0.5).app for _ in range(4)], secagg="required")
    secure_round(
        fleet.grid,
        fleet.nodes,
        request(),
        is_gone=fleet.grid.is_gone,
        entropy=bytes(32),
        ca_pem=fleet.ca.pem,
    )
    return fleet


def test_a_plain_round_gets_nothing_and_no_app_is_called() -> None:
    apps = [FlowerApp(0.5) for _ in range(3)]
    fleet = Fleet([each.app for each in apps], secagg="required")
    with pytest.raises(RoundAbortedError, match="demands secure aggregation"):
        plain_round(
            fleet.grid,
            fleet.nodes,
            request(),
            is_gone=fleet.grid.is_gone,
            algorithm=FedAvg(),
        )
    assert [each.calls for each in apps] == [[], [], []]
    assert all(m.has_error() for m in fleet.seen if m.metadata.src_node_id != 1)


CHEATS: dict[str, Callable[[Fleet], RecordDict]] = {
    "arrays and metrics": lambda fleet: PLAIN,
    "metrics": lambda fleet: RecordDict({"m": MetricRecord({"loss": 1.0})}),
    "nothing": lambda fleet: RecordDict(),
    "another record": lambda fleet: RecordDict({"x": ConfigRecord({"loss": 1.0})}),
    "plain numbers dressed as masked": lambda fleet: stored_record(fleet, residues=b"plain..."),
    "one more field": lambda fleet: stored_record(fleet, loss=3),
    "an unknown session": lambda fleet: stored_record(fleet, session=b"?" * 32),
    "no session": lambda fleet: stored_record(fleet, session=1),
    "one more record": lambda fleet: RecordDict({**stored_record(fleet), "m": MetricRecord()}),
    "arrays under the right name": lambda fleet: RecordDict({wire.SECAGG: PLAIN["arrays"]}),
}


@pytest.mark.parametrize("cheat", CHEATS)
@pytest.mark.parametrize("kind", [wire.TRAIN, wire.EVALUATE, "query.anything"])
def test_an_app_that_goes_around_the_mod_gets_nothing_out(
    fleet: Fleet, cheat: str, kind: str
) -> None:
    policy = fleet.guards[0].outgoing
    reply = policy(message(kind), CONTEXT, goes_around(CHEATS[cheat](fleet)))
    assert reply.has_error()
    assert "not what secure aggregation made" in (reply.error.reason or "")


def test_what_the_protocol_made_may_leave(fleet: Fleet) -> None:
    content = stored_record(fleet)
    assert fleet.guards[0].outgoing(message(), CONTEXT, goes_around(content)).content == content


def test_a_damaged_session_lets_nothing_out(fleet: Fleet) -> None:
    content = stored_record(fleet)
    sessions = fleet.sessions[0]
    for session, saved in list(sessions.sessions()):
        sessions.save(session, b"damaged", now=saved)
    assert fleet.guards[0].outgoing(message(), CONTEXT, goes_around(content)).has_error()


def test_an_unknown_policy_counts_as_required(fleet: Fleet) -> None:
    policy = Outgoing("typo", fleet.secagg)
    assert policy(message(secure=False), CONTEXT, goes_around(PLAIN)).has_error()


def test_the_policy_allowed_lets_plain_answers_out(fleet: Fleet) -> None:
    policy = Outgoing("allowed", fleet.secagg)
    assert policy(message(secure=False), CONTEXT, goes_around(PLAIN)).content == PLAIN


@pytest.mark.parametrize("reason", [None, "x" * 10_000])
def test_an_errors_reason_is_cut_short(fleet: Fleet, reason: str | None) -> None:
    def fails(received: Message, context: Context) -> Message:
        return Message(Error(5, reason), reply_to=received)

    reply = fleet.guards[0].outgoing(message(), CONTEXT, fails)
    assert (reply.error.code, len(reply.error.reason or "")) == (
        5,
        min(len(reason or ""), MAX_REASON),
    )
