"""The device channel over real gRPC with mutual TLS."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from tests.server_base_fakes import ANYWHERE, REPORT, Clock, FakeDevice, tls_files, today, until

from wildflower.ota import canonical
from wildflower.ota.device.report import DeviceReport, Outcome
from wildflower.ota.observe.baseline import Shape
from wildflower.ota.observe.summary import Summary
from wildflower.ota.wire import device_pb2 as wire
from wildflower.server.ca import Authority
from wildflower.server.channel import SERVICE, THREADS, ChannelServer, Pace
from wildflower.server.errors import StartError, StoreError
from wildflower.server.listener import Place, TlsFiles
from wildflower.server.memory import MemoryStore
from wildflower.server.presence import Presence
from wildflower.server.reception import Reception
from wildflower.server.records import Artifact, Device, Report, StoredSummary
from wildflower.server.sql import SqlStore

RELEASE, TRAINING = wire.Hint.KIND_RELEASE, wire.Hint.KIND_TRAINING
HEARTBEAT = wire.Hint.KIND_UNSPECIFIED
MODEL = "a1" * 32


class Watch:
    """A device's open Watch stream, read by a thread of its own."""

    def __init__(self, world: "World", device: FakeDevice) -> None:
        self.channel = world.channel(device)
        call = self.channel.unary_stream(
            f"/{SERVICE}/Watch",
            request_serializer=wire.WatchRequest.SerializeToString,
            response_deserializer=wire.Hint.FromString,
        )
        self.stream = call(wire.WatchRequest(agent="test"))
        self.hints: queue.Queue[wire.Hint | grpc.StatusCode] = queue.Queue()
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        try:
            for hint in self.stream:
                self.hints.put(hint)
            self.hints.put(grpc.StatusCode.OK)
        except grpc.RpcError:
            self.hints.put(self.stream.code())

    def next(self) -> tuple[int, str] | grpc.StatusCode:
        """Return the next hint that is no heartbeat, or how the stream ended."""
        while True:
            found = self.hints.get(timeout=10)
            if isinstance(found, grpc.StatusCode):
                return found
            if found.kind != HEARTBEAT:
                return found.kind, found.training

    def close(self) -> None:
        self.stream.cancel()
        self.thread.join()
        self.channel.close()


class World:
    """A channel server and the devices that speak to it."""

    def __init__(self, authority: Authority, directory: Path, pace: Pace | None = None) -> None:
        self.authority, self.directory = authority, directory
        self.store, self.clock, self.presence = MemoryStore(), Clock(), Presence()
        self.invitations: dict[str, str] = {}
        self.reception = Reception(
            self.store,
            invited=lambda device_id: self.invitations.get(device_id, ""),
            now=self.clock,
            next_s=42,
        )
        self.tls = tls_files(authority, directory / "tls")
        self.server = ChannelServer(self.reception, self.presence, ANYWHERE, self.tls, pace=pace)
        self.open: list[Any] = []
        self.device = self.enrol()

    def enrol(self, **fields: object) -> FakeDevice:
        return FakeDevice.enrolled(self.authority, self.directory / "d", self.store, **fields)

    def channel(self, device: FakeDevice) -> grpc.Channel:
        return device.channel(self.authority.certificate_pem, self.server.port)

    def watch(self, device: FakeDevice | None = None) -> Watch:
        watch = Watch(self, device or self.device)
        self.open.append(watch)
        return watch

    def call(self, name: str, request: Any, reply: Any, device: FakeDevice | None = None) -> Any:
        with self.channel(device or self.device) as channel:
            call: Callable[..., Any] = channel.unary_unary(
                f"/{SERVICE}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=reply.FromString,
            )
            return call(request, timeout=10)

    def report(self, report: DeviceReport, device: FakeDevice | None = None) -> wire.ReportReply:
        document = report.to_bytes()
        signed = wire.SignedDocument(
            document=document, signature=(device or self.device).sign(document)
        )
        found = self.call("Report", signed, wire.ReportReply, device)
        assert isinstance(found, wire.ReportReply)
        return found

    def check_in(self, device: FakeDevice | None = None) -> wire.CheckInReply:
        request = wire.CheckInRequest(self_report=REPORT.to_bytes())
        found = self.call("CheckIn", request, wire.CheckInReply, device)
        assert isinstance(found, wire.CheckInReply)
        return found

    def stored(self, device: FakeDevice | None = None) -> Device:
        found = self.store.get(Device, (device or self.device).device_id)
        assert found is not None
        return found

    def kinds(self) -> list[str]:
        return [event.kind for event in self.store.events()]


