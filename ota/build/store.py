"""A content-addressed cache of stage outputs: what was built once is never built again.

    <root>/outputs/<digest>      the bytes of an output, named by what they are
    <root>/keys/<key>.json       {"outputs": {name: digest}}: what a stage made of its inputs

Nothing is trusted when it is read: an output whose bytes are not its name counts as absent, so a
damaged cache costs a rebuild and never a wrong artifact. Writes go through a rename, so two builds
may share a cache and a kill leaves no half output behind.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError

KIND: Final = "wildflower.build-entry"

Outputs = Mapping[str, bytes]


class BuildStore:
    """The cache in one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        for name in ("outputs", "keys"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Outputs | None:
        """Return the outputs of a stage, or None if they are not here whole."""
        try:
            document = canonical.from_bytes(self._entry(key).read_bytes(), kind=KIND)
            found = {
                str(name): self._output(str(digest)).read_bytes()
                for name, digest in document["outputs"].items()
            }
        except (OSError, FormatError, KeyError, AttributeError):
            return None
        expected = document["outputs"]
        is_whole = all(canonical.digest(data) == expected[name] for name, data in found.items())
        return found if is_whole else None

    def put(self, key: str, outputs: Outputs) -> None:
        """Remember the outputs of a stage.

        Raises:
            OSError: They cannot be written.
        """
        digests = {name: canonical.digest(data) for name, data in outputs.items()}
        for name, data in outputs.items():
            _write(self._output(digests[name]), data)
        document = {"kind": KIND, "format": 1, "outputs": digests}
        _write(self._entry(key), canonical.to_bytes(document))

    def made(self, key: str, make: Callable[[], Outputs]) -> tuple[Outputs, bool]:
        """Return a stage's outputs, made now if they are not here.

        Returns:
            The outputs, and whether they came from the cache.
        """
        found = self.get(key)
        if found is not None:
            return found, True
        outputs = make()
        self.put(key, outputs)
        return outputs, False

    def _output(self, digest: str) -> Path:
        return self._root / "outputs" / digest

    def _entry(self, key: str) -> Path:
        return self._root / "keys" / f"{key}.json"


def _write(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            temporary.unlink()
            raise
    temporary.replace(path)
