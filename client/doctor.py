"""`wildflower agent doctor`: how a device is, in plain words, and what to do about it.

Each check judges values, so that a test can show it a device it dislikes; `client.examination`
reads those values. A check that is not content says what is wrong and by which rule, what goes on
all the same (on a device that is most often the model), and what to do.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from wildflower.client.history import PHASES
from wildflower.client.hold import Hold
from wildflower.client.owner import Owner
from wildflower.doctor import Check, State
from wildflower.ota.device import probation
from wildflower.ota.device.acceptance import Demands, Rejection
from wildflower.ota.device.conditions import Answer, Verdict
from wildflower.ota.device.decision import Setback
from wildflower.ota.device.machine import Phase
from wildflower.ota.device.machine import State as UpdateState
from wildflower.ota.device.slots import MARGIN
from wildflower.ota.release.manifest import Release

SOON: Final = timedelta(days=14)
"""Before its certificate ends a device should have been given another one."""
QUIET: Final = 10
"""Turns that an agent may miss before it is said to be stuck; a long download takes some."""
LEAST_QUIET_S: Final = 600.0
LAST_YEAR: Final = 2100  # a clock beyond it has lost its battery
MANY_REPORTS: Final = 100
START: Final = "Start it: systemctl start wildflower-agent, or wildflower agent run --dir DIR."


def check_agent(
    *, is_running: bool, last_turn: datetime | None, now: datetime, poll_s: float
) -> Check:
    """Judge the agent's process.

    Args:
        is_running: Whether it holds the directory.
        last_turn: When it last wrote its status; None for never.
        now: The time.
        poll_s: How often it looks.
    """
    if not is_running:
        found = "does not run: updates and reports wait; what is installed answers all the same"
        return Check("agent", State.WARN, found, START)
    if last_turn is None:
        return Check("agent", State.OK, "has just been started")
    age_s = (now - last_turn).total_seconds()
    if age_s > max(QUIET * poll_s, LEAST_QUIET_S):
        found = f"runs, but has told nothing for {age_s / 60:.0f} minutes"
        advice = (
            "It may be in a long download: see its log. If it is stuck, restart it; what is "
            "installed answers all the same."
        )
        return Check("agent", State.WARN, found, advice)
    return Check("agent", State.OK, f"runs, last looked around {max(age_s, 0):.0f} s ago")


def check_model(running: str, release: Release | None, *, is_intact: bool, fallback: str) -> Check:
    """Judge what the device runs.

    Args:
        running: Digest that `current` names; "" for none.
        release: Its manifest, if it can be read.
        is_intact: Whether every byte of its slot is what was signed.
        fallback: Digest of an intact slot to answer in its place; "" for none.
    """
    if not running:
        advice = "The agent installs the first release that a rollout offers; see `agent history`."
        return Check("model", State.WARN, "none is installed yet: nothing can answer", advice)
    if release is not None and is_intact:
        found = f"{release.model_name} {release.order} ({running[:12]}), every byte as signed"
        return Check("model", State.OK, found)
    answers = f"{fallback[:12]} answers in its place" if fallback else "nothing can answer"
    advice = (
        "The agent installs it again by itself when a source can be reached. Look at the disk: "
        "files do not change on their own."
    )
    found = f"{running[:12]} is not what was signed any more; {answers}"
    return Check("model", State.WARN if fallback else State.FAIL, found, advice)


def check_fallback(before: str, *, is_intact: bool) -> Check:
    """Judge what the device would go back to.

    Args:
        before: Digest of the release to go back to; "" for none.
        is_intact: Whether every byte of its slot is what was signed.
    """
    if not before:
        return Check("way back", State.OK, "none yet: there was no earlier release")
    if is_intact:
        return Check("way back", State.OK, f"{before[:12]}, every byte as signed")
    advice = (
        "What runs goes on. The agent fetches again what is damaged, as soon as your rules and a "
        "source allow. Look at the disk: files do not change on their own."
    )
    return Check("way back", State.WARN, f"{before[:12]} is damaged", advice)


def check_update(
    state: UpdateState,
    setbacks: Mapping[str, Setback],
    waiting: Sequence[str],
    now: datetime,
    *,
    reasons: Mapping[str, str] = MappingProxyType({}),
    healthy_s: float = 0.0,
) -> Check:
    """Say what is under way, and what it waits for.

    Args:
        state: The update's state.
        setbacks: Releases that could not be installed, by digest.
        waiting: What keeps a new release from taking over, each in a sentence.
        now: The time.
        reasons: Why they could not, by digest.
        healthy_s: Seconds for which a release on probation was seen to do well.
    """
    if state.phase is not Phase.IDLE:
        found = f"the device {PHASES[state.phase]} {state.digest[:12]}{_trial(state, healthy_s)}"
        if waiting:
            return Check("update", State.OK, f"{found}; it waits: {'; '.join(waiting)}")
        if state.wakes > 1:
            advice = (
                "What ran before goes on until it is through. Look in the log for what ends the "
                "agent, or at the power supply."
            )
            return Check("update", State.WARN, f"{found}, after {state.wakes} restarts", advice)
        return Check("update", State.OK, found)
    if not setbacks:
        return Check("update", State.OK, "nothing is under way")
    told = [_setback(digest, one, reasons.get(digest, ""), now) for digest, one in setbacks.items()]
    advice = "What runs goes on. `wildflower agent history` tells the whole story."
    return Check("update", State.WARN, "; ".join(told), advice)


def _trial(state: UpdateState, healthy_s: float) -> str:
    """Return how far a probation has come; "" outside one."""
    if state.release is None or state.since is None or state.phase is not Phase.PROBATION:
        return ""
    budget = state.release.trial
    until = probation.deadline(budget, state.since)
    return (
        f": {healthy_s:.0f} of {budget.probation_s} healthy seconds were seen; without the rest "
        f"by {until:%F %R} UTC it is taken back"
    )


def _setback(digest: str, one: Setback, reason: str, now: datetime) -> str:
    again = "at the next look" if one.retry_at() <= now else f"at {one.retry_at():%F %R} UTC"
    why = f": {reason}" if reason else ""
    times = "once" if one.count == 1 else f"{one.count} times"
    return f"{digest[:12]} could not be installed, {times}{why}; if it is offered, again {again}"


def check_quarantine(quarantined: Mapping[str, str]) -> Check:
    """Say which releases this device will never try again, and why."""
    if not quarantined:
        return Check("quarantine", State.OK, "empty")
    told = [f"{digest[:12]}: {reason}" for digest, reason in quarantined.items()]
    advice = (
        "What ran before them goes on. They are never tried again here; a new release of the "
        "model is what helps."
    )
    return Check("quarantine", State.WARN, "; ".join(told), advice)


def check_owner(owner: Owner, running: str) -> Check:
    """Say what the owner decided, and what it keeps from happening."""
    if owner.paused:
        advice = "What runs goes on. `wildflower agent resume` lets new releases in again."
        return Check("owner", State.WARN, f"paused: {owner.paused}", advice)
    if not owner.pinned:
        return Check("owner", State.OK, "neither paused nor pinned")
    advice = "What runs goes on. `wildflower agent unpin` lets other releases in again."
    if owner.pinned != running:
        found = f"pinned to {owner.pinned[:12]}, which does not run"
        return Check("owner", State.WARN, found, advice)
    return Check("owner", State.OK, f"pinned to {owner.pinned[:12]}, which runs", advice)


def check_fetching(answer: Answer) -> Check:
    """Say whether the owner's rules let releases be fetched; a rule that applies is no fault."""
    if answer.verdict is Verdict.ALL:
        return Check("fetching", State.OK, "allowed now")
    advice = "policy.toml says so: `metered`, `battery_min`, `window`."
    return Check("fetching", State.OK, f"waits: {answer.reason}", advice)