def outcome(
    world: World, sequence: int = 1, running: str = MODEL, reason: str = ""
) -> DeviceReport:
    return DeviceReport(
        device_id=world.device.device_id,
        sequence=sequence,
        outcome=Outcome.COMMITTED,
        rollout="ro1",
        release="re1",
        running=running,
        reason=reason,
        at=world.clock(),
    )


@contextmanager
def serving(world: World) -> Iterator[World]:
    with world.server:
        try:
            yield world
        finally:
            for watch in world.open:
                watch.close()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("test", today())


@pytest.fixture
def world(authority: Authority, tmp_path: Path) -> Iterator[World]:
    with serving(World(authority, tmp_path)) as made:
        yield made


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


# Watch ---------------------------------------------------------------------------------------


def test_a_device_that_connects_is_present_and_told_what_it_may_have_missed(world: World) -> None:
    world.invitations[world.device.device_id] = "tr1"
    watch = world.watch()
    assert watch.next() == (TRAINING, "tr1")
    assert watch.next() == (RELEASE, "")
    assert world.presence.connected(world.device.device_id)
    until(lambda: world.kinds() == ["device.connected"])
    assert world.store.events()[0].fields == {"epoch": 1}


def test_a_hint_reaches_the_device(world: World) -> None:
    watch = world.watch()
    assert watch.next() == (RELEASE, "")
    assert world.presence.hint([world.device.device_id], "training", "tr9") == 1
    assert watch.next() == (TRAINING, "tr9")


def test_a_device_that_leaves_is_gone(world: World) -> None:
    watch = world.watch()
    watch.next()
    world.clock.pass_by(60)
    watch.close()
    until(lambda: world.kinds() == ["device.connected", "device.disconnected"])
    assert not world.presence.connected(world.device.device_id)
    assert world.stored().last_seen == world.clock()


def test_a_second_stream_of_a_device_ends_the_first(world: World) -> None:
    first = world.watch()
    first.next()
    second = world.watch()
    assert second.next() == (RELEASE, "")
    assert first.next() is grpc.StatusCode.OK
    assert world.presence.connected(world.device.device_id)
    assert world.presence.epoch(world.device.device_id) == 2
    until(lambda: world.kinds() == ["device.connected"] * 2)


def test_a_device_that_is_revoked_is_cut_off_and_stays_out(world: World) -> None:
    watch = world.watch()
    watch.next()
    world.store.change(Device, world.device.device_id, revoked=True)
    world.presence.disconnect(world.device.device_id)
    assert watch.next() is grpc.StatusCode.OK
    assert world.watch().next() is grpc.StatusCode.PERMISSION_DENIED
    for call in (world.check_in, lambda: world.report(outcome(world))):
        assert refused(call)[0] is grpc.StatusCode.PERMISSION_DENIED


def test_an_open_stream_beats(authority: Authority, tmp_path: Path) -> None:
    with serving(World(authority, tmp_path, Pace(heartbeat_s=0.05))) as world:
        watch = world.watch()
        beats = [watch.hints.get(timeout=10) for _ in range(4)]
    kinds = [hint.kind for hint in beats if isinstance(hint, wire.Hint)]
    assert kinds == [RELEASE, HEARTBEAT, HEARTBEAT, HEARTBEAT]


def test_a_server_that_stops_ends_its_streams_and_says_so(
    authority: Authority, tmp_path: Path
) -> None:
    world = World(authority, tmp_path)
    with world.server:
        watch = world.watch()
        watch.next()
    assert watch.next() is grpc.StatusCode.OK
    watch.close()
    assert world.kinds() == ["device.connected", "device.disconnected"]


def test_many_streams_take_no_threads(world: World) -> None:
    devices = [world.enrol() for _ in range(40)]
    watches = [world.watch(device) for device in devices]
    for watch in watches:
        assert watch.next() == (RELEASE, "")
    names = [thread.name for thread in threading.enumerate()]  # the devices here have some, too
    ours = [name for name in names if name.startswith(("channel_", "arrivals_", ANYWHERE.key))]
    assert len(ours) <= THREADS + 2
    assert world.presence.hint([d.device_id for d in devices], "training", "t") == 40
    for watch in watches:
        assert watch.next() == (TRAINING, "t")


