"""`wildflower demo`: every arrow of the loop, once, with real parts, and counted at the end.

The steps are in `scenes`, the counting in `counting`, the page in `report`. A step that does not
hold ends the demo with the reason and a failing exit code; whatever happens, every process that
was started is ended, and what would not end is told.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from wildflower.simulation.errors import StepError
from wildflower.simulation.local import directory as places
from wildflower.simulation.local import report
from wildflower.simulation.local.counting import figures_of, story_of
from wildflower.simulation.local.report import StepLine
from wildflower.simulation.local.scenes import SCENES, Scene, Stage, opened


@dataclass(frozen=True, slots=True)
class DemoStep:
    """One step: what came of it, and how long it took."""

    step: str
    told: str
    seconds: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The demo, once through.

    Attributes:
        steps: What came of each step.
        figures: Counted from the server's database, the devices' journals and their files.
        report: The page with the plots.
    """

    steps: list[DemoStep]
    figures: dict[str, float]
    report: str


def run_demo(directory: Path, *, devices: int = 8, rounds: int = 3) -> DemoResult:
    """Run the demo in a directory.

    Args:
        directory: Emptied first if it is one of ours, refused if it holds anything else.
        devices: How many agents, at least 3.
        rounds: How many training rounds.

    Raises:
        DirectoryError: The directory is not ours, or another demo is at work in it.
        StepError: A step did not hold.
    """
    console = Console(stderr=True, highlight=False)
    places.check(directory)
    with places.claimed(directory):
        return _run(directory.absolute(), devices, rounds, console)


def _run(directory: Path, devices: int, rounds: int, console: Console) -> DemoResult:
    began = time.monotonic()
    lines: list[StepLine] = []
    with opened(directory, devices=devices, rounds=rounds) as stage:
        for number, scene in enumerate(SCENES, 1):
            lines.append(_play(scene, stage, f"{number}/{len(SCENES)}", console))
        figures = figures_of(stage)
        story = story_of(stage, lines)
    figures |= {"orphan_processes": len(stage.orphans), "seconds": time.monotonic() - began}
    page = directory / "report.html"
    page.write_text(report.render(replace(story, figures=figures)))
    if stage.orphans:
        raise StepError(f"processes are left: {stage.orphans}")
    steps = [DemoStep(line.title, line.told, round(line.seconds, 2)) for line in lines]
    return DemoResult(steps, _rounded(figures), str(page))


def _play(scene: Scene, stage: Stage, place: str, console: Console) -> StepLine:
    began = time.monotonic()
    try:
        with console.status(f"{place} {scene.title} ..."):
            told = scene.play(stage)
    except Exception as error:
        console.print(f"{place} {scene.title}: did not hold", style="bold red")
        if isinstance(error, StepError) or not type(error).__module__.startswith("wildflower"):
            raise
        hint = getattr(error, "hint", "") or f"Logs: {stage.fleet.directory / 'logs'}"
        raise StepError(f"{scene.title}: {error}", hint=hint) from error
    line = StepLine(scene.title, told, time.monotonic() - began)
    console.print(f"[green]{place}[/] [bold]{line.title}[/]  {told}  [dim]{line.seconds:.1f} s[/]")
    sys.stderr.flush()
    return line


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}
