"""When a device fetches: what its owner allows, held against how things are right now.

    decide(rules, conditions, now) -> Answer: everything, the small things, or nothing; and why

It is about bytes from a network. What lies on the device already goes on, whatever the battery
says, and a signed order to leave a release is never held up. Free disk space is not looked at
here: a disk that stays full is a failure that the server must hear of, not a wait (`ota.device.
slots` asks before the first byte).
"""

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from enum import StrEnum, unique
from typing import Final, Self

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError

WINDOW: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@unique
class Metered(StrEnum):
    """What may be fetched while bytes cost money."""

    NEVER = "never"
    DELTA = "delta"
    ALWAYS = "always"


@unique
class Verdict(StrEnum):
    """What may be fetched now."""

    ALL = "all"
    SMALL = "small"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Window:
    """A time of day, by the device's own clock; it may lie over midnight.

    Attributes:
        start: Its first moment.
        end: The first moment behind it; never the same as `start`.
    """

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the window that a text such as "22:30-06:00" names.

        Raises:
            FormatError: It names none.
        """
        found = WINDOW.fullmatch(text)
        if found is None or text[:5] == text[6:]:
            raise FormatError(f"window {text!r}: expected HH:MM-HH:MM", hint="Such as 01:00-05:00.")
        hours, minutes, until_hours, until_minutes = map(int, found.groups())
        return cls(time(hours, minutes), time(until_hours, until_minutes))

    def holds(self, now: datetime) -> bool:
        """Whether a moment lies in it, by the moment's own zone."""
        at = now.time()
        if self.start < self.end:
            return self.start <= at < self.end
        return at >= self.start or at < self.end

    def opens(self, now: datetime) -> datetime:
        """Return when it opens next, at `now` or later."""
        start = self.start
        today = now.replace(hour=start.hour, minute=start.minute, second=0, microsecond=0)
        return today if today >= now else today + timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a device's owner allows.

    Attributes:
        metered: What is fetched over a metered network.
        battery_min: With less charge, in percent, nothing is fetched from the battery; in [0, 100].
        window: When fetching is allowed; None for always.
    """

    metered: Metered = Metered.ALWAYS
    battery_min: int = 0
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """How things are.

    Attributes:
        metered: Whether bytes cost money.
        battery_percent: Charge in [0, 100]; None for a device without a battery.
        charging: Whether the device hangs on the mains.
    """

    metered: bool = False
    battery_percent: int | None = None
    charging: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What may be fetched now, and why not more.

    Attributes:
        verdict: What may be fetched; `SMALL` is everything but a whole model file.
        reason: In a sentence; "" for a verdict of `ALL`.
        until: When to look again, if that is known.
    """

    verdict: Verdict
    reason: str = ""
    until: datetime | None = None

    def permits(self, *, whole_model: bool) -> bool:
        """Whether a whole model file may be fetched, or something else of a release."""
        return self.verdict is Verdict.ALL or (self.verdict is Verdict.SMALL and not whole_model)


def decide(rules: Rules, conditions: Conditions, now: datetime) -> Answer:
    """Return what may be fetched now.

    Args:
        rules: What the owner allows.
        conditions: How things are.
        now: The moment, in the zone in which the owner reads the clock.
    """
    if rules.window is not None and not rules.window.holds(now):
        opens = rules.window.opens(now)
        reason = f"outside the window, which opens at {canonical.to_time(opens)}"
        return Answer(Verdict.NOTHING, reason, opens)
    charge = conditions.battery_percent
    if charge is not None and not conditions.charging and charge < rules.battery_min:
        reason = f"battery: found {charge} %, expected >= {rules.battery_min} % or the mains"
        return Answer(Verdict.NOTHING, reason)
    if not conditions.metered or rules.metered is Metered.ALWAYS:
        return Answer(Verdict.ALL)
    if rules.metered is Metered.DELTA:
        return Answer(Verdict.SMALL, "the network is metered; no whole model is fetched over it")
    return Answer(Verdict.NOTHING, "the network is metered; nothing is fetched over it")
