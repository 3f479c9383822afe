"""What the operators' API tells of the privacy ledger; the command line reads the same values."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrivacyTotalView:
    """What releases of one unit, relation and delta have cost together.

    Attributes:
        unit: What they hide: "device" or "example".
        relation: Which data sets are neighbours.
        delta: At which epsilon is told.
        epsilon: What they amount to.
        method: How it was computed: "pld" or "rdp".
        releases: How many there were.
        purposes: How many of them were for what.
        budget: The largest epsilon that the latest training allows itself; None for no limit.
        left: What is left of it.
    """

    unit: str
    relation: str
    delta: float
    epsilon: float
    method: str
    releases: int
    purposes: dict[str, int]
    budget: float | None
    left: float | None


@dataclass(frozen=True, slots=True)
class PrivacySubjectView:
    """What one training, or another subject, has cost alone."""

    subject: str
    unit: str
    relation: str
    delta: float
    epsilon: float
    releases: int


@dataclass(frozen=True, slots=True)
class PrivacyView:
    """What this server's population has given up, and whom it has to trust.

    Attributes:
        profile: Who holds which keys.
        trust: What that profile protects against, and what each mechanism in the ledger asks.
        totals: By what is hidden; they do not compose with each other.
        subjects: By training.
    """

    profile: str
    trust: list[str]
    totals: list[PrivacyTotalView]
    subjects: list[PrivacySubjectView]
