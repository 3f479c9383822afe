"""`wildflower strategies`: what can be combined in a round, and what a combination is worth."""

from dataclasses import dataclass
from typing import Annotated

import typer

from wildflower.strategies.combine import judge, parse
from wildflower.strategies.option import Kind, Level, Option
from wildflower.strategies.options import OPTIONS

app = typer.Typer(help="Show what can be combined in a round, and why not.")


@dataclass(frozen=True, slots=True)
class OptionLine:
    """One option: what it is, what it needs of others and what it reveals to the server."""

    name: str
    kind: str
    summary: str
    needs: list[str]
    reveals: list[str]
    trusts: str


@dataclass(frozen=True, slots=True)
class OptionList:
    """All options."""

    options: list[OptionLine]


@dataclass(frozen=True, slots=True)
class FindingLine:
    """Why two options do not, or not quite, go together, and what to use instead."""

    level: str
    option: str
    other: str
    because: str
    instead: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict on a combination; the exit code is 1 if it is refused."""

    combination: str
    verdict: str
    findings: list[FindingLine]
    alternatives: list[str]
    options: list[OptionLine]

    @property
    def succeeded(self) -> bool:
        """Whether the combination may be used."""
        return self.verdict != Level.REFUSED.value


@app.command("ls", epilog="Example: wildflower strategies ls --kind protection")
def list_options(
    *, kind: Annotated[Kind | None, typer.Option(help="Only options of this kind.")] = None
) -> OptionList:
    """List the options of a round: algorithms, protections, privacy, selections, weightings."""
    return OptionList([_line(each) for each in OPTIONS.values() if kind in (None, each.kind)])


@app.command("explain", epilog="Example: wildflower strategies explain secagg+krum")
def explain(
    combination: Annotated[
        str, typer.Argument(help="Options joined by '+', at most one of each kind.")
    ],
) -> Explanation:
    """Say whether options go together, why not, and what to use instead."""
    chosen = parse(combination)
    verdict = judge(chosen)
    return Explanation(
        combination="+".join(verdict.options),
        verdict=verdict.level.value,
        findings=[
            FindingLine(each.level.value, each.option, each.other, each.because, each.instead)
            for each in verdict.findings
        ],
        alternatives=list(verdict.alternatives),
        options=[_line(each) for each in chosen],
    )


def _line(option: Option) -> OptionLine:
    return OptionLine(
        name=option.name,
        kind=option.kind.value,
        summary=option.summary,
        needs=[need.fact.value for need in option.needs],
        reveals=sorted(exposure.value for exposure in option.reveals),
        trusts=option.trusts,
    )
