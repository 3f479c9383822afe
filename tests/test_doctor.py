"""The doctor is shown machines it dislikes, and this one."""

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from wildflower import __version__, doctor
from wildflower.cli import main
from wildflower.doctor import DOUBLE, Check, Diagnosis, State
from wildflower.extras import Extra
from wildflower.ota.device.profile import CLASSES, SelfReport

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def test_this_machine_is_well(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--dir", str(tmp_path / "not" / "yet"), "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    assert caught.value.code == 0
    assert found["success"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert {"python", "runtime", "device class", "disk", "clock", "flwr"} < set(checks)
    assert checks["runtime"]["found"].endswith("runs a model")
    assert str(tmp_path) in checks["disk"]["found"]


def test_a_failed_check_fails_the_diagnosis_and_a_warning_does_not() -> None:
    assert Diagnosis((Check("a", State.OK, ""), Check("b", State.WARN, ""))).succeeded
    assert not Diagnosis((Check("a", State.OK, ""), Check("b", State.FAIL, ""))).succeeded


def test_the_version_is_the_package_s() -> None:
    assert doctor.show_version().version == __version__


@pytest.mark.parametrize(
    ("found", "state"),
    [((3, 10), State.FAIL), ((3, 11), State.OK), ((3, 13), State.OK), ((4, 0), State.OK)],
)
def test_an_old_python_is_refused(found: tuple[int, int], state: State) -> None:
    assert doctor.check_python(found).state is state


def test_a_missing_extra_is_no_fault_and_says_what_it_would_be_for() -> None:
    check = doctor.check_extra(Extra("train", ("flwr", "torch")))
    assert check.state is State.OK
    assert check.found == "missing flwr, torch"
    assert check.advice == "For a device that trains: pip install 'wildflower[train]'"


@pytest.mark.parametrize(
    ("found", "state"),
    [("1.40.9", State.FAIL), ("1.41.0", State.OK), ("1.42.5", State.OK), ("1.43.0", State.FAIL)],
)
def test_flower_outside_its_range_is_refused(found: str, state: State) -> None:
    check = doctor.check_flower(found, ['flwr<1.43,>=1.41; extra == "train"'])
    assert check.state is state
    if state is State.FAIL:
        assert check.advice == "pip install 'flwr<1.43,>=1.41'"


def test_the_tiny_model_is_what_it_says() -> None:
    import onnx

    model = onnx.load_from_string(DOUBLE)
    onnx.checker.check_model(model)
    (node,) = model.graph.node
    assert (node.op_type, list(node.input), list(node.output)) == ("Add", ["x", "x"], ["y"])
    assert model.opset_import[0].version == 13
    assert len(DOUBLE) == 63


def test_a_runtime_that_cannot_load_is_told() -> None:
    check = doctor.check_runtime(b"not a model")
    assert check.state is State.FAIL
    assert "cannot run a model" in check.found


def test_a_runtime_that_computes_wrongly_is_told() -> None:
    check = doctor.check_runtime(DOUBLE.replace(b"Add", b"Mul"))
    assert check.state is State.FAIL
    assert "21 + 21 = [441.0]" in check.found


@pytest.mark.parametrize(
    ("machine", "flags", "name"),
    [
        ("x86_64", ("avx2", "avx_vnni"), "linux-x86_64-vnni"),
        ("x86_64", ("avx2",), "linux-x86_64-avx2"),
        ("aarch64", ("neon",), "linux-generic"),
    ],
)
def test_a_machine_is_told_its_class(machine: str, flags: tuple[str, ...], name: str) -> None:
    check = doctor.check_class(SelfReport(machine, flags, 0, 0, __version__, {}))
    assert name in CLASSES
    assert check.found.startswith(f"{name} ({machine}, ")
    assert bool(check.advice) == (name == "linux-generic")


@pytest.mark.parametrize(
    ("free", "state"),
    [(2**20, State.FAIL), (2**30, State.WARN), (2**33, State.OK)],
)
def test_little_disk_is_a_warning_and_none_a_failure(free: int, state: State) -> None:
    assert doctor.check_disk(free, Path("/x")).state is state


def test_a_taken_port_is_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        check = doctor.check_port(listener.getsockname()[1], "operators")
    assert check.state is State.WARN
    assert "EADDRINUSE" in check.found


def test_a_free_port_is_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert doctor.check_port(port, "operators").state is State.OK


@pytest.mark.parametrize(
    ("installed", "state"),
    [
        (NOW - timedelta(days=1), State.OK),
        (NOW + timedelta(days=1), State.FAIL),
    ],
)
def test_a_clock_before_the_installation_is_wrong(
    installed: datetime, state: State, tmp_path: Path
) -> None:
    file = tmp_path / "__init__.py"
    file.touch()
    os.utime(file, (installed.timestamp(), installed.timestamp()))
    assert doctor.check_clock(NOW, file).state is state
    assert doctor.check_clock(NOW.replace(year=2110), file).state is State.FAIL
