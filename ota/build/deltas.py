"""The deltas that a new artifact is offered by: from the last ones of its target group.

Comparing takes the time of a build and several times the files' memory, so it is done where builds
are done and cached as they are. What comes of it is only a shorter way: an old file that cannot be
compared costs its devices bytes, and nobody the release.
"""

import logging
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from wildflower.ota import canonical
from wildflower.ota.build.line import Stage, key
from wildflower.ota.build.store import BuildStore
from wildflower.ota.delta import plan
from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.tensors import regions_of
from wildflower.ota.errors import DeltaError

log = logging.getLogger(__name__)

DELTA: Final = Stage("delta", 2, {})
TOOLS: Final = ("bsdiff4", "numpy")


@dataclass(frozen=True, slots=True)
class MadeDelta:
    """A delta that is worth offering.

    Attributes:
        base: Digest of the artifact that it starts from.
        data: Its bytes.
    """

    base: str
    data: bytes = field(repr=False)


def deltas_to(target: bytes, earlier: Sequence[bytes], store: BuildStore) -> Iterator[MadeDelta]:
    """Yield the deltas to offer, from the newest artifact first.

    Args:
        target: The new artifact.
        earlier: The artifacts of the group's releases, the oldest first.
        store: Where what was compared before is kept.
    """
    known = {canonical.digest(one): one for one in earlier}
    digest = canonical.digest(target)
    for base in plan.bases([canonical.digest(one) for one in earlier], digest):
        try:
            data = _made(known[base], target, store)
        except DeltaError as error:
            log.warning("no delta from %s: %s", base[:12], error)
            continue
        is_offered = plan.is_worthwhile(len(data), len(target))
        fields = {"base": base, "artifact": digest, "length": len(data), "whole": len(target)}
        log.info("delta made", extra=fields | {"offered": is_offered})
        if is_offered:
            yield MadeDelta(base, data)


def _made(base: bytes, target: bytes, store: BuildStore) -> bytes:
    inputs = {"base": canonical.digest(base), "target": canonical.digest(target)}
    tools = {name: version(name) for name in TOOLS} | {"python": platform.python_version()}
    toolchain = canonical.digest(canonical.to_bytes(tools))
    outputs, _ = store.made(
        key(DELTA, inputs, toolchain),
        lambda: {"delta": diff(base, target, regions_of(base), regions_of(target))},
    )
    return outputs["delta"]
