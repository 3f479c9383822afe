"""docs/device.md shows the update machine as it is."""

from pathlib import Path
from typing import Any

from tests.test_docs import machine

from wildflower.ota.device.machine import TRANSITIONS, Phase

PAGE = Path(__file__).parents[2] / "docs" / "device.md"
TABLE: Any = TRANSITIONS  # a table of enum members is one of enums, which mypy does not see


def test_the_page_shows_the_table_as_it_is(update_goldens: bool) -> None:
    text = PAGE.read_text()
    head, _, rest = text.partition("```mermaid\n")
    drawing, _, tail = rest.partition("```")
    if update_goldens:
        drawing = machine(TABLE) + "\n"
        PAGE.write_text(f"{head}```mermaid\n{drawing}```{tail}")
    assert drawing == machine(TABLE) + "\n"


def test_the_page_explains_every_phase_that_does_something() -> None:
    explained = {
        line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if "|" in line
    }
    assert {phase.name for phase in Phase} - explained == {"IDLE"}
