"""`wildflower strategies`: what it prints, its exit codes and its schemas."""

import json
from pathlib import Path

import jsonschema
import pytest

from wildflower.cli import main
from wildflower.strategies.options import OPTIONS

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["strategies", *line.split()])
    captured = capsys.readouterr()
    return int(str(ended.value.code)), captured.out, captured.err


def run_json(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, dict[str, object]]:
    code, out, _ = run(capsys, f"{line} --format json")
    found = json.loads(out)
    jsonschema.validate(
        found, json.loads((SCHEMAS / f"strategies-{line.split(maxsplit=1)[0]}.json").read_text())
    )
    return code, found


def test_ls_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run_json(capsys, "ls")
    rows = found["options"]
    assert isinstance(rows, list)
    assert (code, [row["name"] for row in rows]) == (0, list(OPTIONS))


def test_ls_of_a_kind_lists_only_that_kind(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "ls --kind selection")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["name", "fixed", "poisson", "all"]


def test_explaining_a_refused_combination_fails_and_says_what_to_use(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, found = run_json(capsys, "explain secagg+krum")
    assert (code, found["success"], found["verdict"]) == (1, False, "refused")
    assert found["alternatives"]
    assert "single updates" in json.dumps(found["findings"])


@pytest.mark.parametrize(("line", "verdict"), [("plain+central", "warning"), ("secagg", "ok")])
def test_explaining_what_may_be_used_succeeds(
    capsys: pytest.CaptureFixture[str], line: str, verdict: str
) -> None:
    code, found = run_json(capsys, f"explain {line}")
    assert (code, found["success"], found["verdict"]) == (0, True, verdict)


def test_an_unknown_option_is_an_error_that_names_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, "explain secagg+fedadm")
    assert (code, out) == (1, "")
    assert "Did you mean 'fedadam'?" in err
