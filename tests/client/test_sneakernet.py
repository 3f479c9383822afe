"""Bundles on a device that has no network: real TUF metadata, keys, slots, journal and trial."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.acceptance_fakes import stating
from tests.client_fakes import FakeServer, today
from tests.device_fakes import GROUP, Bundle, bundle, golden_of
from tests.slots_fakes import scaling_model
from tests.update_fakes import Kit, offer

from wildflower.client.daemon import alone
from wildflower.client.errors import AgentError
from wildflower.client.identity import Identity
from wildflower.client.parcel_line import SOURCE, ParcelLine
from wildflower.client.policy import load_policy, save_policy
from wildflower.client.sneakernet import NOTHING_HERE, acknowledge, apply_bundle, collect
from wildflower.client.spool import Spool
from wildflower.ota import canonical
from wildflower.ota.device import owed
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.owed import Owed
from wildflower.ota.device.report import DeviceReport, Outcome
from wildflower.ota.errors import FetchError, FormatError, RefusedError
from wildflower.ota.release.parcel import Content, Parcel, write_parcel
from wildflower.ota.rollout.document import Order
from wildflower.server.blobs import BlobStore
from wildflower.server.sneakernet import pack_release

Pack = Callable[..., Path]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def device(server: FakeServer, tmp_path: Path) -> Path:
    return server.enrol(tmp_path / "device")


@pytest.fixture
def pack(server: FakeServer, tmp_path: Path) -> Pack:
    """Write what is rolled out into a bundle; `changes` replace or, with None, remove entries."""

    def packed(group: str = GROUP, **changes: bytes | None) -> Path:
        blobs = BlobStore(tmp_path / "blobs")
        for data in server.releases.blobs.values():
            blobs.put(data)
        found = pack_release(server.releases.directory, blobs, group, release="", now=today())
        contents: dict[str, Content | None] = {**found.contents, **changes}
        path = tmp_path / "stick.tar"
        write_parcel(path, {name: one for name, one in contents.items() if one is not None})
        return path

    return packed


def journal_of(device: Path) -> list[tuple[Outcome, str]]:
    journal = Journal.peek(device / "journal.db")
    try:
        return [(entry.outcome, entry.reason) for entry in journal.reports()]
    finally:
        journal.close()


def test_a_release_is_installed_without_a_network(
    server: FakeServer, device: Path, pack: Pack
) -> None:
    one = offer(server, 1)
    before = len(server.asked)
    done = apply_bundle(device, pack())
    assert (done.running, done.phase, done.outcomes, done.waits) == (
        one.digest,
        "idle",
        ("committed",),
        "",
    )
    assert len(server.asked) == before


def test_the_same_bundle_again_changes_nothing(
    server: FakeServer, device: Path, pack: Pack
) -> None:
    one = offer(server, 1)
    stick = pack()
    apply_bundle(device, stick)
    again = apply_bundle(device, stick)
    assert (again.running, again.outcomes, again.waits) == (one.digest, (), "")


def test_an_older_bundle_is_refused_as_a_rollback_and_told(
    server: FakeServer, device: Path, pack: Pack, tmp_path: Path
) -> None:
    offer(server, 1)
    old = pack().rename(tmp_path / "old.tar")
    two = offer(server, 2)
    apply_bundle(device, pack())
    with pytest.raises(RefusedError, match="rollback"):
        apply_bundle(device, old)
    outcome, reason = journal_of(device)[-1]
    assert outcome is Outcome.REFUSED
    assert reason.startswith(f"{SOURCE} served")
    assert Kit(device).running == two.digest


def test_a_bundle_that_was_carried_for_too_long_has_expired(
    server: FakeServer, device: Path, pack: Pack
) -> None:
    offer(server, 1)
    stick = pack()
    with pytest.raises(RefusedError, match="expired"):
        apply_bundle(device, stick, lambda: today() + timedelta(days=2))
    assert Kit(device).running == ""


def test_a_clock_of_1970_does_not_bring_an_expired_bundle_back(
    server: FakeServer, device: Path, pack: Pack, tmp_path: Path
) -> None:
    offer(server, 1)
    stick = pack()
    apply_bundle(device, stick)
    journal = Journal.open(device / "journal.db", now=today())
    journal.set_fact("seen-time", canonical.to_time(today() + timedelta(days=2)))
    journal.close()
    with pytest.raises(RefusedError, match="expired"):
        apply_bundle(device, stick, lambda: today() - timedelta(days=20_000))


def owner_demands(device: Path, **demands: Any) -> None:
    save_policy(replace(load_policy(device), **demands), device)


@pytest.mark.parametrize(("demanded", "outcome"), [(7, "committed"), (8, "incompatible")])
def test_where_a_release_comes_from_travels_along_and_decides(
    server: FakeServer, device: Path, pack: Pack, demanded: int, outcome: str
) -> None:
    one = offer(server, 1, statement=stating(server))
    owner_demands(device, min_clients=demanded)
    done = apply_bundle(device, pack())
    assert [told.partition(":")[0] for told in done.outcomes] == [outcome]
    assert (done.running == one.digest) is (outcome == "committed")
    if outcome == "incompatible":
        assert done.waits == "provenance: devices in the model: found 7, expected >= 8"
        assert apply_bundle(device, pack()).outcomes == ()  # told once


def test_a_bundle_of_a_release_without_a_statement_is_refused_where_one_is_demanded(
    server: FakeServer, device: Path, pack: Pack
) -> None:
    offer(server, 1)
    owner_demands(device, strategies=("secagg",))
    done = apply_bundle(device, pack())
    assert (done.running, len(done.outcomes)) == ("", 1)
    assert "found no statement" in done.outcomes[0]


def test_a_bundle_whose_statement_was_left_out_or_exchanged_installs_nothing(
    server: FakeServer, device: Path, pack: Pack
) -> None:
    one = offer(server, 1, statement=stating(server, survivors=4))
    owner_demands(device, min_clients=5)
    [name] = [path for path in Parcel.open(pack()).places if path.endswith(".provenance.json")]
    with pytest.raises(FetchError, match="provenance"):
        apply_bundle(device, pack(**{name: None}))
    better = stating(server)(one.release)
    with pytest.raises(RefusedError, match="wrong digest"):
        apply_bundle(device, pack(**{name: better}))
    assert apply_bundle(device, pack()).running == ""


def test_a_flipped_model_is_refused_and_told(server: FakeServer, device: Path, pack: Pack) -> None:
    one = offer(server, 1)
    entry = one.release.artifact
    data = bytearray(one.blobs[entry.digest])
    data[len(data) // 2] ^= 1
    done = apply_bundle(device, pack(**{f"blobs/{entry.digest}": bytes(data)}))
    assert done.running == ""
    assert any("wrong digest" in outcome for outcome in done.outcomes)
    assert {outcome for outcome, _ in journal_of(device)} == {Outcome.REFUSED}


def test_metadata_that_was_tampered_with_is_refused(
    server: FakeServer, device: Path, pack: Pack
) -> None:
    offer(server, 1)
    stick = pack()
    data = Parcel.open(stick).read("tuf/metadata/timestamp.json", 10_000)
    forged = data.replace(b'"version":3}}', b'"version":9}}')
    assert forged != data
    with pytest.raises(RefusedError, match="wrong signature"):
        apply_bundle(device, pack(**{"tuf/metadata/timestamp.json": forged}))


def test_a_bundle_without_the_model_says_so_and_the_network_can_go_on(
    server: FakeServer, device: Path, pack: Pack
) -> None:
    one = offer(server, 1)
    done = apply_bundle(device, pack(**{f"blobs/{one.release.artifact.digest}": None}))
    assert (done.running, done.outcomes) == ("", ())
    assert done.phase == "fetching"
    Kit(device).look()
    assert Kit(device).running == one.digest


def test_a_bundle_of_another_group_names_what_to_look_at(
    server: FakeServer, device: Path, pack: Pack
) -> None:
    offer(server, 1)
    other = offer(server, 1, model_name="other", target_group="other.linux-avx2")
    assert other.release.target_group == "other.linux-avx2"
    with pytest.raises(FetchError, match=r"stick\.tar") as raised:
        apply_bundle(device, pack("other.linux-avx2"))
    assert "target group" in raised.value.hint


def test_a_rollout_that_pauses_is_obeyed(server: FakeServer, device: Path, pack: Pack) -> None:
    one = bundle(1)
    server.releases.publish(one)
    server.releases.roll_out(one, order=Order.PAUSE)
    done = apply_bundle(device, pack())
    assert (done.running, done.waits) == ("", "the rollout's order is pause")


def test_nothing_for_this_device_is_said(server: FakeServer, device: Path, pack: Pack) -> None:
    offer(server, 1, model_name="other", target_group="other.linux-avx2")
    assert apply_bundle(device, pack("other.linux-avx2")).waits == NOTHING_HERE


def test_a_bad_model_is_rolled_back_and_the_good_one_stays(
    server: FakeServer, device: Path, pack: Pack
) -> None:
    good = offer(server, 1)
    apply_bundle(device, pack())
    offer(server, 2, golden=golden_of(scaling_model(2.0), off=0.5))
    done = apply_bundle(device, pack())
    assert done.running == good.digest
    assert done.outcomes[0].startswith("rolled-back: golden outputs differ")
    assert done.waits == "it failed its trial on this device"


def test_no_bundle_is_applied_beside_a_running_agent(
    server: FakeServer, device: Path, pack: Pack
) -> None:
    offer(server, 1)
    with alone(device), pytest.raises(AgentError, match="already runs"):
        apply_bundle(device, pack())


def test_a_file_that_is_no_bundle_is_told_apart_from_one_that_is_not_there(
    device: Path, tmp_path: Path
) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(2000))
    with pytest.raises(FormatError, match="not a parcel"):
        apply_bundle(device, tmp_path / "noise")
    with pytest.raises(AgentError, match="cannot be read"):
        apply_bundle(device, tmp_path / "missing")


def installed(server: FakeServer, device: Path, pack: Pack) -> Bundle:
    one = offer(server, 1)
    apply_bundle(device, pack())
    return one


def test_what_a_device_owes_is_collected_signed(
    server: FakeServer, device: Path, pack: Pack, tmp_path: Path
) -> None:
    one = installed(server, device, pack)
    spool = Spool(device / "spool")
    spool.append(b"a summary")
    done = collect(device, tmp_path / "out.tar")
    assert (done.reports, done.summaries, done.size) == (
        1,
        1,
        (tmp_path / "out.tar").stat().st_size,
    )
    parcel, identity = Parcel.open(tmp_path / "out.tar"), Identity.load(device)
    listed = Owed.from_bytes(parcel.read(owed.LIST, 10_000))
    assert identity.has_signed(listed.to_bytes(), parcel.read(owed.SIGNATURE, 80))
    document = parcel.read(owed.report_name(1), 10_000)
    assert identity.has_signed(document, parcel.read(owed.signature_name(1), 80))
    assert DeviceReport.from_bytes(document).release == one.digest
    assert parcel.read(owed.summary_name(1), 100) == b"a summary"
    assert next(iter(parcel.places)) == owed.LIST


def test_what_was_collected_stays_owed_until_it_is_acknowledged(
    server: FakeServer, device: Path, pack: Pack, tmp_path: Path
) -> None:
    installed(server, device, pack)
    Spool(device / "spool").append(b"one")
    out = tmp_path / "out.tar"
    collect(device, out)
    again = collect(device, tmp_path / "again.tar")
    assert (again.reports, again.summaries) == (1, 1)
    Spool(device / "spool").append(b"two")  # after it was collected
    for _ in range(2):
        done = acknowledge(device, out)
        assert (done.reports, done.summaries) == (1, 1)
    left = collect(device, tmp_path / "left.tar")
    assert (left.reports, left.summaries) == (0, 1)


def test_another_devices_bundle_acknowledges_nothing(
    server: FakeServer, device: Path, pack: Pack, tmp_path: Path
) -> None:
    installed(server, device, pack)
    other = server.enrol(tmp_path / "other")
    collect(other, tmp_path / "other.tar")
    with pytest.raises(FormatError, match="not collected on this device"):
        acknowledge(device, tmp_path / "other.tar")
    assert collect(device, tmp_path / "out.tar").reports == 1


def test_summaries_of_a_spool_that_was_lost_acknowledge_none_of_the_new_one(
    device: Path, tmp_path: Path
) -> None:
    Spool(device / "spool").append(b"old")
    collect(device, tmp_path / "out.tar")
    for path in (device / "spool").iterdir():
        path.unlink()
    Spool(device / "spool").append(b"new")
    acknowledge(device, tmp_path / "out.tar")
    assert Spool(device / "spool").pending(9) == [(1, b"new")]


def test_a_new_device_owes_nothing(device: Path, tmp_path: Path) -> None:
    done = collect(device, tmp_path / "out.tar")
    assert (done.reports, done.summaries) == (0, 0)
    with pytest.raises(AgentError, match="cannot be written"):
        collect(device, tmp_path / "missing" / "out.tar")


def asked(parcel: Parcel, path: str, **headers: str) -> tuple[int, bytes, str]:
    """Return status, body and Content-Range."""
    with ParcelLine(parcel) as line, line.get(f"{SOURCE}/{path}", headers) as answer:
        told = answer.headers.get("Content-Range", "")
        return answer.status_code, b"".join(answer.iter_raw()), told


def test_a_parcel_answers_as_a_web_server_does(tmp_path: Path) -> None:
    write_parcel(tmp_path / "parcel", {"blobs/a": b"0123456789"})
    parcel = Parcel.open(tmp_path / "parcel")
    assert asked(parcel, "blobs/a") == (200, b"0123456789", "")
    assert asked(parcel, "blobs/a", Range="bytes=7-") == (206, b"789", "bytes 7-9/10")
    assert asked(parcel, "blobs/a", Range="bytes=10-") == (416, b"", "bytes */10")
    assert asked(parcel, "blobs/b") == (404, b"", "")
    assert asked(parcel, "blobs/../../etc/passwd") == (404, b"", "")


def test_a_stick_that_is_pulled_out_is_a_connection_that_was_cut(tmp_path: Path) -> None:
    write_parcel(tmp_path / "parcel", {"blobs/a": b"0123456789"})
    parcel = Parcel.open(tmp_path / "parcel")
    (tmp_path / "parcel").unlink()
    with pytest.raises(httpx.ReadError):
        asked(parcel, "blobs/a")
