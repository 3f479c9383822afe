"""What a device says of itself, as the kernel and the packages have it."""

import platform
from pathlib import Path

import onnxruntime

import wildflower
from wildflower.client.self_report import cpu_flags, measure_self

X86 = """processor\t: 0
flags\t\t: fpu avx2 avx512_vnni
processor\t: 1
flags\t\t: fpu avx2
"""
ARM = """processor\t: 0
Features\t: fp asimd
CPU part\t: 0xd08
"""


def test_flags_are_those_of_every_cpu() -> None:
    assert cpu_flags(X86) == ("avx2", "fpu")
    assert cpu_flags(ARM) == ("asimd", "fp")
    assert cpu_flags("") == ()


def test_this_machine_is_measured(tmp_path: Path) -> None:
    found = measure_self(tmp_path)
    assert found.machine == platform.machine()
    assert found.cpu_flags
    assert found.ram_bytes > 2**28
    assert found.disk_bytes > 0
    assert found.agent == wildflower.__version__
    assert found.runtimes["onnxruntime"] == onnxruntime.__version__
    assert type(found).from_bytes(found.to_bytes()) == found


def test_an_emulated_device_claims_flags_beyond_its_own(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(X86)
    found = measure_self(tmp_path, claimed_flags=["avx_vnni"], cpu_info=tmp_path / "cpuinfo")
    assert found.cpu_flags == ("avx2", "avx_vnni", "fpu")


def test_without_a_proc_file_system_there_are_no_flags(tmp_path: Path) -> None:
    assert measure_self(tmp_path, cpu_info=tmp_path / "none").cpu_flags == ()


def test_a_directory_that_is_to_be_made_is_measured_where_it_will_be(tmp_path: Path) -> None:
    found = measure_self(tmp_path / "not" / "yet", wanted_class="linux-generic")
    assert found.disk_bytes > 0
    assert found.wanted_class == "linux-generic"
