"""The role that signs software other than models: it exists only where an operator delegated it.

A repository begins without it, so that no key, stolen or lent, can send a device anything but
models. Delegating is a change of the top-level targets, which the keys of `targets` sign offline.
The role signs `software/*` and nothing else; devices of an owner whose policy names no line of
software do not ask for it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from securesystemslib.signer import Signer
from tuf.api.metadata import DelegatedRole

from wildflower.ota.errors import SigningError
from wildflower.ota.release.keys import SOFTWARE, RoleKeys
from wildflower.ota.release.signing import put_target, read_targets, renew
from wildflower.ota.release.software import Software, software_path

PATHS: Final = "software/*"


def delegate_software(
    targets: bytes, keys: RoleKeys, signers: Sequence[Signer], *, expires: datetime
) -> bytes:
    """Return the top-level targets with the role `software` in it, or with other keys for it.

    Args:
        targets: The current metadata of the top-level targets.
        keys: Who signs software, and how many of them must.
        signers: The keys of `targets`; with fewer than its threshold the rest may `countersign`.
        expires: When the new version expires.

    Raises:
        FormatError: The metadata cannot be parsed.
        SigningError: It delegates nothing, so it is not the top-level targets.
    """
    metadata = read_targets(targets)
    delegations = metadata.signed.delegations
    if delegations is None or delegations.roles is None:
        raise SigningError("these targets delegate nothing: expected the top-level ones")
    if SOFTWARE in delegations.roles:
        for keyid in list(delegations.roles[SOFTWARE].keyids):
            metadata.signed.revoke_key(keyid, SOFTWARE)
    role = DelegatedRole(SOFTWARE, [], keys.threshold, terminating=True, paths=[PATHS])
    delegations.roles[SOFTWARE] = role
    for key in keys.public_keys:
        metadata.signed.add_key(key, SOFTWARE)
    return renew(metadata.to_bytes(), signers, expires=expires)


def add_software(
    metadata: bytes, software: Software, signers: Sequence[Signer], *, expires: datetime
) -> bytes:
    """Return the role `software` with the newest document of a line, in its next version.

    Raises:
        FormatError: The metadata cannot be parsed, or the document is out of range.
    """
    software.check()
    path, data = software_path(software.name), software.to_bytes()
    return put_target(metadata, path, data, signers, expires=expires)
