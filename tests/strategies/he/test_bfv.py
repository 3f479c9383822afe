"""BFV: sums are exact, the server cannot decrypt, what is altered or foreign is refused."""

import functools
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.strategies.errors import CapacityError, MissingPackageError, ProtocolError
from wildflower.strategies.he import bfv
from wildflower.strategies.he.bfv import KeyPair, PublicKey, tenseal
from wildflower.strategies.he.messages import MAX_CIPHERTEXT, MAX_CONTEXT
from wildflower.strategies.he.packing import MAX_ADDENDS, PER_CHUNK, SLOTS


@functools.cache
def pair(number: int = 0) -> KeyPair:
    """Return a key pair, made once."""
    return KeyPair.make()


def residues(length: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.random.default_rng(seed).integers(0, 2**16, length, dtype=np.uint16)


@pytest.mark.parametrize("length", [1, PER_CHUNK - 1, PER_CHUNK, PER_CHUNK + 1])
def test_a_sum_of_odd_sizes_is_exact(length: int) -> None:
    server = PublicKey.load(pair().public.data)
    total = server.zero(length)
    rows = [residues(length, seed) for seed in range(5)]
    for row in rows:
        total.add(pair().public.encrypt(row))
    expected = np.sum(rows, axis=0, dtype=np.uint16)
    assert total.addends == 5
    assert np.array_equal(pair().decrypt(total.ciphertexts(), length, 5), expected)


def test_a_sum_of_127_extremes_is_exact_and_a_128th_is_refused() -> None:
    extreme = np.full(PER_CHUNK, 0xFFFF, np.uint16)
    total = pair().public.zero(PER_CHUNK)
    for _ in range(MAX_ADDENDS):
        total.add(pair().public.encrypt(extreme))
    with pytest.raises(CapacityError, match="found 128"):
        total.add(pair().public.encrypt(extreme))
    found = pair().decrypt(total.ciphertexts(), PER_CHUNK, MAX_ADDENDS)
    assert found.tolist() == [(0xFFFF * MAX_ADDENDS) % 2**16] * PER_CHUNK
    with pytest.raises(CapacityError, match="found 128"):
        pair().decrypt(total.ciphertexts(), PER_CHUNK, MAX_ADDENDS + 1)


def test_a_fresh_ciphertext_can_be_doubled_17_times_before_noise_shows() -> None:
    vector = tenseal().bfv_vector(pair().public._context, [0] * SLOTS)
    for _ in range(17):
        vector += vector
    read = tenseal().bfv_vector_from(pair()._context, vector.serialize())
    assert not any(read.decrypt())


def test_nothing_adds_up_to_nothing() -> None:
    assert pair().public.encrypt(residues(0)) == ()
    assert pair().public.zero(0).ciphertexts() == ()
    assert pair().decrypt((), 0, 3).size == 0


def test_two_encryptions_of_one_update_differ() -> None:
    (one,), (two,) = (pair().public.encrypt(residues(9)) for _ in range(2))
    assert one != two


def test_the_server_cannot_decrypt() -> None:
    server = PublicKey.load(pair().public.data)
    assert not server._context.is_private()
    assert not server._context.has_secret_key()
    total = server.zero(10)
    total.add(pair().public.encrypt(residues(10)))
    with pytest.raises(ValueError, match="secret_key"):
        total._chunks[0].decrypt()
    with pytest.raises(ProtocolError, match="lacks its secret key"):
        KeyPair.load(server.data)


def test_a_key_pair_survives_its_stored_form() -> None:
    again = KeyPair.load(pair().data)
    assert again.public == pair().public
    assert again.public.digest == pair().public.digest
    assert again.decrypt(pair().public.encrypt(residues(5)), 5, 1).tolist() == residues(5).tolist()


def test_secrets_stay_out_of_reprs() -> None:
    assert len(repr(pair())) < 100


def test_another_runs_key_finds_no_sum() -> None:
    ciphertexts = pair().public.encrypt(residues(PER_CHUNK))
    with pytest.raises(ProtocolError, match="no sum of 3 updates"):
        pair(1).decrypt(ciphertexts, PER_CHUNK, 3)


def test_a_ciphertext_of_another_key_in_a_sum_is_noticed() -> None:
    total = pair().public.zero(PER_CHUNK)
    total.add(pair().public.encrypt(residues(PER_CHUNK)))
    total.add(pair(1).public.encrypt(residues(PER_CHUNK)))
    with pytest.raises(ProtocolError, match="no sum of 2 updates"):
        pair().decrypt(total.ciphertexts(), PER_CHUNK, 2)


def other_parameters() -> bytes:
    library = tenseal()
    context = library.context(library.SCHEME_TYPE.BFV, SLOTS, 1_032_193, n_threads=1)
    vector: bytes = library.bfv_vector(context, [1] * SLOTS).serialize()
    return vector


def test_a_key_of_other_parameters_is_none_of_ours() -> None:
    library = tenseal()
    context = library.context(library.SCHEME_TYPE.BFV, SLOTS, 1_032_193, n_threads=1)
    public = context.serialize(save_secret_key=False, save_galois_keys=False, save_relin_keys=False)
    with pytest.raises(ProtocolError, match="other parameters"):
        PublicKey.load(public)


def test_a_public_key_with_the_secret_in_it_is_refused() -> None:
    with pytest.raises(ProtocolError, match="holds the secret one"):
        PublicKey.load(pair().data)


@pytest.mark.parametrize("data", [b"", b"x", bytes(1000), bytes(MAX_CONTEXT + 1)])
def test_what_is_no_key_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="key"):
        PublicKey.load(data)


