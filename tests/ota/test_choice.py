"""What an fp32 release is: of the last one and coded steps, by its own delta, or whole."""

import numpy as np
from onnx import helper, numpy_helper

from wildflower.ota.build.choice import Quality, Tolerance, Way, choose_fp32
from wildflower.ota.delta.fp32 import SHARES, coded_release, ready
from wildflower.ota.delta.tensors import regions_of

GOOD, BAD = Quality(1.0, 1.0), Quality(1.0, 0.99)
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(300, 40)).astype(np.float32)


def model(weights: np.ndarray) -> bytes:
    graph = helper.make_graph(
        [], "graph", [], [], initializer=[numpy_helper.from_array(weights, "w")]
    )
    return helper.make_model(graph).SerializeToString()


BEFORE = ready(model(WEIGHTS), regions_of(model(WEIGHTS)))
OWN = model(WEIGHTS + RNG.normal(0, 1e-3, WEIGHTS.shape).astype(np.float32))
READY = ready(OWN, regions_of(OWN))


def coded(share: float) -> bytes:
    return coded_release(BEFORE, OWN, regions_of(BEFORE), regions_of(OWN), share=share)


def test_the_first_release_goes_out_whole_and_ready() -> None:
    found = choose_fp32(None, OWN, judge=lambda _: GOOD)
    assert (found.way, found.model, found.delta) == (Way.WHOLE, READY, b"")


def test_the_largest_steps_that_the_judge_allows_are_released() -> None:
    refused = {coded(share) for share in SHARES[:2]}
    found = choose_fp32(
        BEFORE, OWN, judge=lambda data: BAD if data in refused else GOOD, tolerance=Tolerance(0, 0)
    )
    assert (found.way, found.model, found.knob) == (Way.FOLLOWED, coded(SHARES[2]), "steps 0.1875")
    assert len(found.delta) < 0.2 * len(found.model)


def test_where_no_steps_are_good_enough_the_own_build_goes_out_by_its_delta() -> None:
    found = choose_fp32(
        BEFORE, OWN, judge=lambda data: GOOD if data == OWN else BAD, tolerance=Tolerance(0, 0)
    )
    assert (found.way, found.model, found.knob) == (Way.NAIVE, READY, "")
    assert 0.2 < len(found.delta) / len(found.model) < 0.5  # steps of the grid: 16 bits at most


def test_a_delta_above_seven_tenths_of_the_whole_is_not_made() -> None:
    other = model(RNG.normal(size=WEIGHTS.shape).astype(np.float32) * 1e3)
    found = choose_fp32(
        BEFORE, other, judge=lambda data: GOOD if data == other else BAD, tolerance=Tolerance(0, 0)
    )
    assert (found.way, found.delta) == (Way.WHOLE, b"")


def test_a_model_of_another_shape_goes_out_whole() -> None:
    other = model(RNG.normal(size=(300, 50)).astype(np.float32))
    found = choose_fp32(BEFORE, other, judge=lambda _: GOOD)
    assert (found.way, found.model) == (Way.WHOLE, ready(other, regions_of(other)))


def test_a_release_of_another_format_is_not_followed() -> None:
    found = choose_fp32(b"no file that anybody knows", OWN, judge=lambda _: GOOD)
    assert (found.way, found.knob) == (Way.WHOLE, "")
