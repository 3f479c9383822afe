"""The documents tell the truth: diagrams, links, commands, tests, dependencies, licence."""

import hashlib
import importlib
import itertools
import re
import tomllib
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import pytest
from tests.command_lines import check, find

from wildflower.cli import ENTRIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ARCHITECTURE = DOCS / "architecture.md"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("examples/**/*.md")])
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
DIAGRAMS = (
    "layers",
    "wildflower.strategies.round",
    "wildflower.ota.build.line",
    "wildflower.ota.device.machine",
    "wildflower.ota.rollout.machine",
)
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def layers() -> str:
    """Draw the import contract of the rooms."""
    contracts = SETTINGS["tool"]["importlinter"]["contracts"]
    rows = next(c["layers"] for c in contracts if c["id"] == "rooms")
    levels = [[name.strip() for name in row.split("|")] for row in rows]
    edges = [
        f"    {upper} --> {lower}"
        for above, below in itertools.pairwise(levels)
        for upper in above
        for lower in below
    ]
    return "\n".join(["flowchart TD", *edges])


def machine(transitions: Mapping[Enum, Mapping[type, Enum | tuple[Enum, ...]]]) -> str:
    """Draw a machine's table; events that lead the same way share an arrow.

    Where the state decides between several phases, the table names them all.
    """
    first = next(iter(transitions)).name
    lines = ["stateDiagram-v2", f"    [*] --> {first}"]
    for phase, events in transitions.items():
        arrows: dict[str, list[str]] = {}
        for event, targets in events.items():
            for target in targets if isinstance(targets, tuple) else (targets,):
                arrows.setdefault(target.name, []).append(event.__name__)
        lines += [f"    {phase.name} --> {to}: {', '.join(by)}" for to, by in arrows.items()]
        if not events:
            lines.append(f"    {phase.name} --> [*]")
    return "\n".join(lines)


def drawn(name: str) -> str:
    return layers() if name == "layers" else machine(importlib.import_module(name).TRANSITIONS)


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_diagram_shows_what_it_was_drawn_from(name: str, update_goldens: bool) -> None:
    head, marker, rest = ARCHITECTURE.read_text().partition(
        f"<!-- diagram: {name} -->\n```mermaid\n"
    )
    assert marker, f"no place for {name}"
    shown, end, tail = rest.partition("```")
    if update_goldens:
        shown = f"{drawn(name)}\n"
        ARCHITECTURE.write_text(f"{head}{marker}{shown}{end}{tail}")
    assert shown == f"{drawn(name)}\n"


def anchors(page: Path) -> set[str]:
    """Return a page's headings in the form that links use."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in headings}


def links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def feature_rows() -> list[list[str]]:
    """Return the cells of every row of the tables in docs/features.md, without their headers."""
    lines = (DOCS / "features.md").read_text().splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"
    ]
    return [row for row in rows if not set(row[0]) <= {"-", ":"} and row[0] != "feature"]


def test_every_feature_names_a_command_or_an_api_and_a_test() -> None:
    for row in feature_rows():
        assert len(row) == 4, row
        assert "`" in row[1], row
        assert "`tests/" in row[2] or "`benchmarks/" in row[2], row
        assert row[3], row


def test_every_command_in_the_features_exists() -> None:
    text = (DOCS / "features.md").read_text()
    commands = re.findall(r"`wildflower ([a-z]+(?: [a-z-]+)?)", text)
    assert {command.split()[0] for command in commands} >= set(ENTRIES), "a command is not listed"
    assert [command for command in commands if find(command.split())[0] is None] == []


def command_lines(page: Path) -> list[str]:
    """Return the lines that begin with `wildflower` in a page's shell examples."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("wildflower ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_shown_has_a_command_and_options_that_exist(page: Path) -> None:
    for line in command_lines(page):
        check(line)


def test_every_file_in_the_features_exists() -> None:
    text = (DOCS / "features.md").read_text()
    names = re.findall(r"`((?:tests|benchmarks|examples|docs)/[\w/.-]+)`", text)
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_api_in_the_features_exists() -> None:
    text = (DOCS / "features.md").read_text()
    for dotted in re.findall(r"`(wildflower(?:\.\w+)+)`", text):
        module, _, attribute = dotted.rpartition(".")
        found = importlib.import_module(module)
        if not hasattr(found, attribute):
            importlib.import_module(dotted)


def test_the_dependencies_are_those_of_pyproject() -> None:
    project = SETTINGS["project"]
    lists = {"base": project["dependencies"], **project["optional-dependencies"]}
    direct = {
        re.match(r"[A-Za-z0-9._-]+", line)[0]  # type: ignore[index]  # every requirement has a name
        for lines in lists.values()
        for line in lines
    } - {"wildflower"}
    text = (DOCS / "dependencies.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in rows]
    named = {row[1] if row[0] in lists else row[0] for row in cells}
    assert named - {"package", "extra"} == direct


def test_decisions_are_numbered_without_a_gap_and_fit_on_a_page() -> None:
    decisions = sorted((DOCS / "adr").glob("*.md"))
    assert [int(path.name[:4]) for path in decisions] == list(range(1, len(decisions) + 1))
    for path in decisions:
        text = path.read_text()
        assert text.startswith(f"# {int(path.name[:4])}. "), path.name
        for heading in ("Context", "Options", "Decision", "Consequences"):
            assert f"\n## {heading}\n" in text, path.name
        assert "\nStatus: " in text, path.name
        assert len(text.split()) < 450, path.name


def test_the_glossary_explains_each_word_once() -> None:
    words = re.findall(r"^- \*\*(.+?)\*\*:", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert len(words) == len(set(words)) > 40


def test_the_licence_is_apache_2_to_the_letter() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
