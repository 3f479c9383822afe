"""The key holder of homomorphic rounds: it makes keys, decrypts sums, and answers for little else.

    DIR/identity.key, identity.pem    who it is; the digest of the key is what people pin
    DIR/keyholder.toml                on what terms it decrypts, and for whom
    DIR/runs/<run>/promise            the run's public key, signed
    DIR/runs/<run>/<key>.secret       the secret one, erased when the key expires
    DIR/runs/<run>/<round>.answer     which sum of a round was decrypted, and to what

Each run of a training has a key pair of its own. Of each round of a run one sum is decrypted: the
answer is stored before it is given, the same request gets the same answer, another one is refused.
What turns out to be no sum is an answer too, so that nobody learns about the key by asking again
and again.

`Terms.trust` says what this is worth, and what not: `wildflower keyholder show` prints it.

A server that breaks the protocol may send a ciphertext of its own making, and learns from each
round's answer something about the secret key (Checri et al., "On the practical CPAD security of
'exact' and threshold FHE schemes and libraries", CRYPTO 2024). One answer a round and a new key for
each run bound that; they do not exclude it.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.ota.release.files import write_durably
from wildflower.server.pinned import PinnedIdentity
from wildflower.strategies.errors import KeyHolderError, ProtocolError
from wildflower.strategies.he import trust
from wildflower.strategies.he.bfv import KeyPair
from wildflower.strategies.he.messages import MAX_RUN, SMALLEST, RunKey, SumRequest
from wildflower.strategies.he.packing import MAX_ADDENDS

log = logging.getLogger(__name__)

MAX_RUNS: Final = 1000  # whose keys are alive at once; each takes 350 kB
ANSWERED, REFUSED, FORGOTTEN = b"a", b"r", b"f"
DIGEST: Final = 32  # bytes


@dataclass(frozen=True, slots=True)
class TrustStatement:
    """What may be expected of a key holder, and what not, in sentences for people.

    Attributes:
        can: What its keys open.
        does: What it does, and refuses.
        cannot_see: What it takes on faith.
        protects: Whom that protects, against whom, and what to use instead.
    """

    can: str
    does: str
    cannot_see: str
    protects: str


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a key holder decrypts.

    Attributes:
        min_cohort: Fewest updates whose sum is decrypted.
        days: After which a run's secret key is erased.
    """

    min_cohort: int = SMALLEST
    days: int = 30

    @property
    def trust(self) -> TrustStatement:
        """What these terms are worth."""
        return TrustStatement(
            can="It can decrypt every update that was encrypted under one of its keys. Devices"
            " never send it one: it gets sums from the server, and gives back what they hold.",
            does="It makes a key pair for each run of a training and erases the secret key after"
            f" {self.days} days. Of each round of a run it decrypts one sum, if the server says"
            f" that {self.min_cohort} to {MAX_ADDENDS} updates are in it.",
            cannot_see="It cannot see how many updates really are in a sum, nor whose. A server"
            " that breaks the protocol can have the update of one device decrypted, once in each"
            " round.",
            protects="Devices are protected if key holder and server do not work together and the"
            " server keeps to the protocol: against its logs, backups, databases, and whoever"
            " reads them. Let other people run it, on another host. Where the server itself is not"
            " to be trusted, use secagg or one-shot, in which devices or helpers count who is in"
            " the sum.",
        )


@dataclass(frozen=True, slots=True)
class RunView:
    """What there is of a run.

    Attributes:
        run: Its id.
        key: Digest of its public key, hex.
        expires: When its secret key is erased, seconds since 1970.
        rounds: How many rounds were answered.
    """

    run: str
    key: str
    expires: int
    rounds: int


