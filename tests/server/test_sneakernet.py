"""Bundles at the server: what goes out is what devices ask for, what comes in is taken once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.ota_fakes import GROUP, Origin
from tests.server_base_fakes import FakeDevice, today

from wildflower.client.parcel_line import SOURCE, ParcelLine
from wildflower.ota import canonical
from wildflower.ota.device import owed
from wildflower.ota.device.owed import Owed
from wildflower.ota.device.report import DeviceReport, Outcome
from wildflower.ota.errors import FormatError, RefusedError
from wildflower.ota.observe.baseline import Shape
from wildflower.ota.observe.summary import Summary
from wildflower.ota.release.fetch import ReleaseClient
from wildflower.ota.release.parcel import Content, Parcel, write_parcel
from wildflower.ota.release.repository import Lifetimes
from wildflower.server.blobs import BlobStore
from wildflower.server.ca import Authority
from wildflower.server.errors import BlobError, ConflictError, NotFoundError
from wildflower.server.memory import MemoryStore
from wildflower.server.publish import Publisher
from wildflower.server.records import Artifact, Device, Report, StoredSummary
from wildflower.server.sneakernet import Packed, TakenIn, pack_release, take_owed

MODEL, BASELINE = "a1" * 32, "b1" * 32
STREAM = "5f" * 16
DATA = b"the artifact" * 1000


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path / "server", today().replace(microsecond=0))


@pytest.fixture
def blobs(origin: Origin) -> BlobStore:
    return BlobStore(origin.directory / "blobs")


def pack(origin: Origin, blobs: BlobStore, *, release: str = "", late: float = 0.0) -> Packed:
    now = today() + timedelta(days=late)
    return pack_release(origin.directory, blobs, GROUP, release=release, now=now)


def offered(origin: Origin, blobs: BlobStore, order: int = 1) -> str:
    found = origin.publish(DATA, order)
    origin.roll_out(found)
    blobs.put(DATA)
    return found.digest


def test_a_fresh_device_finds_all_it_needs_in_a_bundle(
    origin: Origin, blobs: BlobStore, tmp_path: Path
) -> None:
    digest = offered(origin, blobs)
    packed = pack(origin, blobs, release=digest[:6])
    write_parcel(tmp_path / "stick", packed.contents)
    parcel = Parcel.open(tmp_path / "stick")
    device = ReleaseClient(
        tmp_path / "cache",
        origin.root,
        [SOURCE],
        lambda: ParcelLine(parcel),
        today,
    )
    document = device.rollout(GROUP)
    assert document == packed.document
    release = device.release(document.release_path)
    device.fetch(release.artifact, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == DATA
    assert device.refusals == []


def test_a_bundle_holds_nothing_secret_and_nothing_of_others(
    origin: Origin, blobs: BlobStore
) -> None:
    offered(origin, blobs)
    blobs.put(b"another group's")
    names = list(pack(origin, blobs).contents)
    assert all(name.startswith(("tuf/metadata/", "tuf/targets/", "blobs/")) for name in names)
    assert sum(name.startswith("blobs/") for name in names) == 1


def test_a_bundle_is_good_until_its_first_metadata_expires(
    origin: Origin, blobs: BlobStore
) -> None:
    offered(origin, blobs)
    before = pack(origin, blobs).good_until
    assert before <= today() + timedelta(days=1)
    signer = origin.directory / "signer" / "signer.sock"
    publisher = Publisher(origin.directory, signer, today)
    publisher.renew(Lifetimes(snapshot=timedelta(days=9), timestamp=timedelta(days=9)))
    after = pack(origin, blobs).good_until
    assert timedelta(days=8) < after - today() <= timedelta(days=9)


def test_what_has_expired_is_not_packed(origin: Origin, blobs: BlobStore) -> None:
    offered(origin, blobs)
    with pytest.raises(RefusedError, match="expired"):
        pack(origin, blobs, late=2)


def test_another_release_than_the_rollouts_is_not_packed(origin: Origin, blobs: BlobStore) -> None:
    digest = offered(origin, blobs)
    for wrong in ("ff" * 32, digest[:5], "latest"):
        with pytest.raises(ConflictError, match="is to run release"):
            pack(origin, blobs, release=wrong)


def test_a_group_without_a_rollout_is_told(origin: Origin, blobs: BlobStore) -> None:
    with pytest.raises(NotFoundError, match="nothing is rolled out"):
        pack(origin, blobs)


def test_a_missing_or_damaged_file_makes_no_bundle(origin: Origin, blobs: BlobStore) -> None:
    origin.roll_out(found := origin.publish(DATA))
    with pytest.raises(NotFoundError, match="no blob"):
        pack(origin, blobs)
    blobs.put(DATA)
    path = blobs.path(found.artifact.digest)
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    with pytest.raises(BlobError):
        pack(origin, blobs)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("test", today())


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    made.put(Artifact(MODEL, "m", "linux-generic", "fp32", "m.ort", 1, "g", True, today()))
    return made


@pytest.fixture
def device(authority: Authority, tmp_path: Path, store: MemoryStore) -> FakeDevice:
    return FakeDevice.enrolled(authority, tmp_path / "devices", store)


def summary(artifact: str = MODEL) -> bytes:
    return Summary.zero(artifact, BASELINE, Shape(classes=2, bins=())).to_bytes()


def report(device: FakeDevice, sequence: int, **changes: Any) -> bytes:
    made = DeviceReport(
        device_id=device.device_id,
        sequence=sequence,
        outcome=Outcome.COMMITTED,
        rollout="r1",
        release="cd" * 32,
        running=f"artifact {sequence}",
        reason="",
        at=datetime(2026, 6, 1, tzinfo=UTC),
    )
    return replace(made, **changes).to_bytes()


def contents(
    device: FakeDevice,
    reports: Sequence[int] = (),
    summaries: Mapping[int, bytes] | None = None,
    *,
    signer: FakeDevice | None = None,
) -> dict[str, Content]:
    """Return what a device's bundle holds."""
    documents = {sequence: report(device, sequence) for sequence in reports}
    payloads = summaries or {}
    listed = Owed(
        device.device_id,
        STREAM,
        tuple((n, canonical.digest(data)) for n, data in documents.items()),
        tuple((n, canonical.digest(data)) for n, data in payloads.items()),
        today(),
    ).to_bytes()
    found: dict[str, Content] = {
        owed.LIST: listed,
        owed.SIGNATURE: (signer or device).sign(listed),
    }
    found |= {owed.report_name(n): data for n, data in documents.items()}
    found |= {owed.signature_name(n): device.sign(data) for n, data in documents.items()}
    return found | {owed.summary_name(n): data for n, data in payloads.items()}


