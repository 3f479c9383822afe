"""The in-process grid: what a Flower grid promises, and how its nodes die."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from tests.round_fakes import FlowerApp

from wildflower.simulation.grid import BATCH, App, Death, InProcessGrid
from wildflower.strategies.flower_compat.messages import empty_run


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


def asked(node: int, kind: str = "query") -> Message:
    return Message(RecordDict({"c": ConfigRecord({"x": 1})}), node, kind)


def test_every_node_answers_its_own_message() -> None:
    grid = InProcessGrid(dict.fromkeys(range(10, 10 + 2 * BATCH), echo))
    replies = list(grid.send_and_receive([asked(node) for node in grid.get_node_ids()]))
    assert [reply.metadata.src_node_id for reply in replies] == list(grid.get_node_ids())
    assert len({reply.metadata.reply_to_message_id for reply in replies}) == 2 * BATCH


def test_a_reply_is_given_out_once() -> None:
    grid = InProcessGrid({10: echo})
    ids = list(grid.push_messages([asked(10)]))
    assert len(list(grid.pull_messages(ids))) == 1
    assert list(grid.pull_messages(ids)) == []


def test_threads_that_ask_at_once_get_their_own_answers_one_node_at_a_time() -> None:
    inside, most = [0], []

    def counts(message: Message, context: Context) -> Message:
        inside[0] += 1
        time.sleep(0.001)  # a moment in which another thread would come in
        most.append(inside[0])
        inside[0] -= 1
        return Message(message.content, reply_to=message)

    grid = InProcessGrid(dict.fromkeys(range(10, 26), counts))
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda node: list(grid.send_and_receive([asked(node)])), range(10, 26))
        )
    assert [reply.metadata.src_node_id for [reply] in found] == list(range(10, 26))
    assert set(most) == {1}


def test_what_a_node_does_to_its_message_no_other_sees() -> None:
    def spoils(message: Message, context: Context) -> Message:
        message.content["c"] = ConfigRecord({"x": 2})
        message.content.array_records["a"]["w"] = Array(np.ones(1))
        message.content.metric_records["m"]["n"] = 7.0
        return Message(RecordDict(), reply_to=message)

    content = RecordDict(
        {
            "c": ConfigRecord({"x": 1}),
            "a": ArrayRecord({"w": Array(np.zeros(1))}),
            "m": MetricRecord({"n": 0.0}),
        }
    )
    grid = InProcessGrid({10: spoils, 11: echo})
    replies = list(grid.send_and_receive([Message(content, node, "query") for node in (10, 11)]))
    assert replies[1].content.config_records["c"]["x"] == 1
    assert replies[1].content.array_records["a"]["w"].numpy().tolist() == [0.0]
    assert replies[1].content.metric_records["m"]["n"] == 0.0


def test_a_node_keeps_its_context() -> None:
    def counts(message: Message, context: Context) -> Message:
        before = context.state.metric_records.get("n", MetricRecord({"calls": 0}))
        record = MetricRecord({"calls": float(str(before["calls"])) + 1})
        context.state["n"] = record
        return Message(RecordDict({"n": record}), reply_to=message)

    grid = InProcessGrid({10: counts})
    for expected in (1, 2, 3):
        (reply,) = grid.send_and_receive([asked(10)])
        assert reply.content.metric_records["n"]["calls"] == expected


def test_what_an_app_raises_is_an_error_of_that_node() -> None:
    def fails(message: Message, context: Context) -> Message:
        raise ValueError("no data")

    (one, two) = InProcessGrid({10: fails, 11: echo}).send_and_receive([asked(10), asked(11)])
    assert (one.error.code, one.error.reason) == (2, "ValueError: no data")
    assert two.has_content()


@pytest.mark.parametrize("death", Death)
def test_a_node_dies_at_its_message_and_comes_back(death: Death) -> None:
    called: list[str] = []

    def app(message: Message, context: Context) -> Message:
        called.append(message.metadata.message_type)
        return echo(message, context)

    grid = InProcessGrid({10: app, 11: echo}, dies={(10, "train"): death})
    assert len(list(grid.send_and_receive([asked(10), asked(11)]))) == 2
    (reply,) = grid.send_and_receive([asked(10, "train"), asked(11, "train")])
    assert reply.metadata.src_node_id == 11
    assert called == ["query"] + (["train"] if death is Death.AFTER else [])
    assert grid.is_gone(10)
    assert list(grid.get_node_ids()) == [11]
    assert list(grid.send_and_receive([asked(10)])) == []
    grid.revive(10)
    assert len(list(grid.send_and_receive([asked(10)]))) == 1


def test_every_message_is_shown_to_the_watcher() -> None:
    seen: list[Message] = []
    grid = InProcessGrid({10: echo}, watch=seen.append)
    list(grid.send_and_receive([asked(10)]))
    assert [(m.metadata.src_node_id, m.metadata.dst_node_id) for m in seen] == [(1, 10), (10, 1)]


def test_the_timeout_is_kept() -> None:
    assert list(InProcessGrid({10: echo}).send_and_receive([asked(10)], timeout=-1.0)) == []


def test_flowers_own_strategy_runs_over_it() -> None:
    grid = InProcessGrid({node: FlowerApp(1.0).app for node in range(10, 14)})
    grid.set_run(empty_run(9))
    assert grid.run.run_id == 9
    result = FedAvg().start(grid, ArrayRecord({"w": Array(np.zeros(2, np.float32))}), num_rounds=2)
    assert result.arrays["w"].numpy().tolist() == [2.0, 2.0]


def test_a_message_can_be_made_the_old_way() -> None:
    app: App = echo
    grid = InProcessGrid({10: app})
    message = grid.create_message(RecordDict(), "query", 10, "group", 5.0)
    assert (message.metadata.group_id, message.metadata.ttl) == ("group", 5.0)
