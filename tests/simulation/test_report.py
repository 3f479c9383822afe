import re

from wildflower.simulation.local.report import (
    ArtifactLine,
    DeviceLine,
    MonitorLine,
    Outcome,
    RoundLine,
    StepLine,
    Story,
    render,
)

STORY = Story(
    steps=[StepLine("Start <the> server", "all listeners answer", 2.5)],
    figures={"rounds": 3, "accuracy": 0.954},
    rounds=[RoundLine(1, 0.7, 8, 8), RoundLine(2, 0.9, 8, 7)],
    artifacts=[ArtifactLine("linux-generic", "fp32", "a" * 64, 123_456, 0.95, 0)],
    devices=[DeviceLine("device-1", "linux-generic", "a" * 64, "committed")],
    monitoring=[MonitorLine("a" * 64, 500, 0.2, 0.0, 0.93, 0.95, 1)],
    outcomes=[Outcome(40.0, "device-1", "committed"), Outcome(60.0, "device-1", "rolled-back")],
    chain=["device device-1", "artifact aaaa", "round 3"],
)


def test_the_report_asks_nothing_of_the_network() -> None:
    page = render(STORY)
    addresses = re.findall(r"""(?:src|href)=["']([^"'#][^"']*)""", page)
    assert addresses == []
    assert "default-src 'none'" in page
    assert "<script" not in page


def test_the_report_shows_each_figure_and_escapes_text() -> None:
    page = render(STORY)
    assert "0.954" in page
    assert "Start &lt;the&gt; server" in page
    assert page.count("<svg") == 3


def test_a_story_without_rounds_is_still_told() -> None:
    empty = Story([], {}, [], [], [], [], [], [])
    assert "The loop, once around" in render(empty)


def test_equal_stories_give_equal_bytes_but_for_drawing_ids() -> None:
    strip = re.compile(r'(id|href|clip-path)="[^"]*"|url\(#[^)]*\)|#[mp][0-9a-f]{10}')
    assert strip.sub("", render(STORY)) == strip.sub("", render(STORY))
