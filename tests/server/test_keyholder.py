"""The key holder's decisions: one sum a round, stored before it is answered, keys that expire."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.he_fakes import IDENTITY

from wildflower.server.keyholder import KeyHolder, Terms
from wildflower.strategies.errors import KeyHolderError, ProtocolError
from wildflower.strategies.he import trust
from wildflower.strategies.he.bfv import PublicKey
from wildflower.strategies.he.messages import RunKey, SumRequest

START = datetime(2030, 1, 1, tzinfo=UTC)
LENGTH = 20


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def holder(tmp_path: Path, clock: Clock) -> KeyHolder:
    return reopened(tmp_path, clock)


def reopened(directory: Path, clock: Clock, **terms: int) -> KeyHolder:
    return KeyHolder(directory, IDENTITY, Terms(**terms), now=clock)


def row(seed: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.random.default_rng(seed).integers(0, 2**16, LENGTH, dtype=np.uint16)


def asked(key: RunKey, seeds: Sequence[int] = (1, 2, 3), **changes: Any) -> SumRequest:
    public = PublicKey.load(key.context)
    total = public.zero(LENGTH)
    for seed in seeds:
        total.add(public.encrypt(row(seed)))
    request = SumRequest(key.run, 1, key.digest, len(seeds), LENGTH, total.ciphertexts())
    return replace(request, **changes)


def expected(seeds: Sequence[int] = (1, 2, 3)) -> list[int]:
    rows = np.array([row(seed) for seed in seeds])
    return [int(each) for each in rows.sum(axis=0, dtype=np.uint16)]


def test_a_run_has_one_key_of_its_own_that_the_holder_signed(holder: KeyHolder) -> None:
    key = holder.key("t1")
    assert holder.key("t1") == key
    assert holder.key("t2").digest != key.digest
    trust.check_key(key, holder=IDENTITY.digest, min_cohort=3, now=START)
    assert key.expires == (START + timedelta(days=30)).timestamp()


def test_a_sum_is_decrypted_and_the_same_request_gets_the_same_answer(holder: KeyHolder) -> None:
    request = asked(holder.key("t1"))
    assert holder.decrypt(request).tolist() == expected()
    assert holder.decrypt(request).tolist() == expected()


def test_another_sum_of_an_answered_round_is_refused(holder: KeyHolder) -> None:
    key = holder.key("t1")
    holder.decrypt(asked(key))
    for other in (asked(key), asked(key, [1, 2, 4]), asked(key, [1, 2, 3, 4])):
        with pytest.raises(KeyHolderError, match="answered already, for another sum"):
            holder.decrypt(other)
    assert holder.decrypt(asked(key, [4, 5, 6], round=2)).tolist() == expected([4, 5, 6])


def test_the_difference_of_two_cohorts_cannot_be_asked_for(holder: KeyHolder) -> None:
    key = holder.key("t1")
    everyone = asked(key, [1, 2, 3, 4])
    holder.decrypt(everyone)
    with pytest.raises(KeyHolderError, match="answered already"):
        holder.decrypt(replace(everyone, ciphertexts=asked(key, [2, 3, 4]).ciphertexts, addends=3))


def test_a_restart_between_store_and_answer_changes_nothing(tmp_path: Path, clock: Clock) -> None:
    request = asked(reopened(tmp_path, clock).key("t1"))
    first = reopened(tmp_path, clock).decrypt(request)  # stored; say that the answer was lost
    assert reopened(tmp_path, clock).decrypt(request).tolist() == first.tolist() == expected()
    with pytest.raises(KeyHolderError, match="answered already"):
        reopened(tmp_path, clock).decrypt(asked(reopened(tmp_path, clock).key("t1"), [1, 2, 4]))


def test_an_answer_is_on_the_disk_before_it_is_given(
    holder: KeyHolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(holder.key("t1"))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wildflower.server.keyholder.write_durably", full)
    with pytest.raises(OSError, match="No space"):
        holder.decrypt(request)
    assert list(tmp_path.rglob("*.answer")) == []


def test_what_is_no_sum_uses_the_rounds_answer_up(holder: KeyHolder) -> None:
    key, foreign = holder.key("t1"), holder.key("t2")
    nonsense = replace(asked(key), ciphertexts=asked(foreign).ciphertexts)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="no sum of 3 updates"):
            holder.decrypt(nonsense)
    with pytest.raises(KeyHolderError, match="answered already"):
        holder.decrypt(asked(key))


def test_altered_bytes_use_the_rounds_answer_up_too(holder: KeyHolder) -> None:
    key = holder.key("t1")
    with pytest.raises(ProtocolError, match="ciphertext"):
        holder.decrypt(asked(key, ciphertexts=(b"noise",)))
    with pytest.raises(KeyHolderError, match="answered already"):
        holder.decrypt(asked(key))


def test_the_holder_cannot_see_that_a_sum_is_one_devices_update(holder: KeyHolder) -> None:
    key = holder.key("t1")
    alone = asked(key, [1], addends=3)  # what `Terms.trust` says a dishonest server can do
    assert holder.decrypt(alone).tolist() == row(1).tolist()
    with pytest.raises(KeyHolderError, match="answered already"):  # and what bounds it
        holder.decrypt(asked(key, [2], addends=3))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too few": ({"addends": 2}, "a sum of 2 updates, 3 to 127 are decrypted"),
    "too many": ({"addends": 128}, "a sum of 128 updates, 3 to 127 are decrypted"),
    "none": ({"addends": 0}, "a sum of 0 updates"),
    "another run": ({"run": "t2"}, "run 't2' has no such key"),
    "another key": ({"key": bytes(32)}, "has no such key as 000000000000"),
    "negative round": ({"round": -1}, "round is -1"),
    "far round": ({"round": 2**31}, "allowed are 0 to"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_may_not_be_asked_is_refused_and_uses_nothing_up(holder: KeyHolder, why: str) -> None:
    changes, told = REFUSED[why]
    request = asked(holder.key("t1"))
    with pytest.raises(KeyHolderError, match=told):
        holder.decrypt(replace(request, **changes))
    assert holder.decrypt(request).tolist() == expected()


def test_the_holders_own_minimum_counts(tmp_path: Path, clock: Clock) -> None:
    holder = reopened(tmp_path, clock, min_cohort=5)
    key = holder.key("t1")
    assert key.min_cohort == 5
    with pytest.raises(KeyHolderError, match="a sum of 4 updates, 5 to 127"):
        holder.decrypt(asked(key, [1, 2, 3, 4]))


def test_a_minimum_that_was_promised_outlives_a_change_of_terms(
    tmp_path: Path, clock: Clock
) -> None:
    key = reopened(tmp_path, clock, min_cohort=5).key("t1")
    with pytest.raises(KeyHolderError, match="5 to 127"):
        reopened(tmp_path, clock, min_cohort=3).decrypt(asked(key))


def test_an_expired_key_is_erased_and_a_new_one_made(
    tmp_path: Path, clock: Clock, holder: KeyHolder
) -> None:
    old = holder.key("t1")
    request = asked(old)
    holder.decrypt(request)
    clock.now = START + timedelta(days=30)
    with pytest.raises(KeyHolderError, match="has expired and is erased"):
        holder.decrypt(request)
    holder.erase_expired()
    assert list(tmp_path.rglob("*.secret")) == []
    new = holder.key("t1")
    assert new.digest != old.digest
    with pytest.raises(KeyHolderError, match="has no such key"):
        holder.decrypt(request)


def test_no_sum_outlives_its_key_but_that_a_round_was_answered_does(
    tmp_path: Path, clock: Clock, holder: KeyHolder
) -> None:
    holder.decrypt(asked(holder.key("t1")))
    (path,) = tmp_path.rglob("*.answer")
    clock.now = START + timedelta(days=30)
    holder.erase_expired()
    assert path.stat().st_size == 33
    before = path.stat().st_mtime_ns
    holder.erase_expired()
    assert path.stat().st_mtime_ns == before
    with pytest.raises(KeyHolderError, match="answered already"):
        holder.decrypt(asked(holder.key("t1")))


def test_a_secret_key_without_a_promise_is_erased(tmp_path: Path, holder: KeyHolder) -> None:
    holder.key("t1")
    (secret,) = tmp_path.rglob("*.secret")
    stray = secret.with_name("ab.secret")
    stray.write_bytes(b"left by a power cut")
    holder.erase_expired()
    assert list(tmp_path.rglob("*.secret")) == [secret]


def test_secrets_and_answers_are_for_the_owner_alone(tmp_path: Path, holder: KeyHolder) -> None:
    holder.decrypt(asked(holder.key("t1")))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {"", ".secret", ".answer"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


@pytest.mark.parametrize("run", ["", "x" * 233, "a\nb"])
def test_a_run_has_a_name(holder: KeyHolder, run: str) -> None:
    with pytest.raises(KeyHolderError, match="1 to 232 printable"):
        holder.key(run)


def test_keys_are_bounded(clock: Clock, holder: KeyHolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wildflower.server.keyholder.MAX_RUNS", 2)
    holder.key("t1")
    key = holder.key("t2")
    with pytest.raises(KeyHolderError, match="2 runs have keys already"):
        holder.key("t3")
    assert holder.key("t2") == key
    clock.now = START + timedelta(days=30)
    holder.erase_expired()
    holder.key("t3")


def test_the_runs_are_told_with_what_was_answered(holder: KeyHolder) -> None:
    assert list(holder.runs()) == []
    key = holder.key("t2")
    holder.key("t1")
    holder.decrypt(asked(key))
    told = [(each.run, each.key, each.rounds) for each in holder.runs()]
    assert told == [("t1", holder.key("t1").digest.hex(), 0), ("t2", key.digest.hex(), 1)]


def test_the_trust_statement_says_what_cannot_be_seen() -> None:
    trust_in_it = Terms(min_cohort=20, days=7).trust
    assert "how many updates really are in a sum" in trust_in_it.cannot_see
    assert "20 to 127" in trust_in_it.does
    assert "7 days" in trust_in_it.does
    assert "one-shot" in trust_in_it.protects
