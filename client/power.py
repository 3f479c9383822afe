"""How things are on this machine: battery, mains, and whether the network costs money.

    <root>/sys/class/power_supply/*      what Linux says of batteries and the mains
    <root>/run/wildflower/metered        "yes" or "no", written by whoever knows the network
    WILDFLOWER_METERED                   a command that prints it, where no file says, such as
                                         nmcli -g GENERAL.METERED device show wwan0

Where nobody was asked to say, a network is not metered. Where somebody was and does not, it is: an
owner who says that bytes are dear shall not pay for a missing program.
"""

import logging
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from wildflower.ota.device.conditions import Answer, Conditions, Rules, decide
from wildflower.ota.device.program import run_program
from wildflower.ota.errors import OtaError

log = logging.getLogger(__name__)

METERED_VARIABLE: Final = "WILDFLOWER_METERED"
SUPPLIES: Final = "sys/class/power_supply"
METERED_FILE: Final = "run/wildflower/metered"
MOST_CHARACTERS: Final = 64
COMMAND_S: Final = 5.0
FRESH_S: Final = 10.0
"""So long what was seen is taken to hold: it is asked for after every chunk of a download."""
UNMETERED: Final = ("no", "unknown")
"""How NetworkManager begins "no (guessed)"; "unknown" is a network that nobody has judged."""


@dataclass(frozen=True, slots=True)
class Senses:
    """Where to look.

    Attributes:
        root: Where `sys` and `run` are; "/" but in tests.
        metered_command: Prints whether the network is metered; "" for none.
    """

    root: Path = Path("/")
    metered_command: str = ""

    def look(self) -> Conditions:
        """Return how things are; what cannot be read is taken not to be there."""
        supplies = list(self._supplies())
        batteries = [one for one in supplies if one.get("type") == "Battery"]
        charges = [int(one["capacity"]) for one in batteries if one["capacity"].isdecimal()]
        is_on_mains = any(one["online"] == "1" for one in supplies if one not in batteries)
        is_charging = any(one["status"] in ("Charging", "Full") for one in batteries)
        return Conditions(
            metered=self._is_metered(),
            battery_percent=min(100, max(charges)) if charges else None,
            charging=is_on_mains or is_charging,
        )

    def _supplies(self) -> Iterator[dict[str, str]]:
        for folder in sorted((self.root / SUPPLIES).glob("*")):
            if _text(folder / "scope") == "Device":  # a mouse's or a pen's, not this machine's
                continue
            yield {name: _text(folder / name) for name in ("type", "online", "capacity", "status")}

    def _is_metered(self) -> bool:
        told = _text(self.root / METERED_FILE)
        if not told and self.metered_command:
            told = self._asked() or "yes"
        return bool(told) and told.lower().split()[0] not in UNMETERED

    def _asked(self) -> str:
        try:
            ended = run_program(
                shlex.split(self.metered_command),
                environment={},
                directory=Path("/"),
                timeout_s=COMMAND_S,
            )
        except (OtaError, ValueError) as error:
            log.warning("%s: %s", METERED_VARIABLE, error)
            return ""
        return ended.last_line.strip() if ended.code == 0 else ""


@dataclass(slots=True)
class Timing:
    """When this device fetches.

    Attributes:
        rules: What its owner allows.
        look: Tells how things are.
        now: The moment, in the zone in which the owner reads the clock.
        steady: Seconds of a clock that nobody can set.
    """

    rules: Rules
    look: Callable[[], Conditions]
    now: Callable[[], datetime]
    steady: Callable[[], float] = time.monotonic
    _answer: Answer | None = None
    _fresh_until_s: float = 0.0

    def why_wait(self, is_whole_model: bool) -> str:
        """Return why something is not fetched now; "" if it may be.

        Args:
            is_whole_model: Whether it is a whole model file, and not a delta or a small file.
        """
        if self.rules == Rules():
            return ""  # nothing is looked at for an owner who allows everything
        answer = self._current()
        return "" if answer.permits(whole_model=is_whole_model) else answer.reason

    def _current(self) -> Answer:
        at_s = self.steady()
        if self._answer is None or at_s >= self._fresh_until_s:
            self._answer = decide(self.rules, self.look(), self.now())
            self._fresh_until_s = at_s + FRESH_S
        return self._answer


def _text(path: Path) -> str:
    """Return what a small file says; "" if it cannot be read."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(MOST_CHARACTERS).strip()
    except OSError:
        return ""
