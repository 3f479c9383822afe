"""What the demo's people do wrong: they sign releases whose golden outputs belong to another model.

The gates and the release signer would have refused them. Offline keys do what people tell them, so
the last to notice are the devices, in the trial.
"""

import io
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from wildflower.ota import canonical
from wildflower.ota.release.manifest import FileEntry, Release
from wildflower.server.api.views import ReleaseView
from wildflower.server.cli.remote import Remote
from wildflower.server.cli.sign import load_signers, sign_release


def sign_wrong_releases(
    remote: Remote, good: list[ReleaseView], keys: Path, *, expires: datetime
) -> list[ReleaseView]:
    """Sign a wrong release beside each good one; return the wrong ones.

    Args:
        remote: The server.
        good: Releases whose files the wrong ones take over, but for the golden outputs.
        keys: Where the `approved` keys lie.
        expires: When their signatures expire.
    """
    signers = load_signers(keys)
    wrong = []
    for one in good:
        manifest = Release.from_bytes(remote.blob(one.digest))
        spoilt = spoil(remote.blob(manifest.file("golden").digest))
        remote.put_blob(spoilt)
        golden = replace(
            manifest.file("golden"), digest=canonical.digest(spoilt), length=len(spoilt)
        )
        files = tuple(golden if entry.role == "golden" else entry for entry in manifest.files)
        _, view = sign_release(remote, _without_proof(manifest, files), signers, expires=expires)
        wrong.append(view)
    return wrong


def spoil(golden: bytes) -> bytes:
    """Return golden outputs that no such model gives: each row's best class becomes its worst."""
    with np.load(io.BytesIO(golden), allow_pickle=False) as arrays:
        inputs, outputs = arrays["inputs"], arrays["outputs"]
    file = io.BytesIO()
    np.savez(file, inputs=inputs, outputs=-outputs)
    return file.getvalue()


def _without_proof(manifest: Release, files: tuple[FileEntry, ...]) -> Release:
    """A release that people sign names no gate report: none has seen these files."""
    lineage = replace(manifest.lineage, gate_report="")
    return replace(manifest, files=files, lineage=lineage, order=manifest.order + 1)