def check_acceptance(demands: Demands, rejection: Rejection | None, now: datetime) -> Check:
    """Say what the owner demands of where releases come from, and which one that keeps out.

    Args:
        demands: The owner's.
        rejection: The last release that was not accepted; None for none.
        now: The time.
    """
    if rejection is not None and rejection.stands(
        rejection.rollout, rejection.release, demands, now
    ):
        found = f"{rejection.release[:12]} is not installed: {rejection.reason}; what runs goes on"
        advice = (
            "policy.toml says so: `max_epsilon`, `min_clients`, `strategies`. The server was told; "
            "wait for a release that is as demanded, or change the line and restart the agent."
        )
        return Check("provenance", State.WARN, found, advice)
    return Check("provenance", State.OK, str(demands) or "wherever a signed release comes from")


def check_holds(holds: Sequence[Hold]) -> Check:
    """Say which applications keep the model as it is for the moment."""
    return Check("holds", State.OK, "; ".join(map(str, holds)) or "nobody holds the model")


def check_time(now: datetime, seen: datetime | None) -> Check:
    """Judge the clock against what was signed.

    Args:
        now: What the system says.
        seen: When signed metadata was last found fresh; None for never.
    """
    found = f"{now:%F %R} UTC"
    advice = "Set it, for example with NTP; the model runs whatever the time is."
    if now.year >= LAST_YEAR:
        return Check(
            "clock", State.FAIL, f"{found}: metadata and certificates look expired", advice
        )
    if seen is not None and now < seen:
        behind = f"{found}, behind {seen:%F %R} UTC, when signed metadata was fresh"
        return Check("clock", State.WARN, f"{behind}; the agent takes the later one", advice)
    return Check("clock", State.OK, found)