def taken(store: MemoryStore, tmp_path: Path, found: Mapping[str, Content]) -> TakenIn:
    write_parcel(tmp_path / "bundle", found)
    return take_owed(store, Parcel.open(tmp_path / "bundle"), today)


def counts(done: TakenIn) -> tuple[int, int, int, int]:
    return done.reports, done.summaries, done.known, done.refused


def test_what_a_device_owed_is_taken_and_a_second_time_changes_nothing(
    store: MemoryStore, device: FakeDevice, tmp_path: Path
) -> None:
    found = contents(device, (1, 2), {4: summary(), 9: summary()})
    assert counts(taken(store, tmp_path, found)) == (2, 2, 0, 0)
    before = store.all(Report), store.all(StoredSummary), store.events()
    assert counts(taken(store, tmp_path, found)) == (0, 0, 4, 0)
    assert (store.all(Report), store.all(StoredSummary), store.events()) == before
    known = store.get(Device, device.device_id)
    assert known is not None
    assert known.running == "artifact 2"


def test_what_the_network_brought_meanwhile_is_not_taken_again(
    store: MemoryStore, device: FakeDevice, tmp_path: Path
) -> None:
    taken(store, tmp_path, contents(device, (1, 2, 3)))
    assert counts(taken(store, tmp_path, contents(device, (2, 3, 4)))) == (1, 0, 2, 0)
    assert [one.sequence for one in store.all(Report)] == [1, 2, 3, 4]


