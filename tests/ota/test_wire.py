"""The generated messages are what protoc makes of device.proto."""

from pathlib import Path

import pytest

from wildflower.ota.wire import device_pb2

WIRE = Path(__file__).parents[2] / "ota" / "wire"
GENERATED = ("device_pb2.py", "device_pb2.pyi")


def generate(target: Path) -> dict[str, str]:
    """Return what `python -m grpc_tools.protoc` writes, by file name."""
    from grpc_tools import protoc

    arguments = ["protoc", f"-I{WIRE}", f"--python_out={target}", f"--pyi_out={target}"]
    assert protoc.main([*arguments, str(WIRE / "device.proto")]) == 0
    return {name: (target / name).read_text() for name in GENERATED}


def test_the_generated_files_are_fresh(tmp_path: Path, update_goldens: bool) -> None:
    made = generate(tmp_path)
    if update_goldens:
        for name, text in made.items():
            (WIRE / name).write_text(text)
    assert made == {name: (WIRE / name).read_text() for name in GENERATED}


def test_the_messages_speak_without_grpc_stubs() -> None:
    (service,) = device_pb2.DESCRIPTOR.services_by_name.values()
    assert service.full_name == "wildflower.device.v1.Device"
    assert [method.name for method in service.methods] == [
        "Watch",
        "Report",
        "UploadSummaries",
        "CheckIn",
    ]


@pytest.mark.parametrize("name", ["WatchRequest", "Hint", "SignedDocument", "SummaryBatch"])
def test_an_unknown_field_of_a_newer_peer_is_no_error(name: str) -> None:
    message = getattr(device_pb2, name)()
    message.ParseFromString(b"\xfa\x01\x03new")  # field 31, length-delimited
    assert not message.ListFields()
