"""What goes together: the verdict on a combination of options, computed from their declarations.

    parse("secagg+krum")     -> the options, or an error that names the nearest
    judge(options).level     -> ok | warning | refused

A combination holds at most one option of each kind; what it does not name is not judged. Each need
of an option is held against the option of the kind that decides about it, each limit against what
all others reveal. So a verdict on several options is the worst verdict on their pairs: a table of
pairs is a table of everything.

A refused combination would not fail, it would lie: the round would end with a number that is not
the median, or with a guarantee that nobody gives. So it is refused before the round starts.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from wildflower.strategies.errors import CombinationError, OptionError
from wildflower.strategies.option import Kind, Level, Option
from wildflower.strategies.options import OPTIONS

JOIN: Final = "+"
MAX_TEXT: Final = 200  # characters of a combination's text
_SEVERITY: Final = {Level.OK: 0, Level.WARNING: 1, Level.REFUSED: 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """Why two options do not, or not quite, go together.

    Attributes:
        level: How bad it is.
        option: The one that asks.
        other: The one that does not give, or reveals too much.
        because: Why, as a sentence's second half.
        instead: What to use instead.
    """

    level: Level
    option: str
    other: str
    because: str
    instead: str

    def __str__(self) -> str:
        return f"{self.option} with {self.other}: {self.because}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of a combination.

    Attributes:
        options: The combination, in the order of the kinds.
        findings: All that was found, the worst first.
        alternatives: Combinations that differ in one option, are better and reveal no more; of
            options that are alike in all that matters, the first.
    """

    options: tuple[str, ...]
    findings: tuple[Finding, ...]
    alternatives: tuple[str, ...]

    @property
    def level(self) -> Level:
        """The worst of the findings."""
        return _worst(self.findings)

    @property
    def reason(self) -> str:
        """The findings in words; "" if there are none."""
        return "; ".join(map(str, self.findings))


def find(name: str) -> Option:
    """Return the option of a name.

    Raises:
        OptionError: There is none; the message names the nearest.
    """
    if name in OPTIONS:
        return OPTIONS[name]
    near = difflib.get_close_matches(name[:MAX_TEXT], OPTIONS, n=1, cutoff=0.5)
    raise OptionError(
        f"there is no option {name[:MAX_TEXT]!r}",
        hint=f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(OPTIONS)}.",
    )


def parse(text: str) -> tuple[Option, ...]:
    """Return the options of a text such as "secagg+distributed+fedadam", in the order of kinds.

    Raises:
        OptionError: An unknown name, or two options of one kind.
    """
    if not 1 <= len(text) <= MAX_TEXT:
        raise OptionError(
            f"a combination is 1 to {MAX_TEXT} characters long, found {len(text)}",
            hint="Join options with '+', as in secagg+fedavg.",
        )
    return together(find(name.strip().lower()) for name in text.split(JOIN))


def together(options: Iterable[Option]) -> tuple[Option, ...]:
    """Return the options in the order of their kinds.

    Raises:
        OptionError: Two of one kind.
    """
    found: dict[Kind, Option] = {}
    for option in options:
        if option.kind in found:
            raise OptionError(
                f"{found[option.kind].name} and {option.name} are both a choice of {option.kind}",
                hint=f"Name one option of the kind {option.kind}.",
            )
        found[option.kind] = option
    return tuple(found[kind] for kind in Kind if kind in found)


def judge(options: Iterable[Option]) -> Verdict:
    """Return the verdict on a combination.

    Example:
        >>> verdict = judge(parse("secagg+krum"))
        >>> verdict.level.value, verdict.alternatives
        ('refused', ('fedavg+secagg', 'fedadam+secagg'))

    Raises:
        OptionError: Two options of one kind.
    """
    chosen = together(options)
    findings = _findings(chosen)
    return Verdict(
        tuple(option.name for option in chosen),
        findings,
        _alternatives(chosen, _worst(findings)) if findings else (),
    )


def require(*names: str) -> Verdict:
    """Return the verdict on a combination that may be used.

    Raises:
        OptionError: An unknown name, or two options of one kind.
        CombinationError: The combination is refused.
    """
    verdict = judge(find(name) for name in names)
    if verdict.level is Level.REFUSED:
        refused = verdict.findings[0]
        better = f" Or choose {', '.join(verdict.alternatives)}." if verdict.alternatives else ""
        raise CombinationError(
            f"{JOIN.join(verdict.options)} is refused: {refused}",
            hint=f"Use {refused.instead}.{better}",
        )
    return verdict


def _findings(chosen: tuple[Option, ...]) -> tuple[Finding, ...]:
    by_kind = {option.kind: option for option in chosen}
    found = [each for option in chosen for each in _unmet(option, by_kind)]
    found += [each for option in chosen for each in _exposed(option, chosen)]
    return tuple(sorted(found, key=lambda each: -_SEVERITY[each.level]))


def _unmet(option: Option, by_kind: Mapping[Kind, Option]) -> Iterator[Finding]:
    for need in option.needs:
        other = by_kind.get(need.of)
        if other is not None and need.fact not in other.offers:
            yield Finding(need.level, option.name, other.name, need.because, need.instead)


def _exposed(option: Option, chosen: tuple[Option, ...]) -> Iterator[Finding]:
    for limit in option.limits:
        for other in chosen:
            if limit.exposure in other.reveals:
                yield Finding(limit.level, option.name, other.name, limit.because, limit.instead)


def _worst(findings: Iterable[Finding]) -> Level:
    return max((each.level for each in findings), key=_SEVERITY.__getitem__, default=Level.OK)


def _alternatives(chosen: tuple[Option, ...], level: Level) -> tuple[str, ...]:
    """Return better combinations that differ in one option: the first of each sort of option."""
    found: list[tuple[int, str]] = []
    seen: set[tuple[object, ...]] = set()
    for index, old in enumerate(chosen):
        for new in _of_kind(old):
            changed = (*chosen[:index], new, *chosen[index + 1 :])
            severity = _SEVERITY[_worst(_findings(changed))]
            if (
                severity < _SEVERITY[level]
                and new.reveals <= old.reveals
                and sort_of(new) not in seen
            ):
                seen.add(sort_of(new))
                found.append((severity, JOIN.join(option.name for option in changed)))
    return tuple(name for _, name in sorted(found, key=lambda pair: pair[0]))


def _of_kind(option: Option) -> Iterator[Option]:
    return (other for other in OPTIONS.values() if other.kind is option.kind)


def sort_of(option: Option) -> tuple[object, ...]:
    """Return all of an option that verdicts depend on: equal sorts have equal verdicts."""
    return (option.kind, option.offers, option.needs, option.reveals, option.limits)
