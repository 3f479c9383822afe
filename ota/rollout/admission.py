"""Which devices a rollout reaches, decided by each device from signed, public values.

A device's place is a hash of the rollout's salt and its id: who comes first differs between
rollouts, needs no list on the server, works offline, and widening never drops a device. The rule
is frozen by golden values; devices and server must agree on it for ever.
"""

import hashlib
from collections.abc import Iterable


def is_admitted(salt: bytes, device_id: str, permille: int) -> bool:
    """Whether the device belongs to the first `permille` thousandths.

    Args:
        salt: The rollout's salt.
        device_id: Hex id of the device.
        permille: Share of the target group, in [0, 1000].

    Example:
        >>> is_admitted(b"salt", "device", 1000), is_admitted(b"salt", "device", 0)
        (True, False)
    """
    place = int.from_bytes(hashlib.sha256(salt + device_id.encode()).digest()[:8], "big")
    return place * 1000 >> 64 < permille


def draw_salt(
    device_ids: Iterable[str], permille: int, entropy: bytes, *, tries: int = 512
) -> bytes:
    """Draw a salt under which a small group has a canary, and no more canaries than asked for.

    Args:
        device_ids: The target group's devices.
        permille: The first stage's share, in [0, 1000].
        entropy: 32 fresh random bytes; the salts tried are derived from them.
        tries: After this many salts the last one is taken as it is.

    Returns:
        16 bytes of salt. Unless `tries` ran out, it admits at least one device of a group that is
        not empty, and at most its share of the group, rounded up.
    """
    group = list(device_ids)
    most = max(1, -(-len(group) * permille // 1000))
    salt = b""
    for attempt in range(tries):
        salt = hashlib.sha256(entropy + attempt.to_bytes(4, "big")).digest()[:16]
        admitted = sum(is_admitted(salt, device, permille) for device in group)
        if not group or permille in (0, 1000) or 1 <= admitted <= most:
            break
    return salt
