"""Coverage-guided fuzzing of every parser, a bounded number of runs each, in child processes."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz.targets import targets

ROOT = Path(__file__).parents[2]
RUNS = 5_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None,
        reason="atheris is not here: pip install atheris, and nothing is fuzzed by coverage",
    ),
]


@pytest.mark.parametrize("name", targets())
def test_nothing_is_found_that_a_parser_falls_over(name: str, tmp_path: Path) -> None:
    (corpus := tmp_path / "corpus").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided_child", name, str(RUNS), str(corpus)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(rf"Done {RUNS} runs", done.stderr)
    assert len(list(corpus.iterdir())) > len(targets()[name].seeds)  # it has learned something
