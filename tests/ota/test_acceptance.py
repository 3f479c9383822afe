"""What a device's owner accepts of where a release comes from: all demands, all answers."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ota_fakes import NOON, release_of

from wildflower.ota import canonical
from wildflower.ota.device.acceptance import AGAIN, Demands, Rejection, shortcomings
from wildflower.ota.errors import ProvenanceError, RefusedError
from wildflower.ota.release.manifest import Lineage
from wildflower.ota.release.method import Method
from wildflower.ota.release.provenance import RoundRecord
from wildflower.ota.release.statement import Provenance

METHOD = Method("fedavg", "secagg", "central", "device")
RECORD = RoundRecord("t1", 3, "ab" * 32, 8, 7, True, {}, NOON, METHOD)
RELEASE = release_of(b"model", lineage=Lineage(RECORD.model, "t1", 3, "cd" * 32))
MADE = Provenance.of(RELEASE, RECORD, {}, {"epsilon": 2.5, "delta": 1e-5})
OLD = replace(MADE, method=None)
BY_EXAMPLE = replace(METHOD, mechanism="dpsgd", unit="example")


def privacy(**figures: float) -> dict[str, Any]:
    return {"privacy": figures}


@pytest.mark.parametrize(
    ("demands", "changes", "told"),
    [
        ({}, {}, ()),
        ({}, {"privacy": {}, "method": None, "survivors": 1}, ()),
        ({"max_epsilon": 2.5}, {}, ()),
        ({"max_epsilon": 2.4}, {}, ("epsilon: found 2.5, expected <= 2.4",)),
        ({"max_epsilon": 5}, privacy(delta=1e-5), ("epsilon: found none told, expected <= 5",)),
        (
            {"max_epsilon": 5},
            privacy(epsilon=1.0),
            ("delta of that epsilon: found none told, expected <= 1e-05",),
        ),
        (
            {"max_epsilon": 5},
            privacy(epsilon=1.0, delta=0.1),
            ("delta of that epsilon: found 0.1, expected <= 1e-05",),
        ),
        ({"max_epsilon": 5}, privacy(epsilon=0.0, delta=0.0), ()),
        (
            {"max_epsilon": 5},
            {"method": BY_EXAMPLE},
            ("unit of that epsilon: found example, expected device",),
        ),
        ({"max_epsilon": 5, "unit": "example"}, {"method": BY_EXAMPLE}, ()),
        ({"max_epsilon": 5, "unit": "example"}, {}, ()),
        (
            {"max_epsilon": 5, "unit": "example"},
            {"method": None},
            ("unit of that epsilon: found none told, expected example",),
        ),
        ({"min_clients": 7}, {}, ()),
        ({"min_clients": 8}, {}, ("devices in the model: found 7, expected >= 8",)),
        ({"strategies": ("secagg",)}, {}, ()),
        ({"strategies": ("central+secagg+fedavg",)}, {}, ()),
        ({"strategies": ("he", "secagg+fedavg")}, {}, ()),
        (
            {"strategies": ("he", "secagg+fedmedian")},
            {},
            ("strategy: found secagg+central+fedavg, expected one of he, secagg+fedmedian",),
        ),
        (
            {"strategies": ("secagg",)},
            {"method": Method("fedavg", "plain")},
            ("strategy: found plain+fedavg, expected one of secagg",),
        ),
        (
            {"strategies": ("secagg",)},
            {"method": None},
            ("strategy: found none told, expected one of secagg",),
        ),
        ({"strategies": ("none",)}, {"method": Method("fedavg", "plain")}, ()),
        (
            {"max_epsilon": 1, "min_clients": 9, "strategies": ("plain",)},
            {},
            (
                "epsilon: found 2.5, expected <= 1",
                "devices in the model: found 7, expected >= 9",
                "strategy: found secagg+central+fedavg, expected one of plain",
            ),
        ),
    ],
)
def test_every_demand_is_held_against_the_statement(
    demands: dict[str, Any], changes: dict[str, Any], told: tuple[str, ...]
) -> None:
    wanted, statement = Demands(**demands), replace(MADE, **changes)
    assert tuple(map(str, shortcomings(wanted, statement))) == told
    if told:
        with pytest.raises(ProvenanceError) as refused:
            wanted.check(statement)
        assert str(refused.value) == f"provenance: {'; '.join(told)}"
        assert "policy.toml" in refused.value.hint
    else:
        wanted.check(statement)


@pytest.mark.parametrize(
    ("demands", "told"),
    [
        (Demands(), ""),
        (Demands(max_epsilon=2.5, unit="example"), "epsilon <= 2.5 for each example"),
        (Demands(min_clients=9), ">= 9 devices in the model"),
        (Demands(strategies=("he", "secagg")), "made by he or secagg"),
        (
            Demands(1.0, min_clients=2, strategies=("he",)),
            "epsilon <= 1 for each device, >= 2 devices in the model, made by he",
        ),
    ],
)
def test_demands_are_told_in_words(demands: Demands, told: str) -> None:
    assert str(demands) == told


def test_without_a_statement_nothing_is_as_demanded() -> None:
    with pytest.raises(RefusedError, match="found no statement") as refused:
        Demands(min_clients=1).check(None)
    assert "--release" in refused.value.hint


def test_no_demand_needs_no_statement_and_each_one_does() -> None:
    assert not Demands().are_any
    assert not Demands(delta=1e-9, unit="example").are_any
    for demands in ({"max_epsilon": 1.0}, {"min_clients": 1}, {"strategies": ("he",)}):
        assert Demands(**demands).are_any


SETS = st.builds(
    Demands,
    max_epsilon=st.sampled_from([0.0, 1.0, 2.5, 8.0]),
    unit=st.sampled_from(["device", "example"]),
    min_clients=st.integers(0, 9),
    strategies=st.sampled_from([(), ("secagg",), ("he",), ("he", "fedavg")]),
)
STATEMENTS = st.builds(
    lambda epsilon, survivors, method: replace(
        MADE,
        privacy={} if epsilon is None else {"epsilon": epsilon, "delta": 1e-6},
        survivors=survivors,
        method=method,
    ),
    st.none() | st.floats(0.0, 10.0),
    st.integers(1, 8),
    st.none() | st.sampled_from([METHOD, BY_EXAMPLE, Method("fedavg", "he")]),
)


@given(SETS, STATEMENTS)
def test_a_statement_that_tells_less_is_never_accepted_sooner(
    demands: Demands, statement: Provenance
) -> None:
    for silent in (replace(statement, privacy={}), replace(statement, method=None)):
        if not shortcomings(demands, silent):
            assert not shortcomings(demands, statement)


@given(SETS, STATEMENTS)
def test_a_stricter_owner_never_accepts_more(demands: Demands, statement: Provenance) -> None:
    stricter = (
        replace(demands, min_clients=demands.min_clients + 1),
        replace(demands, unit="device"),
        replace(demands, max_epsilon=min(demands.max_epsilon or 0.5, 0.5)),
        replace(demands, strategies=demands.strategies[:1] or ("secagg",)),
    )
    for one in stricter:
        assert set(kinds(demands, statement)) <= set(kinds(one, statement))


def kinds(demands: Demands, statement: Provenance) -> list[str]:
    return [one.what for one in shortcomings(demands, statement)]


DEMANDS = Demands(max_epsilon=2.0, strategies=("secagg",))
REJECTION = Rejection("r1", "ab" * 32, DEMANDS.digest, NOON, "epsilon: found 2.5, expected <= 2")


def test_a_rejection_comes_back_as_it_was() -> None:
    assert Rejection.from_text(REJECTION.to_text()) == REJECTION


@pytest.mark.parametrize("text", ["", "a", "[]", "\ud800", REJECTION.to_text()[:140]])
def test_what_is_no_rejection_rejects_nothing(text: str) -> None:
    assert Rejection.from_text(text) is None


@pytest.mark.parametrize("key", ["rollout", "release", "demands", "reason", "at"])
def test_a_rejection_that_lacks_something_rejects_nothing(key: str) -> None:
    found = json.loads(REJECTION.to_text())
    del found[key]
    assert Rejection.from_text(canonical.to_bytes(found).decode()) is None


@given(st.text(max_size=200))
def test_no_text_makes_the_journals_reader_fail(text: str) -> None:
    assert Rejection.from_text(text) is None


@given(st.integers(0, 400), st.integers(1, 127))
def test_a_flipped_bit_is_no_rejection_or_another_one(at: int, change: int) -> None:
    data = bytearray(REJECTION.to_text().encode())
    data[at % len(data)] ^= change
    found = Rejection.from_text(data.decode(errors="replace"))
    assert found is None or found != REJECTION


@pytest.mark.parametrize(
    ("where", "demands", "late", "stands"),
    [
        (("r1", "ab" * 32), DEMANDS, timedelta(), True),
        (("r1", "ab" * 32), DEMANDS, AGAIN - timedelta(seconds=1), True),
        (("r1", "ab" * 32), DEMANDS, AGAIN, False),
        (("r1", "ab" * 32), DEMANDS, -timedelta(seconds=1), False),
        (("r1", "cd" * 32), DEMANDS, timedelta(), False),
        (("r2", "ab" * 32), DEMANDS, timedelta(), False),
        (("r1", "ab" * 32), replace(DEMANDS, max_epsilon=3.0), timedelta(), False),
        (("r1", "ab" * 32), replace(DEMANDS, strategies=()), timedelta(), False),
    ],
)
def test_a_rejection_stands_for_a_day_in_one_rollout_and_for_the_same_demands(
    where: tuple[str, str], demands: Demands, late: timedelta, *, stands: bool
) -> None:
    assert REJECTION.stands(*where, demands, NOON + late) is stands
