"""What an operator may ask of a training: its settings, their ranges, and what they default to.

    what is trained        epochs, batch_size, learning_rate, momentum, clip, seed
    with whom              quorum, cohort, selection, deadline_s, join_s, max_weight
    how updates are hidden protection, bits, corrupt, dropout, adversary, groups, rule
    what the model hides   dp, dp_noise, dp_norm, dp_delta, dp_epsilon, dp_count, dp_examples

`complete` is pure: it fills in the defaults and refuses what is unknown or out of range, by name.
"""

import difflib
from collections.abc import Mapping
from enum import StrEnum, unique
from types import MappingProxyType
from typing import Final

from wildflower.ota.release.method import NO_MECHANISM, Method
from wildflower.server.errors import SettingsError
from wildflower.strategies import combine
from wildflower.strategies.errors import StrategyError

Value = float | str


@unique
class Protection(StrEnum):
    """How updates are hidden from the server."""

    SECAGG = "secagg"
    ONE_SHOT = "one-shot"
    GROUPED = "grouped"
    HE = "he"
    PLAIN = "plain"


NUMBERS: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "quorum": (1, 1_000_000),
        "cohort": (0, 1_000_000),
        "deadline_s": (1, 604_800),
        "join_s": (0.1, 604_800),
        "max_weight": (1, 1e9),
        "seed": (0, 2**31),
        "clip": (1e-6, 1e6),
        "epochs": (1, 1000),
        "batch_size": (1, 65_536),
        "learning_rate": (1e-9, 1e3),
        "momentum": (0, 0.9999),
        "corrupt": (0, 0.49),
        "dropout": (0, 0.9),
        "groups": (3, 1000),
        "dp_noise": (1e-3, 1e4),
        "dp_norm": (1e-6, 1e6),
        "dp_delta": (1e-15, 0.1),
        "dp_epsilon": (0, 1e4),
        "dp_count": (1, 1e6),
        "dp_examples": (1, 1e9),
    }
)
"""Lowest and highest value of each number."""

CHOICES: Final[Mapping[str, tuple[Value, ...]]] = MappingProxyType(
    {
        "bits": (16, 32),
        "protection": tuple(each.value for each in Protection),
        "adversary": ("curious", "semi-malicious"),
        "rule": ("median", "trimmed-mean"),
        "selection": ("all", "fixed", "poisson"),
        "dp": ("none", "central", "central-adaptive", "distributed", "local", "ftrl", "dpsgd"),
    }
)
"""What may be chosen, the default first."""

DEFAULTS: Final[Mapping[str, Value]] = MappingProxyType(
    {
        "quorum": 3,
        "cohort": 0,
        "deadline_s": 600.0,
        "join_s": 120.0,
        "max_weight": 10_000.0,
        "seed": 0,
        "bits": 32,
        "protection": "secagg",
        "corrupt": 0.1,
        "dropout": 0.1,
        "adversary": "curious",
        "selection": "all",
        "groups": 3,
        "rule": "median",
        "dp": "none",
        "dp_noise": 1.0,
        "dp_norm": 1.0,
        "dp_delta": 1e-5,
        "dp_epsilon": 0.0,
        "dp_count": 100.0,
        "dp_examples": 100,
    }
)
"""`cohort` 0 draws every device; `corrupt` and `dropout` are shares of the cohort; `dp_epsilon` 0
is no budget; `dp_count` bounds each count that a device reports under differential privacy, and
`dp_examples` is the fewest that a device trains on by DP-SGD; `rule` is what grouped rounds make of
their groups' means."""


def complete(own: Mapping[str, Value], asked: Mapping[str, Value]) -> dict[str, Value]:
    """Return the settings of a training.

    Args:
        own: The server's own, where they differ from `DEFAULTS`.
        asked: What the operator asks for.

    Raises:
        SettingsError: A setting is unknown or out of range; names it and what is allowed.
    """
    for name, value in asked.items():
        _check(name, value)
    settings = {**DEFAULTS, **own, **asked}
    if settings["cohort"] and "selection" not in {**own, **asked}:
        settings["selection"] = "fixed"
    if settings["selection"] != "all" and not settings["cohort"]:
        raise SettingsError(
            f"selection = {settings['selection']!r} draws a cohort, and cohort = 0 is everybody",
            hint="Set cohort to how many devices a round shall have.",
        )
    if settings["dp"] == "dpsgd":
        if missing := [key for key in ("epochs", "batch_size") if key not in settings]:
            raise SettingsError(
                f"dp = 'dpsgd' is accounted by its steps, and {' and '.join(missing)} are not set",
                hint="Set epochs and batch_size, and dp_examples to the fewest of any device.",
            )
        settings["max_weight"] = 1.0  # a device's number of examples stays with it
    _require_together(settings)
    return settings


def method_of(settings: Mapping[str, Value]) -> Method:
    """Return how rounds of these settings make a model, in the words of `strategies.options`."""
    known = {**DEFAULTS, **settings}  # what was stored before a setting was there lacks it
    mechanism, protection, rule = (str(known[key]) for key in ("dp", "protection", "rule"))
    robust = {"median": "fedmedian"}.get(rule, rule)
    units = {NO_MECHANISM: "", "dpsgd": "example"}
    return Method(
        algorithm=robust if protection == Protection.GROUPED else "fedavg",
        protection=protection,
        mechanism=mechanism,
        unit=units.get(mechanism, "device"),
    )


def _require_together(settings: Mapping[str, Value]) -> None:
    """Refuse what does not go together, before anything is stored.

    Raises:
        SettingsError: The combination would not give what it promises.
    """
    method, selection = method_of(settings), str(settings["selection"])
    weighting = "by-examples" if method.mechanism == NO_MECHANISM else "equal"
    try:
        combine.require(method.protection, selection, method.mechanism, weighting, method.algorithm)
    except StrategyError as error:
        raise SettingsError(str(error), hint=error.hint) from error


def _check(name: str, value: Value) -> None:
    if name in CHOICES:
        if isinstance(value, bool) or value not in CHOICES[name]:
            raise SettingsError(
                f"{name} = {value!r}: allowed is one of {', '.join(map(str, CHOICES[name]))}",
                hint=_nearest(str(value), [str(each) for each in CHOICES[name]]),
            )
        return
    if name not in NUMBERS:
        known = sorted({*NUMBERS, *CHOICES})
        raise SettingsError(
            f"a training has no setting {name!r}",
            hint=_nearest(name, known) or f"Known: {', '.join(known)}.",
        )
    low, high = NUMBERS[name]
    if isinstance(value, bool | str) or not low <= value <= high:
        raise SettingsError(f"{name} = {value!r}: allowed is {low:g} to {high:g}")


def _nearest(name: str, known: list[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {found[0]!r}?" if found else ""
