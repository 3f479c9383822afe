"""The demo's report: one HTML file with its plots inside, that asks nothing of the network."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK: Final = "#1f2933"
COLOURS: Final = ("#2f6f4f", "#c2703d", "#4a6fa5", "#8a5a83")


@dataclass(frozen=True, slots=True)
class StepLine:
    """One step as it was told: its title, what came of it, and how long it took in seconds."""

    title: str
    told: str
    seconds: float


@dataclass(frozen=True, slots=True)
class RoundLine:
    """One round: accuracy of the model it made, in [0, 1], and how many devices took part."""

    number: int
    accuracy: float
    cohort: int
    survivors: int


@dataclass(frozen=True, slots=True)
class ArtifactLine:
    """One artifact: what was built for whom, its size in bytes, and accuracy on unseen images."""

    device_class: str
    recipe: str
    digest: str
    length: int
    accuracy: float
    worse: int


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """One device: what it signed to be running, and how that came about."""

    name: str
    device_class: str
    running: str
    outcome: str


@dataclass(frozen=True, slots=True)
class MonitorLine:
    """What the fleet's summaries say about one artifact."""

    artifact: str
    inferences: int
    latency_p95_ms: float
    error_rate: float
    confidence: float
    accuracy: float
    devices: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A device's report, `seconds` after the demo began."""

    seconds: float
    device: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Story:
    """Everything the report shows."""

    steps: Sequence[StepLine]
    figures: Mapping[str, float]
    rounds: Sequence[RoundLine]
    artifacts: Sequence[ArtifactLine]
    devices: Sequence[DeviceLine]
    monitoring: Sequence[MonitorLine]
    outcomes: Sequence[Outcome]
    chain: Sequence[str]


def render(story: Story) -> str:
    """Return the report as HTML."""
    from jinja2 import Environment

    template = resources.files("wildflower.simulation.local").joinpath("report.html").read_text()
    plots = [_plot_rounds(story), _plot_artifacts(story), _plot_outcomes(story)]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(story=story, plots=plots)


def _plot_rounds(story: Story) -> str:
    axes = _axes("Accuracy of the global model", "round", "accuracy on the devices' own data")
    numbers = [line.number for line in story.rounds]
    axes.plot(numbers, [r.accuracy for r in story.rounds], "o-", color=COLOURS[0], linewidth=2)
    for line in story.rounds:
        axes.annotate(
            f"{line.accuracy:.1%}\n{line.survivors} of {line.cohort}",
            (line.number, line.accuracy),
            textcoords="offset points",
            xytext=(0, -30),
            ha="center",
            fontsize=8,
        )
    axes.set_xticks(numbers)
    axes.set_ylim(0, 1.05)
    return _svg(axes)


def _plot_artifacts(story: Story) -> str:
    axes = _axes("One model, three artifacts", "kB", "")
    names = [f"{line.device_class}\n{line.recipe}" for line in story.artifacts]
    sizes = [line.length / 1000 for line in story.artifacts]
    bars = axes.barh(names, sizes, color=COLOURS[: len(names)], height=0.6)
    texts = [
        f" {size:.0f} kB, {line.accuracy:.1%}"
        for size, line in zip(sizes, story.artifacts, strict=True)
    ]
    axes.bar_label(bars, texts, fontsize=8)
    axes.set_xlim(0, max(sizes, default=1.0) * 1.45)
    axes.invert_yaxis()
    return _svg(axes)


def _plot_outcomes(story: Story) -> str:
    axes = _axes("What devices reported", "seconds since the demo began", "")
    kinds = sorted({line.outcome for line in story.outcomes})
    devices = sorted({line.device for line in story.outcomes})
    for colour, kind in zip(COLOURS, kinds, strict=False):
        points = [line for line in story.outcomes if line.outcome == kind]
        axes.scatter(
            [point.seconds for point in points],
            [devices.index(point.device) for point in points],
            label=kind,
            color=colour,
            s=36,
        )
    axes.set_yticks(range(len(devices)), devices)
    axes.margins(y=0.12)
    if kinds:
        axes.legend(loc="upper left", fontsize=8, framealpha=0.9)
    return _svg(axes)


def _axes(title: str, x_label: str, y_label: str) -> "Axes":
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes


def _svg(axes: "Axes") -> str:
    drawing = io.StringIO()
    figure = axes.get_figure(root=True)
    if figure is None:
        raise RuntimeError("axes without a figure")
    figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    text = drawing.getvalue()
    return text[text.index("<svg") :]
