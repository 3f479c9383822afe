"""Which optional packages are installed, and which extra brings those that are not.

The lists are those of the installed distribution's metadata, so they cannot differ from
pyproject.toml. Nothing is imported to find out.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

DISTRIBUTION: Final = "wildflower"
EXTRAS: Final = ("train", "server", "simulation", "data")
"""What a user chooses from; `all` is these four, the others serve one tool each."""

NAMES: Final = {"sklearn": "scikit-learn"}
"""Modules whose distribution has quite another name."""

REQUIREMENT: Final = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(\[(?P<extras>[^\]]*)\])?[^;]*"
    r"(;.*extra == ['\"](?P<of>[\w-]+)['\"])?"
)


@dataclass(frozen=True, slots=True)
class Extra:
    """One extra and what is there of it.

    Attributes:
        name: As in `pip install 'wildflower[name]'`.
        missing: Distributions it brings that are not installed, sorted.
    """

    name: str
    missing: tuple[str, ...]


def find_extras(
    requirements: Iterable[str] | None = None,
    is_installed: Callable[[str], bool] | None = None,
) -> tuple[Extra, ...]:
    """Return what is there of each extra.

    Args:
        requirements: `Requires-Dist` lines; those of the installed distribution if None.
        is_installed: Whether a distribution is there; asks this interpreter if None.
    """
    brought = _brought(requirements)
    is_there = is_installed or _is_installed
    return tuple(
        Extra(name, tuple(sorted(d for d in _closure(name, brought) if not is_there(d))))
        for name in EXTRAS
    )


def extra_of(module: str) -> str:
    """Return the smallest extra that brings a module's distribution; "" if none does.

    Example:
        >>> extra_of("torch.nn"), extra_of("sqlmodel"), extra_of("json")
        ('train', 'server', '')
    """
    top = module.partition(".")[0]
    wanted = _normal(NAMES.get(top, top))
    brought = _brought(None)
    return next((name for name in EXTRAS if wanted in brought.get(name, frozenset())), "")


def _brought(requirements: Iterable[str] | None) -> dict[str, frozenset[str]]:
    """Return each extra's distributions; an extra that it takes over whole stands as "[name]"."""
    found: dict[str, set[str]] = {}
    for line in (requires(DISTRIBUTION) or []) if requirements is None else requirements:
        match = REQUIREMENT.match(line)
        if match is None or match["of"] is None:
            continue
        if _normal(match["name"]) == DISTRIBUTION:
            names = {f"[{name.strip()}]" for name in (match["extras"] or "").split(",")}
        else:
            names = {_normal(match["name"])}
        found.setdefault(match["of"], set()).update(names)
    return {name: frozenset(names) for name, names in found.items()}


def _closure(name: str, brought: dict[str, frozenset[str]]) -> set[str]:
    names: set[str] = set()
    for found in brought.get(name, frozenset()):
        names |= _closure(found[1:-1], brought) if found.startswith("[") else {found}
    return names


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
