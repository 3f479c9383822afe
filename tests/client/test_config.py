"""agent.toml: what is written is read, and a mistyped key is never a key that is ignored."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.client import settings_file
from wildflower.client.config import AgentConfig, load_config, save_config
from wildflower.client.errors import ConfigError

GOOD = AgentConfig(
    name="a device",
    device_id="ab" * 32,
    endpoints_device="https://host:8443",
    endpoints_channel="host:8444",
    device_class="linux-generic",
)


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "agent.toml").write_text(text)
    return tmp_path


@settings(max_examples=50)
@given(
    name=st.text(max_size=30).filter(str.isprintable),
    poll_s=st.floats(0.1, 604_800.0),
    flags=st.lists(st.text(max_size=10).filter(str.isprintable), max_size=3).map(tuple),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, poll_s: float, flags: tuple[str, ...]
) -> None:
    directory = tmp_path_factory.mktemp("device")
    config = replace(GOOD, name=name, poll_s=poll_s, cpu_flags=flags, directory=directory)
    save_config(config)
    assert load_config(directory) == config


def test_a_device_knows_its_directory_wherever_its_programs_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_config(replace(GOOD, directory=tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    assert load_config(Path(tmp_path.name)).directory == tmp_path


def test_the_file_explains_itself(tmp_path: Path) -> None:
    save_config(replace(GOOD, directory=tmp_path))
    text = (tmp_path / "agent.toml").read_text()
    assert "# How often it looks for releases (seconds in [0.1, 604800])\npoll_s = 60.0\n" in text
    assert "directory" not in text.replace(", directory or", "")


BAD: dict[str, tuple[str, str, str]] = {
    "unknown": ("pol_s = 5", "unknown key pol_s = 5", "Did you mean poll_s?"),
    "nothing near": ("zzz = 5", "unknown key zzz = 5", "Known: name, "),
    "type": ('poll_s = "often"', "poll_s = 'often' is not allowed", "seconds in [0.1, 604800]"),
    "flag for a number": ("poll_s = true", "poll_s = True is not allowed", "seconds"),
    "range": ("poll_s = 0.01", "poll_s = 0.01 is not allowed", "seconds in [0.1, 604800]"),
    "not finite": ("poll_s = nan", "poll_s = nan is not allowed", "seconds"),
    "list": ('sources = "one"', "sources = 'one' is not allowed", "list of URLs"),
    "list of numbers": ("sources = [1]", "sources = (1,) is not allowed", "list of URLs"),
    "url": (
        'endpoints_device = "http://host"',
        "endpoints_device = 'http://host' is not allowed",
        "an https URL",
    ),
    "id": ('device_id = "ab"', "device_id = 'ab' is not allowed", "64 hex digits"),
    "control characters": ('name = "\\u0007"', r"name = '\x07' is not allowed", "text"),
    "not TOML": ("poll_s =", "agent.toml", ""),
    "too long": ("#" * 70_000, "at most 65536", ""),
}


@pytest.mark.parametrize(("text", "told", "hint"), BAD.values(), ids=BAD)
def test_an_error_names_key_value_and_what_is_allowed(
    text: str, told: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(written(tmp_path, text))
    assert told in str(error.value)
    assert hint in error.value.hint


def test_a_device_that_is_not_enrolled_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*agent\.toml") as error:
        load_config(tmp_path)
    assert "device enroll" in error.value.hint


def test_a_whole_number_is_a_number_of_seconds(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "poll_s = 5")).poll_s == 5.0


def test_the_server_is_the_last_source_and_named_once() -> None:
    assert GOOD.all_sources == ("https://host:8443",)
    both = replace(GOOD, sources=("http://mirror", "https://host:8443"))
    assert both.all_sources == ("http://mirror", "https://host:8443")


def test_a_target_group_is_model_and_class() -> None:
    assert replace(GOOD, model="digits").target_group == "digits.linux-generic"


def test_settings_made_in_code_are_checked_too() -> None:
    settings_file.check(GOOD)
    with pytest.raises(ConfigError, match=r"AgentConfig: upload_s = 0\.0 is not allowed"):
        settings_file.check(replace(GOOD, upload_s=0.0))


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_settings_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    directory = tmp_path_factory.mktemp("device")
    (directory / "agent.toml").write_bytes(data)
    found: Any = None
    try:
        found = load_config(directory)
    except ConfigError:
        return
    assert isinstance(found, AgentConfig)
