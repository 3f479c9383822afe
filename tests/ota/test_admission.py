import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota.rollout.admission import draw_salt, is_admitted

IDS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(200)]


@pytest.mark.parametrize(
    ("salt", "device", "first"), [(b"salt", "device", 599), (b"", "", 890), (b"spring", "a", 863)]
)
def test_a_devices_place_never_changes(salt: bytes, device: str, first: int) -> None:
    """Frozen: servers and devices of all versions must agree on it."""
    assert not is_admitted(salt, device, first - 1)
    assert is_admitted(salt, device, first)


@given(st.binary(max_size=20), st.text(max_size=20), st.integers(0, 1000), st.integers(0, 1000))
def test_widening_a_rollout_never_drops_a_device(
    salt: bytes, device: str, low: int, high: int
) -> None:
    narrow, wide = sorted((low, high))
    assert is_admitted(salt, device, wide) or not is_admitted(salt, device, narrow)
    assert is_admitted(salt, device, 1000)
    assert not is_admitted(salt, device, 0)


def test_the_share_is_kept_in_a_large_fleet() -> None:
    fleet = [f"{number:064x}" for number in range(20_000)]
    admitted = sum(is_admitted(b"salt", device, 100) for device in fleet)
    assert 1850 < admitted < 2150  # 2000, five standard deviations of 42 and less


@given(st.integers(1, 40), st.integers(1, 999), st.binary(min_size=32, max_size=32))
def test_a_small_group_has_a_canary_and_no_more_than_its_share(
    size: int, permille: int, entropy: bytes
) -> None:
    group = IDS[:size]
    salt = draw_salt(group, permille, entropy)
    admitted = sum(is_admitted(salt, device, permille) for device in group)
    if size * permille >= 1000:  # smaller shares may run out of tries
        assert 1 <= admitted <= -(-size * permille // 1000)


def test_one_device_is_its_own_canary() -> None:
    salt = draw_salt(IDS[:1], 250, bytes(32))
    assert is_admitted(salt, IDS[0], 250)


@pytest.mark.parametrize("permille", [0, 1000])
def test_nobody_and_everybody_take_the_first_salt(permille: int) -> None:
    assert draw_salt(IDS, permille, bytes(32)) == draw_salt([], 500, bytes(32))


def test_hopeless_draws_end() -> None:
    assert len(draw_salt(IDS[:1], 1, bytes(32), tries=3)) == 16
