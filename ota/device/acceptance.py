"""Which models a device's owner accepts, by where they come from: the statement of provenance.

    shortcomings(demands, statement) -> everything that is not as the owner demands

The release signer's statement says how a model was made; the owner's `policy.toml` says how one
must have been made to run here. It keeps out what is signed and still not wanted: a training
without noise, a round of too few, a model of unknown origin, and what a stolen rollout key could
choose among them. It believes the role that signed the statement; whoever has that role's key, or
runs the rounds and lies about them, can state anything. What a statement does not tell is not as
demanded: silence must not be a way in.

    Rejection.from_text(rejection.to_text()) == rejection
"""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

from wildflower.ota import canonical
from wildflower.ota.device.decision import Shortcoming
from wildflower.ota.errors import FormatError, ProvenanceError
from wildflower.ota.release.method import JOIN

if TYPE_CHECKING:  # it needs libraries for signatures, which a device without demands goes without
    from wildflower.ota.release.statement import Provenance

KIND: Final = "wildflower.rejection"
AGAIN: Final = timedelta(days=1)
"""After it a release that was not accepted is looked at once more: its statement may be new."""


@dataclass(frozen=True, slots=True)
class Demands:
    """What a device's owner demands of where a release comes from.

    Attributes:
        max_epsilon: Largest epsilon that the model's training may have spent; 0 for no limit.
        delta: Largest delta at which that epsilon may be told.
        unit: What it must protect: "device" (all its data), or "example" (at least each of them).
        min_clients: Fewest devices whose updates are in the model; 0 for any number.
        strategies: Ways of making it that are accepted, such as "secagg+fedavg": all names of one
            of them must be among the method's; empty for any.
    """

    max_epsilon: float = 0.0
    delta: float = 1e-5
    unit: str = "device"
    min_clients: int = 0
    strategies: tuple[str, ...] = ()

    @property
    def are_any(self) -> bool:
        """Whether anything is demanded; if not, no statement is needed."""
        return bool(self.max_epsilon or self.min_clients or self.strategies)

    @property
    def digest(self) -> str:
        """What they are known by: others have another one."""
        return canonical.digest(
            canonical.to_bytes(asdict(self) | {"strategies": [*self.strategies]})
        )

    def __str__(self) -> str:
        """Return them in a sentence's words; "" for none."""
        told = (
            (self.max_epsilon, f"epsilon <= {self.max_epsilon:g} for each {self.unit}"),
            (self.min_clients, f">= {self.min_clients} devices in the model"),
            (self.strategies, f"made by {' or '.join(self.strategies)}"),
        )
        return ", ".join(words for applies, words in told if applies)

    def check(self, statement: "Provenance | None") -> None:
        """Check a release's statement.

        Raises:
            ProvenanceError: It is not as demanded, or there is none.
        """
        if statement is None:
            raise ProvenanceError(
                "provenance: found no statement, and policy.toml demands one",
                hint="Release the model with one (`wildflower sign --release` takes it along), or "
                "take max_epsilon, min_clients and strategies out of policy.toml.",
            )
        missing = shortcomings(self, statement)
        if missing:
            raise ProvenanceError(
                f"provenance: {'; '.join(map(str, missing))}",
                hint="policy.toml says so: max_epsilon, min_clients, strategies.",
            )


def shortcomings(demands: Demands, statement: "Provenance") -> tuple[Shortcoming, ...]:
    """Compare how a model was made with what the owner demands.

    Args:
        demands: The owner's.
        statement: The release's own; who signed it, and for which release, is checked before.

    Returns:
        Everything that is not as demanded; empty if the release is accepted.
    """
    return (
        *_of_privacy(demands, statement),
        *_of_clients(demands, statement),
        *_of_method(demands, statement),
    )


def _of_privacy(demands: Demands, statement: "Provenance") -> tuple[Shortcoming, ...]:
    """Compare epsilon, the delta at which it is told, and what it protects."""
    if not demands.max_epsilon:
        return ()
    epsilon, delta = (statement.privacy.get(name) for name in ("epsilon", "delta"))
    unit = statement.method.unit if statement.method is not None else ""
    has_unit = unit == "device" or (unit == "example" and demands.unit == "example")
    checks = (
        (
            epsilon is not None and epsilon <= demands.max_epsilon,
            Shortcoming("epsilon", _told(epsilon), f"<= {demands.max_epsilon:g}"),
        ),
        (
            delta is not None and delta <= demands.delta,
            Shortcoming("delta of that epsilon", _told(delta), f"<= {demands.delta:g}"),
        ),
        (has_unit, Shortcoming("unit of that epsilon", unit or "none told", demands.unit)),
    )
    return tuple(shortcoming for is_met, shortcoming in checks if not is_met)


def _of_clients(demands: Demands, statement: "Provenance") -> tuple[Shortcoming, ...]:
    if statement.survivors >= demands.min_clients:
        return ()
    found = str(statement.survivors)
    return (Shortcoming("devices in the model", found, f">= {demands.min_clients}"),)


def _of_method(demands: Demands, statement: "Provenance") -> tuple[Shortcoming, ...]:
    method = statement.method
    names = method.names if method is not None else frozenset()
    if not demands.strategies or any(names >= set(one.split(JOIN)) for one in demands.strategies):
        return ()
    expected = f"one of {', '.join(demands.strategies)}"
    return (Shortcoming("strategy", str(method or "none told"), expected),)


def _told(figure: float | None) -> str:
    return "none told" if figure is None else f"{figure:g}"


@dataclass(frozen=True, slots=True)
class Rejection:
    """What a device remembers of the last release that its owner's demands kept out.

    Attributes:
        rollout: Id of the rollout that brought it.
        release: Digest of the manifest.
        demands: Digest of the demands it did not meet.
        at: When.
        reason: What was found and what was demanded.
    """

    rollout: str
    release: str
    demands: str
    at: datetime
    reason: str

    def stands(self, rollout: str, release: str, demands: Demands, now: datetime) -> bool:
        """Whether it still answers for a release: for a day, in one rollout, with these demands.

        One of the future answers nothing: the clock was wrong then, or is now.
        """
        found = (self.rollout, self.release, self.demands)
        return found == (rollout, release, demands.digest) and self.at <= now < self.at + AGAIN

    def to_text(self) -> str:
        """Return the form that a journal keeps."""
        document = {
            "kind": KIND,
            "format": 1,
            "rollout": self.rollout,
            "release": self.release,
            "demands": self.demands,
            "at": canonical.to_time(self.at),
            "reason": self.reason,
        }
        return canonical.to_bytes(document).decode()

    @classmethod
    def from_text(cls, text: str) -> Self | None:
        """Return what `to_text` wrote; None for anything else, such as nothing or a flipped bit."""
        try:
            found = canonical.from_bytes(text.encode(), kind=KIND)
            names = ("rollout", "release", "demands", "reason")
            told = {name: str(found[name]) for name in names}
            rejection = cls(**told, at=canonical.from_time(found["at"]))
        except (KeyError, UnicodeError, FormatError):
            return None
        return rejection if rejection.to_text() == text else None
