"""`wildflower privacy`: the ledger reaches the operator, and plans come without a server."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.operator_fakes import OperatedServer, operated_server

from wildflower.cli import main
from wildflower.server.api.privacy import EXAMPLES, MECHANISMS, NOTHING, PROFILES
from wildflower.server.ledger import StoredLedger
from wildflower.server.records import Training
from wildflower.strategies.dp.accounting import epsilon_of
from wildflower.strategies.dp.events import Gaussian, Relation, Skellam, Tree
from wildflower.strategies.ledger import Entry, Purpose, Total, Unit

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DEVICES = Total(Unit.DEVICE, Relation.ADD_REMOVE, 1e-5)
FIRST = Entry("tr1/1", Purpose.TRAINING, DEVICES, Gaussian(8.0), 50, 100, "tr1", NOW)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatedServer]:
    with operated_server(tmp_path_factory.mktemp("operated") / "server") as made:
        yield made


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Run a command; check that what it prints keeps the committed schema."""
    with pytest.raises(SystemExit) as caught:
        main([*words, "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    if found["success"]:
        schema = SCHEMAS / f"{'-'.join(words[:2])}.json"
        jsonschema.validate(found, json.loads(schema.read_text()))
    return int(caught.value.code or 0), found


def shown(server: OperatedServer, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    code, found = answer(capsys, "privacy", "show", "--dir", str(server.directory))
    assert code == 0, found
    return found


def test_the_ledger_reaches_the_operator(
    server: OperatedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    before = shown(server, capsys)
    assert (before["profile"], before["totals"], before["subjects"]) == ("demo", [], [])
    assert before["trust"] == [PROFILES["demo"], NOTHING]

    ledger, training = (
        StoredLedger(server.store),
        Training(*("tr1", "app", 3, True, {"dp_epsilon": 4.0}, "running", "", 0, NOW)),
    )
    server.store.put(training, replace(training, training_id="tr2", settings={}))
    ledger.record(FIRST)
    ledger.record(replace(FIRST, entry_id="t1", purpose=Purpose.TELEMETRY, subject="drift"))
    hidden = replace(FIRST, total=replace(DEVICES, unit=Unit.EXAMPLE))
    ledger.record(replace(hidden, entry_id="tr2/1", subject="tr2"))

    found = shown(server, capsys)
    devices, examples = found["totals"]
    both = epsilon_of([Gaussian(8.0, 2)], delta=1e-5)
    assert (devices["unit"], devices["epsilon"], devices["releases"]) == ("device", both, 2)
    assert devices["purposes"] == {"training": 1, "telemetry": 1}
    assert (devices["budget"], devices["left"]) == (4.0, 4.0 - both)
    assert (examples["unit"], examples["budget"], examples["left"]) == ("example", None, None)
    alone = epsilon_of([Gaussian(8.0)], delta=1e-5)
    assert [(each["subject"], each["epsilon"]) for each in found["subjects"]] == [
        ("tr1", alone),
        ("drift", alone),
        ("tr2", alone),
    ]
    assert found["trust"] == [PROFILES["demo"], MECHANISMS[Gaussian], EXAMPLES]

    ledger.record(replace(FIRST, entry_id="tr1/2", event=Skellam(8.0, 1000.0, 1e6)))
    ledger.record(replace(FIRST, entry_id="tr1/3", event=Tree(0.2, 16)))
    found = shown(server, capsys)
    assert found["totals"][0]["method"] == "rdp"
    assert found["totals"][0]["left"] == 0.0
    stricter = replace(FIRST, entry_id="t2", subject="drift", total=replace(DEVICES, delta=1e-9))
    ledger.record(stricter)
    assert shown(server, capsys)["totals"][-1]["budget"] is None  # nobody's training
    assert set(MECHANISMS.values()) < set(found["trust"])


def test_every_profile_has_its_statement(server: OperatedServer) -> None:
    from wildflower.server.settings import PROFILES as KNOWN

    assert set(PROFILES) == set(KNOWN)


def test_a_plan_needs_no_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WILDFLOWER_SERVER_DIR", raising=False)
    words = ["--epsilon", "4", "--rounds", "200", "--mechanism", "ftrl", "--cohort", "50"]
    code, found = answer(capsys, "privacy", "plan", *words)
    assert code == 0
    assert (found["mechanism"], found["epsilon"], found["delta"]) == ("ftrl", 4.0, 1e-4)
    assert found["noise_multiplier"] > 1
    assert found["accuracy"]["cost_pt"] == pytest.approx(
        found["accuracy"]["without_privacy"] - found["accuracy"]["expected"]
    )


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--epsilon 0 --rounds 5", "epsilon = 0: allowed is 0.001 to 1000"),
        ("--epsilon 1 --rounds 5 --cohort 20 --population 10", "cohort = 20: allowed is 1 to 10"),
        ("--epsilon 1 --rounds 5 --delta 2", "delta = 2"),
    ],
)
def test_absurd_plans_are_refused_by_key_and_range(
    capsys: pytest.CaptureFixture[str], words: str, why: str
) -> None:
    code, found = answer(capsys, "privacy", "plan", *words.split())
    assert code == 1
    assert why in found["error"]["message"]
