"""The stream is the one that the standard describes, however it is drawn."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from wildflower.strategies.keystream import CHUNK, Keystream, scratch

KEY = bytes(range(32))


def counter_mode(length: int) -> bytes:
    encryptor = Cipher(algorithms.AES(KEY), modes.CTR(bytes(12) + b"\0\0\0\2")).encryptor()
    return encryptor.update(bytes(length))


@given(st.lists(st.integers(0, CHUNK // 16), max_size=6), st.integers(0, CHUNK))
def test_pieces_of_a_stream_are_the_stream(blocks: list[int], last: int) -> None:
    stream, buffer, found = Keystream(KEY), scratch(), b""
    for length in [*(16 * count for count in blocks), last]:
        stream.fill(buffer, length)
        found += buffer[:length].tobytes()
    assert found == counter_mode(len(found))


def test_streams_of_two_keys_have_nothing_in_common() -> None:
    buffers = [scratch(), scratch()]
    for key, buffer in zip((KEY, bytes(32)), buffers, strict=True):
        Keystream(key).fill(buffer, CHUNK)
    assert np.count_nonzero(buffers[0][:CHUNK] == buffers[1][:CHUNK]) < CHUNK / 200


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_has_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match=f"found {length}"):
        Keystream(bytes(length))