def test_more_summaries_than_one_upload_holds_are_all_taken(
    store: MemoryStore, device: FakeDevice, tmp_path: Path
) -> None:
    many = {n: summary() for n in range(1, 1203)}
    assert counts(taken(store, tmp_path, contents(device, (), many))) == (0, 1202, 0, 0)


def test_summaries_that_are_not_ours_or_noise_are_refused_and_counted(
    store: MemoryStore, device: FakeDevice, tmp_path: Path
) -> None:
    found = contents(device, (), {1: summary(), 2: summary("ff" * 32), 3: b"noise"})
    assert counts(taken(store, tmp_path, found)) == (0, 1, 0, 2)


def test_nothing_owed_is_a_bundle_too(
    store: MemoryStore, device: FakeDevice, tmp_path: Path
) -> None:
    assert counts(taken(store, tmp_path, contents(device))) == (0, 0, 0, 0)


def test_an_unknown_or_revoked_device_is_refused(
    store: MemoryStore, device: FakeDevice, tmp_path: Path, authority: Authority
) -> None:
    stranger = FakeDevice.enrolled(authority, tmp_path / "strangers")
    with pytest.raises(NotFoundError, match="unknown or revoked"):
        taken(store, tmp_path, contents(stranger, (1,)))
    store.change(Device, device.device_id, revoked=True)
    with pytest.raises(NotFoundError, match="unknown or revoked"):
        taken(store, tmp_path, contents(device, (1,)))
    assert store.all(Report) == []


def test_what_another_device_signed_is_refused(
    store: MemoryStore, device: FakeDevice, tmp_path: Path
) -> None:
    other = replace(device, key=ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(FormatError, match="not signed by device"):
        taken(store, tmp_path, contents(device, (1,), {1: summary()}, signer=other))
    assert [*store.all(Report), *store.all(StoredSummary)] == []


def test_a_report_with_a_wrong_signature_is_refused(
    store: MemoryStore, device: FakeDevice, tmp_path: Path
) -> None:
    found = contents(device, (1,)) | {owed.signature_name(1): device.sign(b"something else")}
    with pytest.raises(FormatError, match="not signed by the device's key"):
        taken(store, tmp_path, found)


@pytest.mark.parametrize("name", [owed.report_name(1), owed.summary_name(1)])
def test_what_was_exchanged_or_left_out_stores_nothing(
    name: str, store: MemoryStore, device: FakeDevice, tmp_path: Path
) -> None:
    found = contents(device, (1,), {1: summary()})
    with pytest.raises(FormatError, match="not what the device has listed"):
        taken(store, tmp_path, found | {name: b"another"})
    del found[name]
    with pytest.raises(FormatError, match="there is no"):
        taken(store, tmp_path, found)
    assert [*store.all(Report), *store.all(StoredSummary)] == []


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_bit_is_refused_or_changes_nothing_that_counts(
    where: float, flip: int, device: FakeDevice, store: MemoryStore, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    if not whole.exists():
        write_parcel(whole, contents(device, (1,), {1: summary()}))
    data = bytearray(whole.read_bytes())
    data[int(where * len(data))] ^= flip
    (tmp_path / "flipped").write_bytes(data)
    try:
        take_owed(store, Parcel.open(tmp_path / "flipped"), today)
    except FormatError:
        return
    assert [one.document for one in store.all(Report)] == [report(device, 1)]
    assert [one.payload for one in store.all(StoredSummary)] == [summary()]
