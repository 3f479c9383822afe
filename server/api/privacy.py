"""What the population has given up of its privacy, and whom it has to trust."""

from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from fastapi import APIRouter

from wildflower.server.api.desk import Desk, DeskHere
from wildflower.server.api.privacy_views import (
    PrivacySubjectView,
    PrivacyTotalView,
    PrivacyView,
)
from wildflower.server.ledger import StoredLedger
from wildflower.server.records import Training
from wildflower.strategies.dp.accounting import method_of
from wildflower.strategies.dp.events import Event, Gaussian, Skellam, Tree
from wildflower.strategies.ledger import Entry, Ledger, Total, Unit

router = APIRouter()

BUDGET: Final = "dp_epsilon"
"""Setting of a training: the largest epsilon that its total may reach."""

PROFILES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "single": (
            "Profile single: secure aggregation hides updates from logs, databases, backups and"
            " operators without root. Whoever owns this host also holds the enrolment CA, and could"
            " take part with devices of their own."
        ),
        "split": (
            "Profile split: the enrolment CA is on another host. Whoever owns this one cannot take"
            " part with devices of their own; both hosts together could."
        ),
        "demo": (
            "Profile demo: every key, the offline ones too, is on this host. It protects against"
            " nobody who can read it."
        ),
    }
)
MECHANISMS: Final[Mapping[type[Event], str]] = MappingProxyType(
    {
        Gaussian: (
            "Gaussian noise of a sum is added by this server: it sees the sums before, and is"
            " trusted to add the noise. Epsilon is what everybody else can learn from the models."
        ),
        Tree: (
            "Tree noise is added by this server too, and its seed is stored here. It counts on no"
            " sampling, but on each device taking part at most once in a tree."
        ),
        Skellam: (
            "Skellam noise is added by the devices: this server sees noisy sums only, as long as"
            " the devices that were counted kept their part of the noise to themselves."
        ),
    }
)
EXAMPLES: Final = (
    "What hides examples is done on each device by DP-SGD; a device that holds many examples of one"
    " person does not hide that person."
)
NOTHING: Final = (
    "Nothing is differentially private yet: models may reveal what they were trained on."
)


@router.get("/privacy")
def get_privacy(desk: DeskHere) -> PrivacyView:
    """Return the ledger's totals, what is left of budgets, and whom that asks to trust."""
    ledger = StoredLedger(desk.store).read()
    profile = desk.status().profile
    return PrivacyView(
        profile=profile,
        trust=[PROFILES.get(profile, f"Profile {profile}."), *_trust(ledger)],
        totals=[_total(desk, ledger, total) for total in ledger.totals()],
        subjects=list(_subjects(ledger)),
    )


def _trust(ledger: Ledger) -> Iterator[str]:
    entries = ledger.entries
    if not entries:
        yield NOTHING
    devices = {type(each.event) for each in entries if each.total.unit is Unit.DEVICE}
    yield from (text for kind, text in MECHANISMS.items() if kind in devices)
    if any(each.total.unit is Unit.EXAMPLE for each in entries):
        yield EXAMPLES


def _total(desk: Desk, ledger: Ledger, total: Total) -> PrivacyTotalView:
    entries = [each for each in ledger.entries if each.total == total]
    epsilon, budget = ledger.spent(total), _budget(desk, entries)
    return PrivacyTotalView(
        unit=total.unit.value,
        relation=total.relation.value,
        delta=total.delta,
        epsilon=epsilon,
        method=method_of([each.event for each in entries]).value,
        releases=len(entries),
        purposes=dict(Counter(each.purpose.value for each in entries)),
        budget=budget,
        left=None if budget is None else max(0.0, budget - epsilon),
    )


def _budget(desk: Desk, entries: list[Entry]) -> float | None:
    """Return the budget of the latest training that added to a total."""
    for subject in dict.fromkeys(each.subject for each in reversed(entries)):
        training = desk.store.get(Training, subject)
        if training is not None:
            found = training.settings.get(BUDGET)
            return float(found) if found else None  # 0 is no limit
    return None


def _subjects(ledger: Ledger) -> Iterator[PrivacySubjectView]:
    for total, subject in dict.fromkeys((each.total, each.subject) for each in ledger.entries):
        yield PrivacySubjectView(
            subject=subject,
            unit=total.unit.value,
            relation=total.relation.value,
            delta=total.delta,
            epsilon=ledger.spent(total, subject=subject),
            releases=len(ledger.events(total, subject=subject)),
        )
