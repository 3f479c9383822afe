"""What each room exports is a decision, not an accident (after httpx's own test)."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("client", "ota", "server", "simulation", "strategies")
HEAVY = (
    "cryptography", "fastapi", "flwr", "grpc", "httpx", "matplotlib", "numpy", "onnx",
    "onnxruntime", "pydantic", "rich", "sqlmodel", "torch", "tuf", "typer",
)  # fmt: skip
PACKAGES = sorted(
    ".".join(("wildflower", *init.parent.relative_to(ROOT).parts))
    for room in ROOMS
    for init in (ROOT / room).rglob("__init__.py")
    if "migrations" not in init.parts
)


def loaded(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after one statement."""
    code = f"{statement}; import sys; print(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_packages_imports_nothing_heavy() -> None:
    found = loaded(f"import {', '.join(PACKAGES)}")
    assert "wildflower" in found
    assert sorted(found & set(HEAVY)) == []


def test_log_lines_cost_a_daemon_no_heavy_package() -> None:
    assert sorted(loaded("import wildflower.logs, wildflower.extras") & set(HEAVY)) == []


@pytest.mark.parametrize("room", ROOMS)
def test_all_is_sorted_and_every_name_resolves(room: str) -> None:
    module = importlib.import_module(f"wildflower.{room}")
    exported = getattr(module, "__all__", [])
    assert list(exported) == sorted(set(exported))
    assert [name for name in exported if not hasattr(module, name)] == []
    assert set(exported) <= set(dir(module))


@pytest.mark.parametrize("room", ROOMS)
def test_a_name_that_is_not_exported_is_an_attribute_error(room: str) -> None:
    module = importlib.import_module(f"wildflower.{room}")
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018  the access is the test