VANISHING = """
import sys, grpc
from pathlib import Path
from wildflower.ota.wire import device_pb2 as wire
ca, key, certificate, address = sys.argv[1:]
credentials = grpc.ssl_channel_credentials(*(Path(p).read_bytes() for p in (ca, key, certificate)))
call = grpc.secure_channel(address, credentials).unary_stream(
    "/wildflower.device.v1.Device/Watch",
    request_serializer=wire.WatchRequest.SerializeToString,
    response_deserializer=wire.Hint.FromString,
)
for hint in call(wire.WatchRequest()):
    print(hint.kind, flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_device_that_vanishes_is_noticed_within_seconds(world: World, how: int) -> None:
    """SIGKILL closes its socket; SIGSTOP leaves it open and silent, as a cut cable would."""
    home = world.device.directory
    child = subprocess.Popen(
        [
            *(sys.executable, "-c", VANISHING, str(world.tls.client_ca)),
            *(str(home / "key.pem"), str(home / "cert.pem"), f"127.0.0.1:{world.server.port}"),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == str(RELEASE).encode()
        assert world.presence.connected(world.device.device_id)
        os.kill(child.pid, how)
        until(lambda: not world.presence.connected(world.device.device_id), seconds=5)
    finally:
        child.kill()
        child.communicate()


# Report --------------------------------------------------------------------------------------


def test_a_report_is_stored_with_its_signature_and_moves_the_device(world: World) -> None:
    sent = outcome(world, 7)
    assert world.report(sent).sequence == 7
    [stored] = world.store.all(Report)
    assert stored.report_id == f"{world.device.device_id}/7"
    assert (stored.outcome, stored.rollout, stored.running) == ("committed", "ro1", MODEL)
    assert stored.document == sent.to_bytes()
    assert world.stored().running == MODEL
    [event] = world.store.events()
    assert (event.kind, event.subject) == ("device.report", world.device.device_id)
    assert event.fields == {
        "outcome": "committed",
        "rollout": "ro1",
        "release": "re1",
        "running": MODEL,
        "reason": "",
    }


def test_a_report_that_comes_again_changes_nothing(world: World) -> None:
    for _ in range(3):
        assert world.report(outcome(world)).sequence == 1
    assert len(world.store.all(Report)) == len(world.store.events()) == 1


def test_an_old_report_that_comes_late_does_not_move_the_device(world: World) -> None:
    world.report(outcome(world, 2, running="new"))
    world.report(outcome(world, 1, running="old"))
    assert world.stored().running == "new"
    assert len(world.store.all(Report)) == 2


def test_a_server_that_started_again_still_knows_which_report_is_newest(world: World) -> None:
    world.report(outcome(world, 2, running="new"))
    anew = Reception(world.store, invited=lambda _: "", now=world.clock)
    late = outcome(world, 1, running="old").to_bytes()
    anew.report(world.stored(), late, world.device.sign(late))
    assert world.stored().running == "new"


def test_a_reason_from_outside_cannot_move_a_terminal(world: World) -> None:
    world.report(outcome(world, reason="\x1b[2Jdisk\x00full\nnow"))
    assert world.store.all(Report)[0].reason == " [2Jdisk full now"


def test_a_report_for_another_device_is_refused(world: World) -> None:
    other = world.enrol()
    code, said = refused(lambda: world.report(outcome(world), other))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "sent by" in said


def test_a_report_that_another_key_signed_is_refused(world: World) -> None:
    document = outcome(world).to_bytes()
    forged = wire.SignedDocument(document=document, signature=world.enrol().sign(document))
    code, said = refused(lambda: world.call("Report", forged, wire.ReportReply))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "not signed by the device's key" in said
    assert world.store.all(Report) == []


@pytest.mark.parametrize("noise", [b"", b"{}", b"\xff" * 100])
def test_what_is_no_report_is_refused(world: World, noise: bytes) -> None:
    signed = wire.SignedDocument(document=noise, signature=world.device.sign(noise))
    code, _ = refused(lambda: world.call("Report", signed, wire.ReportReply))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_reports_count_from_one(world: World) -> None:
    assert "count from 1" in refused(lambda: world.report(outcome(world, 0)))[1]


def test_a_report_that_cannot_be_stored_is_not_acknowledged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreError("disk full")

    monkeypatch.setattr(world.store, "change", full)
    code, said = refused(lambda: world.report(outcome(world)))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "disk" not in said
    world.watch().next()  # a connection is worth more than the note that it came about


# UploadSummaries and CheckIn -----------------------------------------------------------------


def test_summaries_are_stored_and_acknowledged(world: World) -> None:
    world.store.put(Artifact(MODEL, "m", "c", "fp32", "m.ort", 1, "g", True, world.clock()))
    payload = Summary.zero(MODEL, "b1" * 32, Shape(2, ())).to_bytes()
    batch = wire.SummaryBatch(
        stream=b"s" * 16,
        summaries=[
            wire.Summary(sequence=3, payload=payload),
            wire.Summary(sequence=5, payload=b"noise"),
        ],
    )
    ack = world.call("UploadSummaries", batch, wire.SummaryAck)
    assert (ack.stream, ack.through, list(ack.refused)) == (b"s" * 16, 5, [5])
    assert [stored.sequence for stored in world.store.all(StoredSummary)] == [3]


def test_an_upload_against_the_rules_is_refused(world: World) -> None:
    batch = wire.SummaryBatch(stream=b"short")
    code, _ = refused(lambda: world.call("UploadSummaries", batch, wire.SummaryAck))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_check_in_says_what_a_hint_would_have(world: World) -> None:
    world.invitations[world.device.device_id] = "tr1"
    world.clock.pass_by(60)
    told = world.check_in()
    assert (told.training, told.next_s) == ("tr1", 42)
    assert canonical.from_time(told.server_time) == world.clock()
    assert world.stored().last_seen == world.clock()


def test_a_check_in_renews_the_self_report(world: World) -> None:
    anew = replace(REPORT, agent="0.2")
    request = wire.CheckInRequest(self_report=anew.to_bytes())
    world.call("CheckIn", request, wire.CheckInReply)
    assert world.stored().self_report == anew.to_bytes()
    broken = wire.CheckInRequest(self_report=b"{}")
    code, _ = refused(lambda: world.call("CheckIn", broken, wire.CheckInReply))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


# Who may come in -----------------------------------------------------------------------------


def test_a_device_that_was_never_stored_is_refused(world: World) -> None:
    ghost = FakeDevice.enrolled(world.authority, world.directory / "ghosts")
    code, said = refused(lambda: world.check_in(ghost))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "unknown or revoked" in said


def test_a_certificate_of_another_ca_is_refused(world: World) -> None:
    other = Authority.make("test", today())
    stranger = FakeDevice.enrolled(other, world.directory / "strangers", world.store)
    assert refused(lambda: world.check_in(stranger))[0] is grpc.StatusCode.UNAVAILABLE


def test_without_a_certificate_there_is_no_channel(world: World) -> None:
    bare = grpc.ssl_channel_credentials(world.authority.certificate_pem)
    with grpc.secure_channel(f"127.0.0.1:{world.server.port}", bare) as channel:
        call: Callable[..., bytes] = channel.unary_unary(f"/{SERVICE}/CheckIn")
        assert refused(lambda: call(b"", timeout=10))[0] is grpc.StatusCode.UNAVAILABLE


def test_a_device_notices_a_server_of_another_ca(world: World) -> None:
    other = Authority.make("test", today())
    with world.device.channel(other.certificate_pem, world.server.port) as channel:
        call: Callable[..., bytes] = channel.unary_unary(f"/{SERVICE}/CheckIn")
        assert refused(lambda: call(b"", timeout=10))[0] is grpc.StatusCode.UNAVAILABLE


def test_a_key_that_is_not_ec_is_nobodys(world: World) -> None:
    key = rsa.generate_private_key(65537, 2048)
    name, now = x509.Name([]), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(1))
    pem = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    with pytest.raises(PermissionError, match="no EC key"):
        world.reception.identify(pem)


# Starting and starting again -----------------------------------------------------------------


def test_a_port_in_use_is_named_with_its_key(world: World) -> None:
    place = Place("127.0.0.1", world.server.port, "channel_port")
    second = ChannelServer(world.reception, Presence(), place, world.tls)
    with pytest.raises(StartError, match=f"port {place.port} .*channel_port"), second:
        pass
    assert world.check_in().next_s == 42


def test_files_that_are_missing_are_named(world: World) -> None:
    gone = TlsFiles(Path("/nowhere/server.key"), world.tls.certificate, world.tls.client_ca)
    with pytest.raises(StartError, match=r"/nowhere/server\.key cannot be read"):
        ChannelServer(world.reception, world.presence, ANYWHERE, gone)
    with pytest.raises(ValueError, match="a CA for its clients"):
        ChannelServer(
            world.reception,
            world.presence,
            ANYWHERE,
            TlsFiles(world.tls.key, world.tls.certificate),
        )


def test_a_server_that_starts_again_remembers_and_knows_its_devices(
    authority: Authority, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/wild.db"
    device = FakeDevice.enrolled(authority, tmp_path / "devices")
    for sequence in (1, 2):
        world = World(authority, tmp_path / str(sequence))
        with SqlStore.open(url) as store:
            if sequence == 1:
                store.put(device.record())
            reception = Reception(store, invited=lambda _: "", now=world.clock)
            world.server = ChannelServer(reception, world.presence, ANYWHERE, world.tls)
            world.device = device
            with serving(world):
                assert world.report(outcome(world, sequence)).sequence == sequence
                assert world.watch().next() == (RELEASE, "")
    with SqlStore.open(url) as store:
        assert [report.sequence for report in store.all(Report)] == [1, 2]
        numbers = [event.number for event in store.events()]
        assert numbers == list(range(1, len(numbers) + 1))
