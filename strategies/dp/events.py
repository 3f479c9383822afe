"""What a mechanism released, in the terms that privacy is accounted in.

    event     | one round of it adds up                     | noise
    Gaussian  | updates of L2 norm at most S                | N(0, (z S)^2) on every element
    Skellam   | integers of L2 norm at most l2, L1 at most l1 | variance (z l2)^2 on every element
    Tree      | as Gaussian, but on the nodes of a binary tree over the rounds

The noise multiplier z is always relative to what ONE unit can ADD (its clipping norm S). Replacing
a unit by another moves the sum by up to 2 S; the accounting doubles the sensitivity itself.

An event is what really happened: a round of a distributed mechanism is accounted by the noise of
its real survivors (`distributed.SkellamEncoding.event`), not by what was planned.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum, unique
from typing import Any, Final

from wildflower.strategies.dp import limits
from wildflower.strategies.errors import StoredStateError


@unique
class Relation(StrEnum):
    """When two data sets are neighbours, so that nobody may tell them apart.

    The unit that is added, removed or replaced is a device with all its data, or an example,
    as the ledger says.
    """

    ADD_REMOVE = "add-remove"
    REPLACE = "replace"


@unique
class Scheme(StrEnum):
    """How a round's cohort is drawn."""

    NONE = "none"
    POISSON = "poisson"
    WITHOUT_REPLACEMENT = "without-replacement"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a cohort is drawn, which hides who was in it.

    It hides it from those who see the model only, never from the server that drew the cohort:
    against that server account with `EVERYONE`.

    Attributes:
        scheme: Independent coins (`POISSON`), a fixed number (`WITHOUT_REPLACEMENT`), or none.
        cohort: Expected (Poisson) or exact size of a cohort.
        population: How many it is drawn from.
    """

    scheme: Scheme = Scheme.NONE
    cohort: int = 1
    population: int = 1

    def __post_init__(self) -> None:
        """Refuse what is no sampling."""
        if self.scheme not in set(Scheme):
            raise ValueError(f"sampling is {self.scheme!r}, allowed are {', '.join(Scheme)}")
        limits.whole("population", self.population, 1, limits.MAX_POPULATION)
        limits.whole("cohort", self.cohort, 1, self.population)

    @property
    def rate(self) -> float:
        """Share of the population in a cohort, within (0, 1]."""
        return 1.0 if self.scheme is Scheme.NONE else self.cohort / self.population


EVERYONE: Final = Sampling()
"""No sampling, or none that is counted on."""


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Sums of clipped updates with Gaussian noise.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        rounds: How many such sums.
        sampling: How each cohort was drawn.
    """

    noise_multiplier: float
    rounds: int = 1
    sampling: Sampling = EVERYONE

    def __post_init__(self) -> None:
        """Refuse parameters that make no sense."""
        limits.noise_multiplier(self.noise_multiplier)
        limits.whole("rounds", self.rounds, 0, limits.MAX_ROUNDS)


@dataclass(frozen=True, slots=True)
class Skellam:
    """Sums of clipped integer vectors with Skellam noise.

    Attributes:
        noise_multiplier: Standard deviation of the sum's noise over `l2`.
        l2: Largest L2 norm of one contribution, in integer units; at least 1.
        l1: Largest L1 norm of one contribution.
        rounds: How many such sums.
        sampling: How each cohort was drawn.
    """

    noise_multiplier: float
    l2: float
    l1: float
    rounds: int = 1
    sampling: Sampling = EVERYONE

    def __post_init__(self) -> None:
        """Refuse parameters that make no sense."""
        limits.noise_multiplier(self.noise_multiplier)
        limits.number("l2", self.l2, 1.0, 1e15)
        limits.number("l1", self.l1, self.l2, 1e30)
        limits.whole("rounds", self.rounds, 0, limits.MAX_ROUNDS)


@dataclass(frozen=True, slots=True)
class Tree:
    """Prefix sums with Gaussian noise on the nodes of a binary tree over the rounds.

    It holds if a unit takes part at most once in each tree; then it touches at most
    `levels` nodes.

    Attributes:
        noise_multiplier: Standard deviation of one node's noise over the clipping norm.
        steps: Rounds of one tree.
        rounds: How many trees, one for every restart.
    """

    noise_multiplier: float
    steps: int
    rounds: int = 1

    def __post_init__(self) -> None:
        """Refuse parameters that make no sense."""
        limits.noise_multiplier(self.noise_multiplier)
        limits.whole("steps", self.steps, 1, limits.MAX_ROUNDS)
        limits.whole("rounds", self.rounds, 0, limits.MAX_ROUNDS)

    @property
    def levels(self) -> int:
        """Largest number of complete nodes that one step lies under."""
        return self.steps.bit_length()


Event = Gaussian | Skellam | Tree
"""One kind of release, `rounds` times."""

MECHANISMS: Final[Mapping[str, type[Gaussian | Skellam | Tree]]] = {
    "gaussian": Gaussian,
    "skellam": Skellam,
    "tree": Tree,
}


def times(event: Event, rounds: int) -> Event:
    """Return the event, `rounds` times as often."""
    return replace(event, rounds=event.rounds * rounds)


def to_fields(event: Event) -> dict[str, str | int | float]:
    """Return the stored form, flat; `from_fields(to_fields(e)) == e`."""
    found: dict[str, Any] = asdict(event)
    sampling = found.pop("sampling", None)
    if sampling is not None:
        found |= {**sampling, "scheme": str(sampling["scheme"])}
    name = next(name for name, kind in MECHANISMS.items() if kind is type(event))
    return {"mechanism": name, **found}


def from_fields(stored: Mapping[str, object]) -> Event:
    """Parse what `to_fields` wrote.

    Raises:
        StoredStateError: Not an event.
    """
    values: dict[str, Any] = dict(stored)
    kind = MECHANISMS.get(str(values.pop("mechanism", "")))
    if kind is None:
        raise StoredStateError(f"not a privacy event: mechanism {stored.get('mechanism')!r:.80}")
    try:
        if "sampling" in _names(kind):
            drawn = [values.pop(name) for name in _names(Sampling)]
            values["sampling"] = Sampling(Scheme(drawn[0]), *drawn[1:])
        return kind(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise StoredStateError(f"not a privacy event: {error}") from error


def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind))
