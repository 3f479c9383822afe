"""The client that devices run against a table of scenarios, each of a section of the TUF spec.

Ordinary runs call the client with a clock of its own; the slow suite runs every scenario again as
tuf-conformance would, a process a command.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests import (
    conformance_delegations,
    conformance_online,
    conformance_roots,
    conformance_targets,
)
from tests.conformance_bench import Case, as_process, bench, in_process

from wildflower.client import conformance

CASES = [
    *conformance_roots.CASES,
    *conformance_online.CASES,
    *conformance_delegations.CASES,
    *conformance_targets.CASES,
]
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def test_the_table_is_long_enough_and_every_case_names_its_section() -> None:
    assert len(CASES) >= 40
    assert all(re.fullmatch(r"[456](\.\d+)+", case.section) for case in CASES)
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_client_does_as_the_specification_says(case: Case, tmp_path: Path) -> None:
    with bench(tmp_path, in_process(NOW), NOW) as on:
        case.play(on)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("faketime"), reason="apt install faketime")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_client_in_a_process_of_its_own_does_so_too(case: Case, tmp_path: Path) -> None:
    with bench(tmp_path, as_process, datetime.now(UTC).replace(microsecond=0)) as on:
        case.play(on)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_suite_of_the_tuf_project_passes(tmp_path: Path) -> None:
    found = importlib.util.find_spec("tuf_conformance")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tuf-conformance is not installed: no package index had it")
    entry = f"{sys.executable} -m wildflower.client.conformance"
    place = found.submodule_search_locations[0]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", place, "--entrypoint", entry],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-4000:]


def test_one_process_of_its_own_keeps_the_contract(tmp_path: Path) -> None:
    with bench(tmp_path, as_process, datetime.now(UTC).replace(microsecond=0)) as on:
        on.repository.add_target("targets", "file", b"data")
        on.repository.publish("targets")
        assert on.init() == 0
        assert on.download("file") == 0
        assert on.downloaded() == [b"data"]
        assert on.download("missing") == 1


@pytest.mark.parametrize(
    "line",
    [
        "",
        "refresh",
        "--metadata-dir D",
        "--metadata-dir D refresh",
        "--metadata-dir D --metadata-url http://h download",
        "--metadata-dir D --metadata-url http://h --target-name n download",
        "--metadata-dir D init",
        "--metadata-dir D sing",
        "--metadata-dir D --unknown refresh",
    ],
)
def test_a_command_line_that_is_none_exits_with_one(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        conformance.main(line.split())
    assert end.value.code == 1
    assert capsys.readouterr().err


def test_a_failure_is_one_line_that_says_what_was_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with bench(tmp_path, in_process(NOW), NOW) as on:
        assert on.init() == 0
        assert on.refresh(days=400) == 1
    assert re.fullmatch(
        r"RefusedError: metadata: expired: .*\(as of 2027-.*\)\n", capsys.readouterr().err
    )


def test_a_refresh_without_init_is_an_error_and_asks_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with bench(tmp_path, in_process(NOW), NOW) as on:
        assert on.refresh() == 1
        assert on.asked == []
    assert "pinned-root" in capsys.readouterr().err


def test_nothing_listens_is_an_error(tmp_path: Path) -> None:
    with bench(tmp_path, in_process(NOW), NOW) as on:
        assert on.init() == 0
    assert on.refresh() == 1
