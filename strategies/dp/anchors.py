"""Epsilons that others published, and what our accounting finds for them.

Papers and libraries before 2020 converted RDP by Mironov's proposition 3; their numbers come out
of that conversion, and tighter ones of today's. Each anchor says which it is compared under.
The benchmark counts the reproduced ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from wildflower.strategies.dp.accounting import Method, epsilon_from_rdp, epsilon_of, rdp_of
from wildflower.strategies.dp.calibration import Budget, noise_for
from wildflower.strategies.dp.events import Gaussian, Sampling, Scheme

CLASSIC_ORDERS: Final = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64))
"""The orders that TF-privacy's tutorials and Opacus use."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """One published figure.

    Attributes:
        source: Who published it.
        setting: Of what.
        published: The figure as printed.
        found: The figure as computed here.
        tolerance: Largest relative difference.
    """

    source: str
    setting: str
    published: float
    found: float
    tolerance: float

    @property
    def is_reproduced(self) -> bool:
        """True if the two figures agree within the tolerance."""
        return abs(self.found - self.published) <= self.tolerance * self.published


_Compute = Callable[[], float]


def anchors() -> tuple[Anchor, ...]:
    """Return all anchors, computed now; takes a few seconds."""
    return tuple(
        Anchor(source, setting, published, compute(), tolerance)
        for source, setting, published, compute, tolerance in _PUBLISHED
    )


def _sampled(noise: float, batch: int, examples: int, steps: int) -> Gaussian:
    return Gaussian(noise, steps, Sampling(Scheme.POISSON, batch, examples))


def _classic(noise: float, epochs: int) -> _Compute:
    """MNIST by DP-SGD: 60,000 examples in batches of 256."""
    event = _sampled(noise, 256, 60_000, epochs * 60_000 // 256)
    return lambda: epsilon_from_rdp(
        rdp_of([event], CLASSIC_ORDERS), CLASSIC_ORDERS, 1e-5, classic=True
    )


_OPACUS: Final = _sampled(1.5, 4, 100, 2250)


def _opacus_rdp() -> float:
    curve = np.array([_exact_rdp(_OPACUS, order) for order in CLASSIC_ORDERS])
    return epsilon_from_rdp(curve, CLASSIC_ORDERS, 1e-5)


def _exact_rdp(event: Gaussian, order: float) -> float:
    """Return the Rényi divergence at one order, as Opacus does.

    dp-accounting interpolates between integer orders, which is an upper bound 3e-5 above this.
    The integral of Mironov, Talwar and Zhang 2019, equation 3, by the trapezoidal rule, which
    converges exponentially for an analytic integrand.
    """
    noise, rate = event.noise_multiplier, event.sampling.rate
    points, step = np.linspace(-12 * noise, order + 12 * noise, 20_001, retstep=True)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * points - 1) / (2 * noise**2))
    logs = order * ratio - points**2 / (2 * noise**2)
    largest = float(logs.max())
    integral = float(np.exp(logs - largest).sum()) * step / (noise * math.sqrt(2 * math.pi))
    return event.rounds * (largest + math.log(integral)) / (order - 1)


def _opacus_noise() -> float:
    budget = Budget(8.0, 1e-5, method=Method.RDP)
    return noise_for(lambda noise: [_sampled(noise, 4, 100, 2250)], budget)


_TF: Final = "TF-privacy tutorials, classic RDP conversion"
_BU: Final = "Bu et al. 2020, classic RDP conversion"
_PUBLISHED: Final[tuple[tuple[str, str, float, _Compute, float], ...]] = (
    (_TF, "z=1.12, 60 epochs", 2.92, _classic(1.12, 60), 0.003),
    (_TF, "z=0.6, 30 epochs", 9.74, _classic(0.6, 30), 0.003),
    (_TF, "z=1.2, 10 epochs", 1.20, _classic(1.2, 10), 0.003),
    # printed with two digits, of a number of steps that the paper rounds in its own way
    (_BU, "z=1.3, 20 epochs", 1.34, _classic(1.3, 20), 0.01),
    (_BU, "z=0.7, 70 epochs", 8.68, _classic(0.7, 70), 0.003),
    ("Opacus tests, RDP", "z=1.5, q=0.04, 2250 steps", 7.32911117143, _opacus_rdp, 1e-9),
    ("Opacus tests, noise for epsilon 8", "q=0.04, 2250 steps", 1.416, _opacus_noise, 0.003),
    (
        "Opacus tests, PRV (ours is PLD)",
        "z=1.5, q=0.04, 2250 steps",
        6.777,
        lambda: epsilon_of([_OPACUS], delta=1e-5),
        0.003,
    ),
)