def few_slots() -> bytes:
    vector: bytes = tenseal().bfv_vector(pair().public._context, [1, 2, 3]).serialize()
    return vector


BAD: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "too long": lambda _: bytes(MAX_CIPHERTEXT + 1),
    "noise": lambda _: bytes(range(256)),
    "truncated": lambda good: good[: len(good) // 2],
    "one byte short": lambda good: good[:-1],
    "other parameters": lambda _: other_parameters(),
    "few slots": lambda _: few_slots(),
    "a key": lambda _: pair().public.data[:MAX_CIPHERTEXT],
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_ciphertext_is_refused_and_leaves_the_sum_as_it_was(kind: str) -> None:
    length = 2 * PER_CHUNK
    total = pair().public.zero(length)
    good = pair().public.encrypt(residues(length))
    with pytest.raises(ProtocolError, match="ciphertext"):
        total.add((good[0], BAD[kind](good[1])))
    assert total.addends == 0
    total.add(good)
    found = pair().decrypt(total.ciphertexts(), length, 1)
    assert np.array_equal(found, residues(length))


def test_a_missing_or_further_ciphertext_is_refused() -> None:
    good = pair().public.encrypt(residues(3))
    for wrong in ((), good * 2):
        with pytest.raises(ProtocolError, match="an update has 1 ciphertexts"):
            pair().public.zero(3).add(wrong)
        with pytest.raises(ProtocolError, match="3 residues are 1 ciphertexts"):
            pair().decrypt(wrong, 3, 3)


def test_any_altered_bit_is_refused_or_found_out_or_harmless() -> None:
    row = residues(PER_CHUNK)
    (good,) = pair().public.encrypt(row)
    rng, refused = random.Random(7), 0
    for _ in range(60):
        altered = bytearray(good)
        altered[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        try:
            total = pair().public.zero(PER_CHUNK)
            total.add((bytes(altered),))
            found = pair().decrypt(total.ciphertexts(), PER_CHUNK, 1)
        except ProtocolError:
            refused += 1
        else:  # the flip was in the noise, or in bytes without meaning
            assert np.array_equal(found, row)
    assert refused > 0


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_from_outside_do_more_than_be_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        PublicKey.load(data)
    with pytest.raises(ProtocolError):
        pair().public.zero(1).add((data,))
    with pytest.raises(ProtocolError):
        pair().decrypt((data,), 1, 3)


def test_tenseal_writes_nothing_to_standard_output() -> None:
    script = (
        "import numpy as np\n"
        "from wildflower.strategies.he.bfv import KeyPair\n"
        "p = KeyPair.make(); t = p.public.zero(9000)\n"
        "t.add(p.public.encrypt(np.ones(9000, np.uint16)))\n"
        "assert p.decrypt(t.ciphertexts(), 9000, 1).all()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert (ended.stdout, ended.stderr) == (b"", b"")


def test_without_tenseal_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(MissingPackageError, match="tenseal, which is not installed") as caught:
        bfv.tenseal()
    assert "pip install" in caught.value.hint
