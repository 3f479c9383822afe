"""A room's public names, resolved when they are asked for (PEP 562).

Importing a room must cost nothing: a device that imports `wildflower.client` has no torch. So a
room's `__init__` names what outsiders use and where it is defined, and imports none of it.
"""

import importlib
from collections.abc import Callable, Mapping


def lazily(
    room: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return a module's `__getattr__`, which imports each name from its home, and its `__dir__`.

    Args:
        room: The module's `__name__`.
        homes: Module that defines each name, relative to the room.

    Example:
        >>> find, names = lazily("wildflower.ota", {"OtaError": "errors"})
        >>> find("OtaError").__name__
        'OtaError'
    """

    def find(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{homes[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(importlib.import_module(room)), *homes})

    return find, names
