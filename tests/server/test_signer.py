"""The release signer: a real process on a real socket, and every reason it refuses for."""

import json
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ota_fakes import GROUP, Origin
from tests.signer_fakes import (
    Case,
    case,
    server_directory,
    signer_process,
    start_signer,
    today,
    until,
)

from wildflower.ota import canonical
from wildflower.ota.build.gates import Bound, gate
from wildflower.ota.errors import FormatError, OtaError, RefusedError, SigningError
from wildflower.ota.release import signing
from wildflower.ota.release.keys import AUTO
from wildflower.ota.release.manifest import Delta, target_path
from wildflower.ota.release.method import Method
from wildflower.ota.release.statement import open_statement, statement_path
from wildflower.server import signer
from wildflower.server.errors import SignerError, StartError
from wildflower.server.signer_wire import MAX_MESSAGE, SignRequest, ask, receive, send


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return server_directory(tmp_path)


def request_for(one: Case, metadata: bytes) -> SignRequest:
    return SignRequest(
        one.release.to_bytes().decode(),
        one.gate_report.to_bytes().decode(),
        one.round_record.to_bytes().decode(),
        metadata.decode(),
    )


def signed(origin: Origin, one: Case) -> bytes:
    request = request_for(one, origin.repository.current(AUTO))
    return signer.sign(request, origin.keys[AUTO].signers[0], today()).metadata


def test_a_release_with_its_evidence_is_signed_and_nothing_else_is_changed(origin: Origin) -> None:
    before = signing.read_targets(origin.repository.current(AUTO)).signed
    after = signing.read_targets(signed(origin, one := case())).signed
    added = {path: target for path, target in after.targets.items() if path not in before.targets}
    path = target_path("auto", GROUP, 1)
    assert set(added) == {path, statement_path(path)}
    assert added[target_path("auto", GROUP, 1)].hashes["sha256"] == one.release.digest
    assert after.version == before.version + 1
    assert after.delegations == before.delegations


def test_it_says_where_the_release_came_from_and_signs_that(origin: Origin) -> None:
    one, [key] = case(), origin.keys[AUTO].signers
    made = signer.sign(request_for(one, origin.repository.current(AUTO)), key, today())
    found = open_statement(made.provenance, [key.public_key])
    found.check(one.release)
    assert (found.cohort, found.survivors, found.secure) == (8, 7, True)
    assert found.toolchain == one.gate_report.toolchain
    assert found.method == one.round_record.method == Method("fedavg", "secagg")
    targets = signing.read_targets(made.metadata).signed.targets
    beside = targets[statement_path(target_path("auto", GROUP, 1))]
    assert beside.hashes["sha256"] == canonical.digest(made.provenance)


def test_what_it_signs_verifies_against_the_delegation(origin: Origin) -> None:
    signing.check_delegated(origin.repository.current("targets"), AUTO, signed(origin, case()))


