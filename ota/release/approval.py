"""The statements of releases that people approve: read before they sign, and signed by them.

A statement is a target of the role that signed its release, so all who sign the role's metadata
vouch for its bytes. Its envelope is signed before the metadata is, by the keys of the first machine
that signs: each signature in it changes its bytes, and what others have signed would be signed in
vain. Devices go by the metadata; the envelope is for everybody else.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from securesystemslib.signer import Signer
from tuf.api.exceptions import LengthOrHashMismatchError

from wildflower.ota.errors import RefusedError
from wildflower.ota.release.manifest import Release
from wildflower.ota.release.signing import put_unsigned, read_targets
from wildflower.ota.release.statement import (
    Provenance,
    cosign_statement,
    read_statement,
    statement_path,
)

ENDING: Final = statement_path("")


def statements_in(metadata: bytes, targets: Mapping[str, bytes]) -> dict[str, Provenance]:
    """Return the statements among the contents that a role's metadata brings, by path.

    Args:
        metadata: The role's, signed or not.
        targets: Contents by target path; others than statements and manifests are passed over.

    Raises:
        FormatError: The metadata, a statement or a manifest cannot be read.
        RefusedError: A statement is not what the metadata names, or not of its release.
    """
    named, found = read_targets(metadata).signed.targets, {}
    manifests = {statement_path(path): path for path in targets if not path.endswith(ENDING)}
    for path in sorted(path for path in targets if path.endswith(ENDING)):
        beside = manifests.get(path, "")
        if path not in named or not beside:
            raise RefusedError(
                f"{path}: a statement that the metadata does not name, or of nothing"
            )
        try:
            named[path].verify_length_and_hashes(targets[path])
        except LengthOrHashMismatchError as error:
            raise RefusedError(f"{path}: not what the metadata names: {error}") from error
        found[path] = read_statement(targets[path])
        found[path].check(Release.from_bytes(targets[beside]))
    return found


def sign_statements(
    metadata: bytes, targets: Mapping[str, bytes], signers: Sequence[Signer]
) -> tuple[bytes, dict[str, bytes]]:
    """Sign the statements among the contents, unless the metadata that names them is signed.

    Returns:
        The metadata, which names them as they are now, and all contents.

    Raises:
        FormatError: The metadata, a statement or a manifest cannot be read.
        RefusedError: A statement is not what the metadata names, or not of its release.
    """
    contents = dict(targets)
    statements = statements_in(metadata, targets)
    if read_targets(metadata).signatures:
        return metadata, contents
    for path in statements:
        contents[path] = cosign_statement(contents[path], signers)
        metadata = put_unsigned(metadata, path, contents[path])
    return metadata, contents
