"""Figures of deltas over pairs of consecutive rounds; `benchmarks.ota` prints them.

Sizes are fractions of the whole new artifact under `xz -9`, as a server would store it otherwise.
Every delta is decoded and compared before its size counts. Which release lags as far as it may is
judged on the rows that the figures are from; in what order they are tried, on other ones. It must
agree with fp32 as often as the naive build or, where none does, as often up to chance.
"""

import hashlib
import lzma
import time
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import bsdiff4
import numpy as np
import numpy.typing as npt
import onnxruntime

from benchmarks._delta_models import Pair
from benchmarks._real_time import at_real_time
from wildflower.ota.build.choice import (
    Choice,
    Quality,
    Tolerance,
    Way,
    choose_fp32,
    choose_int8,
)
from wildflower.ota.build.followed import first
from wildflower.ota.build.quantise import prepared, quantised
from wildflower.ota.build.successor import NEAR
from wildflower.ota.delta.decode import decode
from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.fp32 import ready
from wildflower.ota.delta.onnx_segments import regions
from wildflower.ota.delta.segments import Kind, Region

LIMIT: Final = 127
NLL_SLACK: Final = 0.07  # of the naive build's loss
ROWS: Final = 64  # that tell which tensors may lag
REPEATS: Final = 5  # of a decoding; the fastest counts, for others use this machine too
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Measured:
    """What one pair came to; sizes are fractions of the whole under xz -9.

    Attributes:
        name: Of the pair.
        update: Size of the update relative to the weights, both as Euclidean norms.
        naive: Delta between the rounds' own int8 builds.
        bsdiff: The same by bsdiff4.
        naive_quality: Of the later build.
        made: How the release was made that the judge let pass.
        aware: Delta to the followed release.
        aware_quality: Of that release.
        noise: By how much the two qualities' agreements may differ by chance.
        coded: Delta to the coded fp32 release.
        coded_quality: Of that release.
        lossless: Delta between the fp32 models.
        coding: Bytes of the int8 tensors' delta over their order-0 entropy, tensor by tensor.
        seconds: CPU time to decode 10 MB, the slowest of the deltas.
        peak: MiB that decoding takes beside its inputs, the largest of the deltas.
    """

    name: str
    update: float
    naive: float
    bsdiff: float
    naive_quality: Quality
    made: str
    aware: float
    aware_quality: Quality
    noise: float
    coded: float
    coded_quality: Quality
    lossless: float
    coding: float
    seconds: float
    peak: float

    @property
    def loss_change(self) -> float:
        """Loss of the followed release relative to the naive build's, less 1."""
        return self.aware_quality.loss / self.naive_quality.loss - 1


def measure(pair: Pair) -> Measured:
    """Build both rounds in every way and measure the deltas."""
    masters = prepared(pair.before), prepared(pair.after)
    builds = [quantised(one, pair.calibration, reduce_range=False) for one in masters]
    judge = _Judge(pair)
    naive_quality = judge.quality(builds[1])
    may_tip = noise(naive_quality, naive_quality, pair.targets.size)
    base = first(builds[0], masters[0], limit=LIMIT)
    aware = _chosen(base, builds[1], masters[1], judge, may_tip)
    whole_before = ready(pair.before, regions(pair.before))
    coded = choose_fp32(whole_before, pair.after, judge=judge.quality, tolerance=NEAR)
    deltas = [
        (builds[0], builds[1], _delta(builds[0], builds[1])),
        (base, aware.model, aware.delta),
        (whole_before, coded.model, coded.delta),
        (pair.before, pair.after, _delta(pair.before, pair.after)),
    ]
    whole, whole_fp32 = (len(lzma.compress(one, preset=9)) for one in (builds[1], pair.after))
    naive, followed, by_steps, lossless = (len(delta) for _, _, delta in deltas)
    return Measured(
        name=pair.name,
        update=_update(pair),
        naive=naive / whole,
        bsdiff=len(bsdiff4.diff(builds[0], builds[1])) / whole,
        naive_quality=naive_quality,
        made=aware.knob or aware.way.value,
        aware=followed / whole,
        aware_quality=judge.quality(aware.model),
        noise=may_tip,
        coded=by_steps / whole_fp32,
        coded_quality=judge.quality(coded.model),
        lossless=lossless / whole_fp32,
        coding=_coding(builds[0], builds[1]),
        seconds=max(_seconds(*one) for one in deltas),
        peak=max(_peak(*one) for one in deltas),
    )


def _chosen(base: bytes, naive: bytes, master: bytes, judge: "_Judge", may_tip: float) -> Choice:
    """Return the release that agrees as often as the naive build; if none does, up to chance."""

    def choose(agreement: float) -> Choice:
        return choose_int8(
            base,
            naive,
            master,
            limit=LIMIT,
            judge=judge.quality,
            error=judge.error,
            tolerance=Tolerance(NLL_SLACK, agreement),
        )

    found = choose(0.0)
    return found if found.way is Way.FOLLOWED else choose(may_tip)


