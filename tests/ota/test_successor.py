"""Artifacts that follow the last release: shorter to fetch, and no worse."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.ota_build_task import examples, model_bytes, task, trained

from wildflower.ota.build import convert, export, quantise
from wildflower.ota.build.builder import Builder, BuiltArtifact, Proxy
from wildflower.ota.build.choice import Quality
from wildflower.ota.build.export import load_parameters
from wildflower.ota.build.followed import first
from wildflower.ota.build.gates import Bound, Precision
from wildflower.ota.build.quantise import prepared
from wildflower.ota.build.store import BuildStore
from wildflower.ota.build.successor import CERTAIN, STRICT, Judge, coded_successor, successor
from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.fp32 import steps_between
from wildflower.ota.delta.tensors import regions_of
from wildflower.ota.device.runtime import OrtRuntime
from wildflower.ota.errors import DeltaError

DATA = examples()
PROXY = Proxy(DATA.inputs, DATA.targets)
VNNI, REDUCED, GENERIC = "linux-x86_64-vnni", "linux-x86_64-avx2", "linux-generic"
FIRST, SECOND = model_bytes(trained(6)), model_bytes(trained(7))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BuildStore:
    return BuildStore(tmp_path_factory.mktemp("cache"))


def build(store: BuildStore, model: bytes, name: str, previous: bytes | None) -> BuiltArtifact:
    earlier = {} if previous is None else {name: previous}
    (built,) = Builder(task, PROXY, store).build(model, [name], earlier)
    return built


def onnx_of(model: bytes) -> bytes:
    network = load_parameters(task.build_model(), model)
    return export.to_onnx(network, PROXY.inputs[: PROXY.half])


def own_build(model: bytes, *, reduce_range: bool = False) -> bytes:
    rows = PROXY.inputs[: PROXY.half]
    return quantise.to_int8(onnx_of(model), rows, reduce_range=reduce_range)


def delta(old: bytes, new: bytes) -> int:
    return len(diff(old, new, regions_of(old), regions_of(new)))


@pytest.mark.parametrize("name", [VNNI, REDUCED])
def test_a_later_artifact_follows_the_one_before_and_passes_its_gates(
    store: BuildStore, name: str
) -> None:
    before = build(store, FIRST, name, None).model
    own = own_build(SECOND, reduce_range=name == REDUCED)
    following = build(store, SECOND, name, before)
    assert following.report.passed
    assert delta(before, following.model) < delta(before, own)
    assert build(store, SECOND, name, before).is_cached


def test_it_agrees_with_the_fp32_model_as_often_as_its_own_build(store: BuildStore) -> None:
    before = build(store, FIRST, VNNI, None).model
    own, following = own_build(SECOND), build(store, SECOND, VNNI, before).model
    half = PROXY.half
    answers = OrtRuntime().load(build(store, SECOND, GENERIC, None).model).run(PROXY.inputs[:half])
    judge = Judge(PROXY.inputs[:half], PROXY.targets[:half], answers)
    assert STRICT.allows(judge(following), judge(own))


def test_a_later_fp32_artifact_is_the_one_before_and_coded_steps(store: BuildStore) -> None:
    before = build(store, FIRST, GENERIC, None).model
    following = build(store, SECOND, GENERIC, before)
    assert following.report.passed
    parity = next(one for one in following.report.results if one.gate == "parity")
    assert (parity.bound, parity.budget) == (Bound.AT_LEAST, 0.996)  # of agreement, on 250 rows
    own = build(store, SECOND, GENERIC, None)
    assert delta(before, following.model) < 0.3 * delta(before, own.model)
    assert build(store, SECOND, GENERIC, before).is_cached


def test_rounding_of_one_fp32_release_is_made_good_by_the_next(store: BuildStore) -> None:
    last = build(store, FIRST, GENERIC, None).model
    for epochs in (7, 8, 9):
        model = model_bytes(trained(epochs))
        own = convert.to_ort(onnx_of(model))
        before, last = last, build(store, model, GENERIC, last).model
        steps = steps_between(before, last, regions_of(before), regions_of(last))
        assert len(steps) >= 4
        for one in regions_of(last):
            if one.name in steps:
                released, master = (
                    np.frombuffer(data, "<f4", one.length // 4, one.offset) for data in (last, own)
                )
                assert np.abs(released - master).max() <= 0.51 * steps[one.name]


def test_fp32_steps_that_the_gates_refuse_give_way_to_the_own_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained = convert.to_ort(onnx_of(model_bytes(trained(0))))
    monkeypatch.setattr(
        "wildflower.ota.build.builder.coded_successor", lambda *_: (untrained, Precision.CODED)
    )
    found = build(BuildStore(tmp_path), SECOND, GENERIC, untrained)
    assert (found.model, found.report.passed) == (convert.to_ort(onnx_of(SECOND)), True)


def test_where_no_delta_can_be_made_the_own_fp32_build_goes_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> bytes:
        raise DeltaError("the delta does not give the new file")

    monkeypatch.setattr("wildflower.ota.build.choice.diff", broken)
    before, own = (convert.to_ort(onnx_of(one)) for one in (FIRST, SECOND))
    found = coded_successor(own, before, lambda _: Quality(1.0, 1.0))
    assert found == (own, Precision.FP32)


def test_an_artifact_of_another_recipe_is_not_followed(store: BuildStore) -> None:
    other = build(store, FIRST, GENERIC, None).model
    assert build(store, SECOND, VNNI, other).model == own_build(SECOND)


def test_a_successor_that_the_gates_refuse_gives_way_to_the_own_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained = own_build(model_bytes(trained(0)))
    monkeypatch.setattr("wildflower.ota.build.builder.successor", lambda *_, **__: untrained)
    found = build(BuildStore(tmp_path), SECOND, VNNI, untrained)
    assert (found.model, found.report.passed) == (own_build(SECOND), True)


@dataclass(frozen=True)
class Opinion:
    """A judge who knows what he thinks of each build."""

    known: dict[bytes, Quality]
    others: Quality

    def __call__(self, model: bytes) -> Quality:
        return self.known.get(model, self.others)

    def error(self, model: bytes) -> float:
        return float(len(model))


WORSE = {"in loss": Quality(1.02, 0.9), "in agreement": Quality(1.0, 0.899)}


@pytest.mark.parametrize("worse", WORSE.values(), ids=WORSE)
def test_a_first_release_is_made_ready_only_where_that_costs_nothing(worse: Quality) -> None:
    own, onnx = own_build(SECOND), onnx_of(SECOND)
    good = Quality(1.0, 0.9)
    assert successor(own, onnx, None, Opinion({own: good}, worse), reduce_range=False) == own
    ready = successor(own, onnx, None, Opinion({}, worse), reduce_range=False)
    assert ready == first(own, prepared(onnx), limit=127) != own


def test_a_judge_finds_the_loss_and_the_agreement(store: BuildStore) -> None:
    model = build(store, FIRST, GENERIC, None).model
    rows = PROXY.inputs[:20]
    outputs = OrtRuntime().load(model).run(rows)
    wrong = outputs.argmin(1)
    found = Judge(rows, wrong, outputs)(model)
    exps = np.exp(outputs.astype(np.float64))
    expected = -np.log(exps[np.arange(20), wrong] / exps.sum(1)).mean()
    assert found.loss == pytest.approx(expected)
    assert found.agreement == 1.0
    assert Judge(rows, wrong, -outputs)(model).agreement == 0.0


def test_more_certainty_than_enough_is_no_gain(store: BuildStore) -> None:
    model = build(store, FIRST, GENERIC, None).model
    rows = PROXY.inputs[:20]
    outputs = OrtRuntime().load(model).run(rows)
    assert Judge(rows, outputs.argmax(1), outputs)(model).loss == pytest.approx(CERTAIN, rel=0.5)


def test_an_error_is_the_distance_to_the_fp32_answers(store: BuildStore) -> None:
    model = build(store, FIRST, GENERIC, None).model
    rows = PROXY.inputs[:100]
    outputs = OrtRuntime().load(model).run(rows)
    assert Judge(rows, outputs.argmax(1), outputs).error(model) == pytest.approx(0, abs=1e-9)
    assert Judge(rows, outputs.argmax(1), outputs + 2).error(model) == pytest.approx(4)
    assert Judge(rows[:3], outputs[:3].argmax(1), outputs[:3] + 1).error(model) == pytest.approx(1)