class KeyHolder:
    """Keys of runs and answers of rounds, in a directory. Safe to use from several threads.

    Args:
        directory: Where the runs are; for its owner alone.
        identity: Who the key holder is; its digest is what devices and server pin.
        terms: On what terms it decrypts.
        now: The present, with a time zone.
    """

    def __init__(
        self,
        directory: Path,
        identity: PinnedIdentity,
        terms: Terms,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._runs = directory / "runs"
        self._identity, self._terms, self._now = identity, terms, now
        self._lock = threading.Lock()

    def key(self, run: str) -> RunKey:
        """Return a run's public key; it is made when it is first asked for, and when it expired.

        Raises:
            KeyHolderError: Not a run's id, or too many runs have keys.
        """
        if not 1 <= len(run) <= MAX_RUN or not run.isprintable():
            raise KeyHolderError(f"a run's id is 1 to {MAX_RUN} printable characters")
        with self._lock:
            folder = self._folder(run)
            self._erase(folder)
            found = self._promise(folder)
            if found is not None and self._is_alive(found):
                return found
            return self._make(run)

    def decrypt(self, request: SumRequest) -> npt.NDArray[np.uint16]:
        """Return the residues of a sum modulo 2**16, shape (request.length,).

        Raises:
            KeyHolderError: It is refused.
            ProtocolError: The ciphertexts are no sum of so many updates under the run's key.
        """
        with self._lock:
            key = self._require_key(request)
            path = self._folder(request.run) / f"{request.round}.answer"
            if path.exists():
                return _read_answer(path.read_bytes(), request)
            answer = self._answer(key, request)
            write_durably(path, answer, mode=0o600)
        log.info(
            "sum answered",
            extra={"run": request.run, "round": request.round, "addends": request.addends},
        )
        return _read_answer(answer, request)

    def erase_expired(self) -> None:
        """Erase secret keys that expired or were never promised, and what they decrypted.

        That a round was answered is not forgotten.
        """
        with self._lock:
            for folder in self._folders():
                self._erase(folder)

    def runs(self) -> Iterator[RunView]:
        """Yield the runs that there are, by their ids."""
        found = [(self._promise(folder), folder) for folder in self._folders()]
        for promise, folder in sorted(
            ((promise, folder) for promise, folder in found if promise is not None),
            key=lambda pair: pair[0].run,
        ):
            rounds = sum(1 for _ in folder.glob("*.answer"))
            yield RunView(promise.run, promise.digest.hex(), promise.expires, rounds)

    def _require_key(self, request: SumRequest) -> RunKey:
        key = self._promise(self._folder(request.run))
        if key is None or key.digest != request.key:
            raise KeyHolderError(
                f"run {request.run!r} has no such key as {request.key.hex()[:12]}",
                hint="It is another run's, or was renewed: start the round again.",
            )
        if not self._is_alive(key):
            raise KeyHolderError(f"the key of run {request.run!r} has expired and is erased")
        if not key.min_cohort <= request.addends <= MAX_ADDENDS:
            raise KeyHolderError(
                f"a sum of {request.addends} updates, {key.min_cohort} to {MAX_ADDENDS} are"
                " decrypted"
            )
        if not 0 <= request.round < 2**31:
            raise KeyHolderError(f"round is {request.round}, allowed are 0 to {2**31 - 1}")
        return key

    def _answer(self, key: RunKey, request: SumRequest) -> bytes:
        pair = KeyPair.load(self._secret(key).read_bytes())
        try:
            found = pair.decrypt(request.ciphertexts, request.length, request.addends)
        except ProtocolError as error:
            return request.digest + REFUSED + str(error).encode()
        return request.digest + ANSWERED + found.astype("<u2").tobytes()

    def _make(self, run: str) -> RunKey:
        if sum(1 for _ in self._runs.glob("*/*.secret")) >= MAX_RUNS:
            raise KeyHolderError(
                f"{MAX_RUNS} runs have keys already", hint="Keys are erased when they expire."
            )
        pair = KeyPair.make()
        promise = trust.make_key(
            run,
            pair.public.data,
            min_cohort=self._terms.min_cohort,
            expires=int((self._now() + timedelta(days=self._terms.days)).timestamp()),
            identity=self._identity.public_der,
            sign=self._identity.sign,
        )
        write_durably(self._secret(promise), pair.data, mode=0o600)  # first: no promise without it
        write_durably(self._folder(run) / "promise", promise.to_bytes(), mode=0o600)
        log.info("key made", extra={"run": run, "key": promise.digest.hex()})
        return promise

    def _erase(self, folder: Path) -> None:
        promise = self._promise(folder)
        alive = self._secret(promise) if promise and self._is_alive(promise) else None
        for path in folder.glob("*.secret"):
            if path != alive:
                path.unlink()
        for path in folder.glob("*.answer") if alive is None else ():
            if path.stat().st_size > DIGEST + len(FORGOTTEN):
                write_durably(path, path.read_bytes()[:DIGEST] + FORGOTTEN, mode=0o600)

    def _is_alive(self, key: RunKey) -> bool:
        return self._now().timestamp() < key.expires

    def _promise(self, folder: Path) -> RunKey | None:
        try:
            return RunKey.from_bytes((folder / "promise").read_bytes())
        except FileNotFoundError:
            return None

    def _folders(self) -> list[Path]:
        return sorted(self._runs.iterdir()) if self._runs.is_dir() else []

    def _folder(self, run: str) -> Path:
        return self._runs / hashlib.sha256(run.encode()).hexdigest()

    def _secret(self, key: RunKey) -> Path:
        return self._folder(key.run) / f"{key.digest.hex()}.secret"


def _read_answer(stored: bytes, request: SumRequest) -> npt.NDArray[np.uint16]:
    """Return the answer that a round got, to the request that got it."""
    digest, kind, rest = stored[:DIGEST], stored[DIGEST : DIGEST + 1], stored[DIGEST + 1 :]
    if digest != request.digest or kind == FORGOTTEN:
        raise KeyHolderError(
            f"round {request.round} of run {request.run!r} was answered already, for another sum",
            hint="Resume the training: that is a new run, with a new key.",
        )
    if kind == REFUSED:
        raise ProtocolError(rest.decode())
    residues: npt.NDArray[np.uint16] = np.frombuffer(rest, "<u2").astype(np.uint16, copy=False)
    return residues