REFUSED: dict[str, tuple[Callable[[], Case], str]] = {
    "another gate report": (
        lambda: replace(case(), gate_report=replace(case().gate_report, recipe="other")),
        "gate report: the manifest says",
    ),
    "a report on another artifact": (
        lambda: case().with_report(artifact="00" * 32),
        "artifact of the gate report",
    ),
    "a report on another model": (
        lambda: case().with_report(model="00" * 32),
        "model of the gate report",
    ),
    "a report for another class": (
        lambda: case().with_report(device_class="linux-x86_64-avx2"),
        "device class of the gate report",
    ),
    "gates that failed": (
        lambda: case().with_report(
            results=(
                gate("parity", 2.0, Bound.AT_MOST, 1.0),
                gate("size", 0.0, Bound.AT_MOST, 1.0),
                gate("accuracy", 0.0, Bound.AT_MOST, 1.0),
            )
        ),
        "the gates did not pass: parity is 2, must be at most 1",
    ),
    "gates that nobody measured": (
        lambda: case().with_report(results=()),
        "the gates did not pass: parity was not measured",
    ),
    "a round with another model": (
        lambda: replace(case(), round_record=replace(case().round_record, model="00" * 32)),
        "model of the round",
    ),
    "a round of another training": (
        lambda: replace(case(), round_record=replace(case().round_record, training="t2")),
        "training of the round",
    ),
    "another round": (
        lambda: replace(case(), round_record=replace(case().round_record, number=4)),
        "number of the round: the manifest says 3, found 4",
    ),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_release_without_its_evidence_is_refused(
    origin: Origin, make: Callable[[], Case], reason: str
) -> None:
    with pytest.raises(SignerError, match=reason):
        signed(origin, make())


def test_deltas_are_signed_within_their_bounds_and_not_beyond(origin: Origin) -> None:
    whole = case().release.artifact.length
    most = Delta("12" * 32, "34" * 32, int(0.7 * whole))
    signed(origin, case(deltas=(most,)))
    with pytest.raises(FormatError, match=f"a delta of {whole} bytes to a file of {whole}"):
        signed(origin, case(deltas=(replace(most, length=whole),)))


@pytest.mark.parametrize("order", [1, 2])
def test_an_order_that_is_not_above_all_others_is_refused(origin: Origin, order: int) -> None:
    origin.publish(b"model", 2)
    with pytest.raises(SigningError, match=f"order {order} of {GROUP}: 2 is signed already"):
        signed(origin, case(order))


def test_metadata_that_its_key_has_not_signed_is_refused(origin: Origin) -> None:
    request = request_for(case(), origin.repository.current("rollout"))
    with pytest.raises(RefusedError, match="found none"):
        signer.sign(request, origin.keys[AUTO].signers[0], today())


def test_metadata_that_was_changed_after_signing_is_refused(origin: Origin) -> None:
    changed = json.loads(origin.repository.current(AUTO))
    changed["signed"]["version"] = 40
    request = request_for(case(), json.dumps(changed).encode())
    with pytest.raises(RefusedError, match="is wrong"):
        signer.sign(request, origin.keys[AUTO].signers[0], today())


@pytest.mark.parametrize("name", ["manifest", "gate_report", "round_record", "metadata"])
@pytest.mark.parametrize("text", ["", "{}", "[]", "\x00", "null"])
def test_a_part_that_is_no_document_is_refused(origin: Origin, name: str, text: str) -> None:
    request = replace(request_for(case(), origin.repository.current(AUTO)), **{name: text})
    with pytest.raises(FormatError):
        signer.sign(request, origin.keys[AUTO].signers[0], today())


EVIDENCE = {
    "manifest": case().release.to_bytes().decode(),
    "gate_report": case().gate_report.to_bytes().decode(),
    "round_record": case().round_record.to_bytes().decode(),
}


@settings(deadline=None)
@given(st.sampled_from(sorted(EVIDENCE)), st.integers(0), st.characters(codec="ascii"))
def test_no_changed_character_of_the_evidence_is_signed_as_if_it_were_the_original(
    name: str, position: int, character: str
) -> None:
    """Mutate one document: refused, or the manifest itself, which then is another release."""
    one = case()
    text = request_for(one, b"{}")
    before: str = getattr(text, name)
    at = position % len(before)
    after = before[:at] + character + before[at + 1 :]
    try:
        release = signer.approve(replace(text, **{name: after}))
    except (SignerError, OtaError):
        return
    assert before == after or name != "gate_report"
    assert release.artifact.digest == one.gate_report.artifact
    assert release.lineage.gate_report == one.gate_report.digest


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"manifest": 1}', b"[" * 20_000])
def test_a_message_that_is_no_request_is_answered_with_a_reason(
    origin: Origin, data: bytes
) -> None:
    answer = json.loads(signer.answer(data, origin.keys[AUTO].signers[0], today()))
    assert set(answer) == {"error", "hint"}


