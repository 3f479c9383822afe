"""How a frozen dataclass is read from a TOML file that people edit, and written with comments.

Every error names the file, the key, the value and what is allowed; an unknown key is refused with
the nearest known one, because a mistyped policy must never be a policy that is not applied.
"""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from wildflower.client.errors import ConfigError

T = TypeVar("T")
MAX_FILE: Final = 65_536  # bytes


def setting(default: Any, allowed: str, holds: Callable[[Any], bool], *, about: str = "") -> Any:
    """Declare a field of a settings dataclass.

    Args:
        default: Its value when the file does not mention it; its type is the field's type.
        allowed: What is allowed, for errors and comments.
        holds: Whether a value of the right type is allowed.
        about: What it is for, the comment above it in the file.
    """
    metadata = {"allowed": allowed, "holds": holds, "about": about}
    return dataclasses.field(default=default, metadata=metadata)


def read(kind: type[T], path: Path) -> T:
    """Read a settings file; what it does not mention has its default.

    Raises:
        ConfigError: No such file, not TOML, an unknown key, or a value that is not allowed.
    """
    try:
        data = path.read_bytes()
        if len(data) > MAX_FILE:
            raise ConfigError(f"{path}: {len(data)} bytes, at most {MAX_FILE} are read")
        found = tomllib.loads(data.decode())
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no {path}", hint="Enrol first: wildflower device enroll"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    known = {field.name: field for field in dataclasses.fields(kind) if field.metadata}  # type: ignore[arg-type]  # callers pass dataclasses
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}"
            raise ConfigError(f"{path}: unknown key {key} = {found[key]!r}", hint=hint)
    return kind(**{key: _checked(path, known[key], value) for key, value in found.items()})


def check(settings: Any) -> None:
    """Check settings that were made in code as those in a file are.

    Raises:
        ConfigError: A value is not allowed.
    """
    for field in dataclasses.fields(settings):
        if field.metadata:
            _checked(Path(type(settings).__name__), field, getattr(settings, field.name))


def _checked(path: Path, field: Any, value: Any) -> Any:
    expected = type(field.default)
    if expected is tuple and isinstance(value, list):
        value = tuple(value)
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected or not field.metadata["holds"](value):
        raise ConfigError(
            f"{path}: {field.name} = {value!r} is not allowed",
            hint=f"Allowed: {field.metadata['allowed']}",
        )
    return value


def write(settings: Any, path: Path) -> None:
    """Write a settings file with a comment above each key, atomically."""
    lines = []
    for field in dataclasses.fields(settings):
        if field.metadata:
            value = getattr(settings, field.name)
            about = f"{field.metadata['about']} ({field.metadata['allowed']})"
            lines += [f"# {about}", f"{field.name} = {_toml(value)}", ""]
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(lines))
    partial.replace(path)


def _toml(value: Any) -> str:
    """Return a value in TOML; for text, flags, numbers and lists of text JSON is the same."""
    plain = list(value) if isinstance(value, tuple) else value
    return json.dumps(plain, ensure_ascii=False)  # TOML knows no surrogate pairs


def is_text(value: Any) -> bool:
    """Whether a value is text of a sane length without control characters."""
    return len(value) <= 1000 and value.isprintable()


def are_texts(value: Any) -> bool:
    """Whether a value is a short list of such text."""
    return len(value) <= 64 and all(isinstance(item, str) and is_text(item) for item in value)
