"""The form of an option: what it needs from the others, what it offers and what it reveals.

An option is one choice of a kind: an algorithm, a protection, a privacy mechanism, a selection of
devices, a weighting. It declares

* `offers`   facts that it makes true, such as "updates add up modulo a power of two"
* `needs`    facts that it needs an option of another kind to make true
* `reveals`  what it lets the server see
* `limits`   what no other option may reveal where it is used

and nothing else says what goes together: `wildflower.strategies.combine` computes it from these.
"""

from dataclasses import dataclass, field
from enum import StrEnum, unique


@unique
class Kind(StrEnum):
    """What an option decides about; a combination has at most one option of each."""

    ALGORITHM = "algorithm"
    PROTECTION = "protection"
    PRIVACY = "privacy"
    SELECTION = "selection"
    WEIGHTING = "weighting"


@unique
class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    REFUSED = "refused"


@unique
class Fact(StrEnum):
    """What an option can make true."""

    SINGLE_UPDATES = "the server can look at each device's update"
    SEVERAL_VECTORS = "the server has several vectors to compare"
    TRUE_SUM = "what comes of a round is the sum of the updates"
    RESIDUES = "updates add up as integers modulo a power of two"
    MEAN = "the step is a function of the mean update"
    FIXED_GAIN = "the size of a step does not depend on earlier rounds' noise"
    VECTORS = "an update is one vector of numbers"
    WEIGHTED = "updates count by their weights"
    INDEPENDENT = "each device is drawn by a coin of its own"
    BY_CHANCE = "chance decides who takes part in a round"
    EQUAL = "every device counts the same"


@unique
class Exposure(StrEnum):
    """What an option can let the server see."""

    EACH_UPDATE = "each device's update"
    EACH_LOSS = "each device's loss"
    GROUP_SUMS = "the sum of each group of devices"
    COHORT_SUM = "the sum over the cohort"
    COUNTS = "numbers of examples, exactly"
    TRACES = "traces of single devices' data, in the models"


@dataclass(frozen=True, slots=True)
class Need:
    """A fact that an option of another kind has to make true.

    Attributes:
        fact: The fact.
        of: The kind whose option decides.
        because: Why, as a sentence's second half: "krum: ...".
        instead: What to use where it is not true.
        level: What it means if it is not.
    """

    fact: Fact
    of: Kind
    because: str
    instead: str
    level: Level = Level.REFUSED


@dataclass(frozen=True, slots=True)
class Limit:
    """What no other option may reveal.

    Attributes:
        exposure: What must stay unseen.
        because: Why, as a sentence's second half.
        instead: What to use where it is seen.
        level: What it means if it is seen.
    """

    exposure: Exposure
    because: str
    instead: str
    level: Level = Level.REFUSED


@dataclass(frozen=True, slots=True)
class Option:
    """One choice of a kind.

    Attributes:
        name: What a user writes; lower case.
        kind: What it decides about.
        summary: What it does, in one line.
        offers: Facts that it makes true.
        needs: Facts that it needs of other kinds' options.
        reveals: What it lets the server see.
        limits: What no other option may reveal.
        trusts: Who must be honest for it to keep its promise; "" if that is not its business.
    """

    name: str
    kind: Kind
    summary: str
    offers: frozenset[Fact] = field(default=frozenset())
    needs: tuple[Need, ...] = ()
    reveals: frozenset[Exposure] = field(default=frozenset())
    limits: tuple[Limit, ...] = ()
    trusts: str = ""
