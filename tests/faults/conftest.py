"""Faults are made by strace; where it is missing or may not trace, these tests cannot run."""

import pytest
from tests.faults.strace import is_here


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if "tests/faults/" in item.nodeid]
    if mine and not is_here():
        for item in mine:
            item.add_marker(pytest.mark.skip(reason="strace is not here: apt install strace"))