def figures(pairs: Iterable[Pair]) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """Return the figures of all pairs, and a row for each."""
    found = [measure(pair) for pair in pairs]
    ratios = [one.naive / one.bsdiff for one in found]
    aware = {f"aware_delta_fraction_{one.name.replace('-', '_')}": one.aware for one in found}
    margins = {one.aware_quality.agreement - one.naive_quality.agreement: one for one in found}
    values = {
        "int8_delta_vs_bsdiff4_max": max(ratios),
        "int8_delta_vs_bsdiff4_mean": sum(ratios) / len(ratios),
        **aware,
        "aware_nll_change": max(one.loss_change for one in found),
        "aware_agreement_over_naive": min(margins),
        "aware_agreement_noise": margins[min(margins)].noise,
        "fp32_release_fraction": max(one.coded for one in found),
        "fp32_release_agreement": min(one.coded_quality.agreement for one in found),
        "lossless_fp32_fraction": max(one.lossless for one in found),
        "int8_coding_vs_entropy": max(one.coding for one in found),
        "decode_s_per_10mb": max(one.seconds for one in found),
        "decode_peak_mib_over_input": max(one.peak for one in found),
    }
    return values, [(one.name, _row(one)) for one in found]


def _row(one: Measured) -> str:
    return (
        f"update {one.update:.1e}, int8 {one.naive:.4f} (bsdiff4 {one.bsdiff:.4f}, agreement "
        f"{one.naive_quality.agreement:.4f}), followed {one.aware:.4f} ({one.made}, loss "
        f"{one.loss_change:+.2%}, agreement {one.aware_quality.agreement:.4f}), fp32 steps "
        f"{one.coded:.4f} (agreement {one.coded_quality.agreement:.4f}), fp32 lossless "
        f"{one.lossless:.4f}, coding {one.coding:.3f}, decode {one.seconds:.3f} s/10 MB, "
        f"{one.peak:.2f} MiB"
    )


def noise(left: Quality, right: Quality, answers: int) -> float:
    """Return by how much two equally good builds' agreements may differ: two standard errors.

    Which close calls a rounding tips is chance, and two builds tip different ones.
    """
    missed = max(1 - (left.agreement + right.agreement) / 2, 1 / answers)
    return float(2 * np.sqrt(2 * missed / answers))


class _Judge:
    """Compares builds with the fp32 model of the later round."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._reference = self._answers(pair.after).argmax(axis=-1)
        self._known: dict[bytes, Quality] = {}

    def quality(self, model: bytes) -> Quality:
        """Return how good a build is; one that was judged before is not run again."""
        if model not in self._known:
            self._known[model] = self._judged(model)
        return self._known[model]

    def _judged(self, model: bytes) -> Quality:
        answers = self._answers(model).astype(np.float64)
        top = answers.max(axis=-1, keepdims=True)
        logs = answers - top - np.log(np.exp(answers - top).sum(axis=-1, keepdims=True))
        chosen = np.take_along_axis(logs, self._pair.targets[..., np.newaxis], axis=-1)
        agreement = (answers.argmax(axis=-1) == self._reference).mean()
        return Quality(float(-chosen.mean()), float(agreement))

    def error(self, model: bytes) -> float:
        """Return how far a build's answers to the rows that calibrate are from fp32."""
        rows = self._pair.calibration[:: max(1, len(self._pair.calibration) // ROWS)]
        difference = self._run(model, rows) - self._run(self._pair.after, rows)
        return float(np.square(difference.astype(np.float64)).mean())

    def _answers(self, model: bytes) -> npt.NDArray[Any]:
        return self._run(model, self._pair.inputs)

    @staticmethod
    def _run(model: bytes, rows: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return np.concatenate(
            [session.run(None, {"x": rows[at : at + 64]})[0] for at in range(0, len(rows), 64)]
        )


def _update(pair: Pair) -> float:
    """Return the size of the update relative to the weights."""
    known = {one.name: one for one in regions(pair.before) if one.kind is Kind.FLOAT32}
    moved = weights = 0.0
    for one in regions(pair.after):
        if one.kind is not Kind.FLOAT32 or one.name not in known:
            continue
        old, new = (
            np.frombuffer(data, "<f4", one.length // 4, there.offset).astype(np.float64)
            for data, there in ((pair.before, known[one.name]), (pair.after, one))
        )
        moved += float(((new - old) ** 2).sum())
        weights += float((old**2).sum())
    return float(np.sqrt(moved / weights))


def _delta(old: bytes, new: bytes) -> bytes:
    return diff(old, new, regions(old), regions(new))


def _coding(old: bytes, new: bytes) -> float:
    """Return the size of the int8 tensors' delta over the entropy of their differences."""
    known = {one.name: one for one in regions(old) if one.kind is Kind.BYTES}
    before, after = bytearray(), bytearray()
    there: list[Region] = []
    bits = 0.0
    for one in regions(new):
        other = known.get(one.name)
        if other is None or other.length != one.length or not one.name.endswith("_quantized"):
            continue
        left, right = old[other.offset : other.end], new[one.offset : one.end]
        there.append(Region(one.name, len(after), one.length, Kind.BYTES))
        before += left
        after += right
        difference = np.frombuffer(right, np.uint8) - np.frombuffer(left, np.uint8)
        counts = np.bincount(difference, minlength=256)
        shares = counts[counts > 0] / len(difference)
        bits -= float((shares * np.log2(shares)).sum()) * len(difference)
    return 8 * len(diff(bytes(before), bytes(after), there, there)) / bits


def _seconds(old: bytes, new: bytes, delta: bytes) -> float:
    digest = hashlib.sha256(new).hexdigest()
    best = float("inf")
    with at_real_time():
        for _ in range(REPEATS):
            start = time.process_time()
            decode(memoryview(old), memoryview(delta), len, target=digest, size=len(new))
            best = min(best, time.process_time() - start)
    return best * 1e7 / len(new)


def _peak(old: bytes, new: bytes, delta: bytes) -> float:
    digest = hashlib.sha256(new).hexdigest()
    tracemalloc.start()
    try:
        decode(memoryview(old), memoryview(delta), len, target=digest, size=len(new))
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()
