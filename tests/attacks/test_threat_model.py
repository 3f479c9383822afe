"""The table of attacks in docs/threat-model.md and the tests beside this file name each other."""

import ast
import re
from pathlib import Path

from wildflower.ota import errors

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OUTCOMES = {"refused", "incompatible", "never read"}


def rows() -> list[list[str]]:
    """Return the cells of the table's rows."""
    text = (ROOT / "docs/threat-model.md").read_text()
    section = text.partition("\n## Attacks on what a device reads\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def found_in(path: Path) -> set[str]:
    """Return the tests of a file, as pytest names them."""
    defined = ast.parse(path.read_text()).body
    names = [one.name for one in defined if isinstance(one, ast.FunctionDef)]
    return {f"{path.relative_to(ROOT)}::{name}" for name in names if name.startswith("test_")}


def test_every_attack_in_the_table_is_played_by_a_test_that_exists() -> None:
    named = [row[3].strip("`") for row in rows()]
    assert len(named) == len(set(named)) >= 30
    for name in named:
        assert name in found_in(ROOT / name.partition("::")[0]), name


def test_every_attack_that_is_played_here_is_in_the_table() -> None:
    named = {row[3].strip("`") for row in rows()}
    for file in ("test_metadata.py", "test_keys.py", "test_bytes.py"):
        assert found_in(HERE / file) <= named


def test_every_error_in_the_table_has_a_class() -> None:
    for attack, rule, error, _ in rows():
        assert attack
        assert rule
        name = error.strip("`")
        is_class = re.fullmatch(r"[A-Z]\w+Error", name) and issubclass(
            getattr(errors, name), errors.OtaError
        )
        assert is_class or error in OUTCOMES, error