NASTY: list[Any] = [None, True, -1, 1.5, 10**30, "", "\ud800", [], [[]], {}, {"": 1}]


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a document."""
    if path:
        yield path
    for key in document if isinstance(document, dict) else range(len(document)):
        if isinstance(document[key], dict | list):
            yield from places(document[key], (*path, key))
        else:
            yield (*path, key)


@pytest.mark.parametrize("name", ["manifest", "gate_report", "round_record", "metadata"])
def test_no_value_anywhere_in_a_request_ends_the_signer(origin: Origin, name: str) -> None:
    request = request_for(case(), origin.repository.current(AUTO))
    text = getattr(request, name)
    for *way, last in places(json.loads(text)):
        for value in NASTY:
            document = inner = json.loads(text)
            for key in way:
                inner = inner[key]
            inner[last] = value
            changed = json.dumps(
                document, sort_keys=True, separators=(",", ":"), ensure_ascii=False
            )
            data = json.dumps(asdict(replace(request, **{name: changed}))).encode()
            answer = json.loads(signer.answer(data, origin.keys[AUTO].signers[0], today()))
            assert set(answer) in ({"error", "hint"}, {"metadata", "provenance"})


def test_a_process_signs_what_it_is_asked_to_over_its_socket(origin: Origin) -> None:
    directory = origin.directory / "signer"
    with signer_process(directory):
        metadata = ask(
            directory / "signer.sock", request_for(case(), origin.repository.current(AUTO))
        ).metadata
        with pytest.raises(SignerError, match="refused: model of the round"):
            ask(
                directory / "signer.sock",
                request_for(REFUSED["a round with another model"][0](), metadata),
            )
    signing.check_signed_by(metadata, origin.keys[AUTO].public_keys[0])


def test_when_the_socket_is_there_it_answers_and_only_its_owner_may_ask(origin: Origin) -> None:
    directory = origin.directory / "signer"
    with signer_process(directory):
        assert stat.S_IMODE((directory / "signer.sock").stat().st_mode) == 0o600
        assert answers(directory / "signer.sock")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(origin: Origin, number: signal.Signals) -> None:
    directory = origin.directory / "signer"
    with signer_process(directory) as process:
        process.send_signal(number)
        assert process.wait(30) == 0
        assert not (directory / "signer.sock").exists()


def test_each_signature_is_one_line_without_the_key(origin: Origin) -> None:
    directory = origin.directory / "signer"
    with signer_process(directory) as process:
        ask(directory / "signer.sock", request_for(one := case(), origin.repository.current(AUTO)))
        process.terminate()
        assert process.stderr is not None
        written = process.stderr.read()
    (line,) = [line for line in written.splitlines() if "release signed" in line]
    assert one.release.digest in line
    assert "PRIVATE" not in written


def test_a_signer_starts_where_one_was_killed(origin: Origin) -> None:
    directory = origin.directory / "signer"
    with signer_process(directory) as process:
        process.kill()
        process.wait(30)
    assert (directory / "signer.sock").exists()
    with start_signer(directory) as process:
        until(lambda: answers(directory / "signer.sock"))
        process.terminate()
        assert process.wait(30) == 0


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


@contextmanager
def serving(directory: Path) -> Iterator[Path]:
    """Run the signer's loop in this process."""
    stopping = threading.Event()
    thread = threading.Thread(target=signer.serve, args=(directory, stopping))
    thread.start()
    try:
        until(lambda: (directory / "signer.sock").exists() and answers(directory / "signer.sock"))
        yield directory / "signer.sock"
    finally:
        stopping.set()
        thread.join()


def test_a_second_signer_in_one_directory_does_not_start(origin: Origin) -> None:
    directory = origin.directory / "signer"
    with serving(directory) as path:
        with pytest.raises(StartError, match="already runs"):
            signer.serve(directory, threading.Event())
        assert ask(path, request_for(case(), origin.repository.current(AUTO)))


def test_a_key_that_others_can_read_is_not_used(origin: Origin) -> None:
    (origin.directory / "signer" / "key.pem").chmod(0o644)
    with pytest.raises(SigningError, match="others than its owner"):
        signer.serve(origin.directory / "signer", threading.Event())


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x00",
        (5).to_bytes(4, "big") + b"abc",
        (MAX_MESSAGE + 1).to_bytes(4, "big"),
        (3).to_bytes(4, "big") + b"abc",
    ],
)
def test_a_peer_that_sends_garbage_costs_only_its_own_connection(
    origin: Origin, sent: bytes
) -> None:
    with serving(origin.directory / "signer") as path:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(sent)
        assert ask(path, request_for(case(), origin.repository.current(AUTO)))


def test_a_signer_that_does_not_run_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SignerError, match=r"does not answer at .*signer\.sock") as failed:
        ask(tmp_path / "signer.sock", SignRequest("", "", "", ""))
    assert "server up" in failed.value.hint


@contextmanager
def liar(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Answer one request in the signer's place."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                receive(connection)
                answer(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize("data", [b"[]", b"{", b"\xff", rb'{"metadata":"\ud800"}'])
def test_an_answer_that_makes_no_sense_is_an_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "s.sock"
    with liar(path, lambda c: send(c, data)), pytest.raises(SignerError, match="does not answer"):
        ask(path, SignRequest("", "", "", ""))


def test_an_answer_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with (
        liar(path, lambda c: c.sendall(b"\x00\x00\x00\x09abc")),
        pytest.raises(SignerError, match="cut off after 3 of 9"),
    ):
        ask(path, SignRequest("", "", "", ""))
