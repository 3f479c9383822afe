"""Options and settings shared by all tests."""

import hashlib
import os
import subprocess
import time

import pytest

os.environ |= {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
STARTED = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="rewrite golden files")
    parser.addoption("--sample", type=int, default=0, help="stop drawing tests after N seconds")


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607  git is found where the user has it
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "no-commit"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order a sampled run by hash of test name and commit, so that each commit draws anew."""
    if config.getoption("sample"):
        seed = commit()
        print(f"\nslow sample: seed {seed}, {config.getoption('sample')} s")  # noqa: T201
        items.sort(key=lambda item: hashlib.sha256(f"{seed}{item.nodeid}".encode()).digest())


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[STARTED] = time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    budget = item.config.getoption("sample")
    if budget and time.monotonic() - item.config.stash[STARTED] > budget:
        pytest.skip("not drawn: the sample's time is over")


@pytest.fixture
def update_goldens(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("update_goldens"))
