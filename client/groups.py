"""Which target group a device belongs to, where its settings do not name a model.

A device that serves one model need not be told its name: the repository rolls out to groups called
"<model>.<device class>", and the metadata of the role `rollout` lists them. The list is read from
the cache that the TUF client has verified; what it names is verified again when it is fetched, so
a wrong list can lead a device nowhere that is not signed for it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wildflower.client.errors import ConfigError
from wildflower.ota.release.manifest import PLAIN_NAME

CACHED: Final = "rollout.json"
MAX_METADATA: Final = 5_000_000  # bytes; python-tuf's own limit for targets metadata


def groups_of(metadata: bytes, device_class: str) -> list[str]:
    """Return the target groups of a class that rollout metadata lists, sorted.

    Args:
        metadata: Of the role `rollout`; anything else lists none.
        device_class: The device's class.
    """
    if len(metadata) > MAX_METADATA:
        return []
    try:
        paths = [str(path) for path in json.loads(metadata)["signed"]["targets"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    names = [path.removeprefix("rollout/").removesuffix(".json") for path in paths]
    return sorted(name for name in names if name.endswith(f".{device_class}"))


def find_group(cache: Path, device_class: str, tell: Callable[[str], None] = lambda _: None) -> str:
    """Return the one target group of a class that the repository rolls out to; "" for none yet.

    Args:
        cache: Directory of the TUF client's verified metadata.
        device_class: The device's class.
        tell: Told of the first name that no group has, such as "../light.linux-generic". An online
            key that was stolen can list one; it must not keep the device from its own group.

    Raises:
        ConfigError: There are several; the settings must say which model it is to be.
    """
    try:
        found = groups_of((cache / CACHED).read_bytes(), device_class)
    except OSError:
        return ""
    for name in [name for name in found if not PLAIN_NAME.fullmatch(name)][:1]:
        tell(f"rollout metadata lists {name[:200]!r}, which is no target group")
    found = [name for name in found if PLAIN_NAME.fullmatch(name)]
    if len(found) > 1:
        models = ", ".join(name.removesuffix(f".{device_class}") for name in found)
        raise ConfigError(
            f"several models are rolled out to {device_class}: {models}",
            hint='Choose one in agent.toml: model = "NAME"',
        )
    return found[0] if found else ""