def check_space(free: int, largest: int) -> Check:
    """Judge the disk: the next release is expected to be about as large as the largest one here.

    Args:
        free: Free bytes.
        largest: Bytes of the largest release on the device.
    """
    needed = 2 * largest + MARGIN  # its download and its slot
    found = f"{free / 1e6:.0f} MB free, the next update takes about {needed / 1e6:.0f} MB"
    if free >= needed:
        return Check("disk", State.OK, found)
    advice = "Free some space. What runs goes on; the update is tried again by itself."
    return Check("disk", State.FAIL, found, advice)


def check_certificate(until: datetime, now: datetime) -> Check:
    """Judge the device's certificate.

    Args:
        until: When it ends.
        now: The time; one that cannot be right judges nothing.
    """
    if now.year >= LAST_YEAR:
        found = f"ends on {until:%F}; whether it has cannot be told by this clock"
        return Check("certificate", State.WARN, found, "What runs goes on. Set the clock first.")
    found = f"valid until {until:%F} ({(until - now).days} days)"
    advice = (
        "What runs goes on, also without one. Enrol again with a new join token: "
        "`wildflower device enroll`."
    )
    if until <= now:
        ended = f"ended on {until:%F}: the server does not know this device any more"
        return Check("certificate", State.FAIL, ended, advice)
    if until - now < SOON:
        return Check("certificate", State.WARN, found, advice)
    return Check("certificate", State.OK, found)


def check_owed(reports: int, summaries: int, dropped: int) -> Check:
    """Judge what waits for the server.

    Args:
        reports: Reports that were not delivered.
        summaries: Summaries that were not.
        dropped: Summaries that were given up for space.
    """
    found = f"{_count(reports, 'report')} and {_count(summaries, 'summary')} wait for the server"
    if dropped:
        advice = (
            "The server was away for long; what runs goes on. The next summary says how many are "
            "missing."
        )
        given_up = _count(dropped, "summary")
        return Check("owed", State.WARN, f"{found}; for want of space {given_up} gone", advice)
    if reports > MANY_REPORTS:
        advice = "What runs goes on. `wildflower agent doctor --online` says what is in the way."
        return Check("owed", State.WARN, found, advice)
    return Check("owed", State.OK, found)


def _count(number: int, what: str) -> str:
    plural = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def check_journal(*, has_damaged: bool) -> Check:
    """Say whether the disk has once torn the journal."""
    if not has_damaged:
        return Check("journal", State.OK, "whole")
    advice = (
        "What runs goes on. Look at the disk. Remove journal.damaged when nobody wants to study "
        "it any more."
    )
    return Check("journal", State.WARN, "was damaged once and begun anew from the slots", advice)
