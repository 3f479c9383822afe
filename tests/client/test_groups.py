"""Finding a device's target group in the repository's list."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.client.errors import ConfigError
from wildflower.client.groups import find_group, groups_of


def listing(*paths: str) -> bytes:
    return json.dumps({"signed": {"targets": {path: {} for path in paths}}}).encode()


HERE = listing("rollout/digits.linux-generic.json", "rollout/digits.linux-x86_64-avx2.json")


def test_a_device_finds_the_group_of_its_class(tmp_path: Path) -> None:
    (tmp_path / "rollout.json").write_bytes(HERE)
    assert find_group(tmp_path, "linux-generic") == "digits.linux-generic"


def test_before_the_first_rollout_there_is_no_group(tmp_path: Path) -> None:
    assert find_group(tmp_path, "linux-generic") == ""
    (tmp_path / "rollout.json").write_bytes(listing())
    assert find_group(tmp_path, "linux-generic") == ""


def test_of_several_models_the_owner_must_choose(tmp_path: Path) -> None:
    (tmp_path / "rollout.json").write_bytes(listing("rollout/a.x.json", "rollout/b.x.json"))
    with pytest.raises(ConfigError, match="several models are rolled out to x: a, b") as error:
        find_group(tmp_path, "x")
    assert 'model = "NAME"' in error.value.hint


def test_a_class_whose_name_ends_alike_is_another() -> None:
    assert groups_of(listing("rollout/a.not-x.json", "rollout/x.json"), "x") == []


@given(st.binary(max_size=100) | st.sampled_from([b"[]", b'{"signed": 1}', b"[" * 5000]))
def test_what_is_no_list_lists_nothing(data: bytes) -> None:
    assert groups_of(data, "linux-generic") == []


def test_a_list_beyond_all_measure_is_not_read() -> None:
    assert groups_of(HERE + b" " * 5_000_000, "linux-generic") == []
