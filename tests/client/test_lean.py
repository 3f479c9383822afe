"""Importing a package while another seems not to be there."""

import subprocess
import sys

import pytest

from wildflower.client.lean import import_lean


def loaded(code: str) -> str:
    command = f"import sys; {code}; print('click' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_httpx_comes_without_its_command_line() -> None:
    assert loaded("import wildflower.client.lean, httpx; httpx.Client().close()") == "False False"


def test_what_was_hidden_can_be_imported_afterwards() -> None:
    assert loaded("import wildflower.client.lean, click, rich.console") == "True True"


def test_where_commands_run_nothing_is_hidden() -> None:
    assert loaded("import click, wildflower.client.lean; assert sys.modules['click']") == (
        "True False"
    )


def test_a_package_that_is_not_there_hides_nothing_for_good() -> None:
    with pytest.raises(ImportError):
        import_lean("no_such_package_anywhere", "nor_this_one")
    assert "nor_this_one" not in sys.modules
