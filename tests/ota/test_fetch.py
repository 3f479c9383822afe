"""The fetching client against servers that cut, lie, drip and refuse."""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.ota_fakes import (
    GROUP,
    LIFE,
    NOON,
    FaultServer,
    Origin,
    ThiefsRepository,
    file_entry,
    http_client,
)

from wildflower.ota.errors import (
    BudgetError,
    FetchError,
    RefusedError,
    StoppedError,
    StorageError,
)
from wildflower.ota.release import download, signing
from wildflower.ota.release.budget import ByteBudget
from wildflower.ota.release.download import TRIES, WRONG_TRIES, Download, Surroundings
from wildflower.ota.release.fetch import LONGEST_S, HttpSource, ReleaseClient
from wildflower.ota.release.keys import AUTO, ROLLOUT
from wildflower.ota.release.manifest import target_path
from wildflower.ota.release.repository import Changes
from wildflower.ota.rollout.document import document_path

MODEL = random.Random(3).randbytes(300_000)
ENTRY = file_entry(MODEL)


@dataclass
class Bench:
    """A device's client beside an origin and its servers."""

    directory: Path
    servers: ExitStack
    origin: Origin
    waits: list[float] = field(default_factory=list)
    late: timedelta = timedelta()

    def serve(self, **faults: Any) -> FaultServer:
        return self.servers.enter_context(FaultServer(self.origin, **faults))

    def client(self, *servers: FaultServer) -> ReleaseClient:
        return ReleaseClient(
            self.directory / "cache",
            self.origin.root,
            [server.url for server in servers],
            http_client,
            lambda: NOON + self.late,
            wait=self.waits.append,
            draw=lambda: 1.0,
        )

    @property
    def destination(self) -> Path:
        return self.directory / "downloads" / ENTRY.digest

    @property
    def part(self) -> Path:
        return self.destination.with_name(f"{ENTRY.digest}.part")

    def begin(self, data: bytes) -> None:
        """Leave a part file, as a power cut would."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.part.write_bytes(data)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    origin = Origin(tmp_path / "server")
    origin.blobs[ENTRY.digest] = MODEL
    with ExitStack() as servers:
        yield Bench(tmp_path / "device", servers, origin)


def test_a_file_arrives_whole_and_its_part_is_gone(bench: Bench) -> None:
    server = bench.serve()
    seen: list[int] = []
    bench.client(server).fetch(ENTRY, bench.destination, on_bytes=seen.append)
    assert bench.destination.read_bytes() == MODEL
    assert not bench.part.exists()
    assert seen == sorted(seen)
    assert seen[-1] == len(MODEL)


def test_a_file_that_is_there_is_not_fetched_again(bench: Bench) -> None:
    server = bench.serve()
    for _ in range(2):
        bench.client(server).fetch(ENTRY, bench.destination)
    assert len(server.blob_requests()) == 1


@pytest.mark.parametrize("share", [2, 10, 50])
def test_a_connection_that_is_cut_again_and_again_costs_no_byte_twice(
    bench: Bench, share: int
) -> None:
    server = bench.serve(cut=len(MODEL) // share + 1)
    bench.client(server).fetch(ENTRY, bench.destination)
    assert bench.destination.read_bytes() == MODEL
    assert server.served <= 1.05 * len(MODEL)
    assert len(server.blob_requests()) == share
    assert all(wait <= download.FIRST_WAIT_S for wait in bench.waits)  # progress resets the bound


def test_a_body_that_ends_early_without_a_word_is_resumed(bench: Bench) -> None:
    server = bench.serve(cut=100_000, unframed=True)
    bench.client(server).fetch(ENTRY, bench.destination)
    assert server.blob_requests() == ["", "bytes=100000-", "bytes=200000-"]


def test_a_file_of_several_mebibytes_arrives_whole(bench: Bench) -> None:
    data = random.Random(4).randbytes(5 * download.SYNC_EVERY // 2)
    entry = file_entry(data)
    bench.origin.blobs[entry.digest] = data
    bench.client(bench.serve(cut=3 * download.SYNC_EVERY // 2)).fetch(entry, bench.destination)
    assert bench.destination.read_bytes() == data


def test_a_download_goes_on_after_a_restart(bench: Bench) -> None:
    bench.begin(MODEL[:100_000])
    server = bench.serve()
    bench.client(server).fetch(ENTRY, bench.destination)
    assert server.blob_requests() == ["bytes=100000-"]
    assert server.served == len(MODEL) - 100_000


def test_a_part_that_is_complete_needs_no_request(bench: Bench) -> None:
    bench.begin(MODEL)
    server = bench.serve()
    bench.client(server).fetch(ENTRY, bench.destination)
    assert server.asked == []


@pytest.mark.parametrize("torn", [MODEL[:50_000] + bytes(50_000), MODEL + b"more", bytes(300_000)])
def test_a_part_that_a_power_cut_has_torn_is_fetched_anew(bench: Bench, torn: bytes) -> None:
    bench.begin(torn)
    client = bench.client(bench.serve())
    client.fetch(ENTRY, bench.destination)
    assert bench.destination.read_bytes() == MODEL
    assert client.refusals == []


def test_a_server_that_ignores_ranges_starts_the_file_over(bench: Bench) -> None:
    bench.begin(MODEL[:100_000])
    server = bench.serve(ignores_range=True)
    bench.client(server).fetch(ENTRY, bench.destination)
    assert bench.destination.read_bytes() == MODEL


def test_a_range_that_begins_elsewhere_is_never_appended(bench: Bench) -> None:
    bench.begin(MODEL[:100_000])
    server = bench.serve(wrong_range=True)
    bench.client(server).fetch(ENTRY, bench.destination)
    assert bench.destination.read_bytes() == MODEL
    assert server.blob_requests() == ["bytes=100000-", ""]


def test_a_range_the_server_does_not_have_empties_the_part(bench: Bench) -> None:
    short = MODEL[:1000]
    bench.begin(MODEL[:100_000])
    server = bench.serve(stale={f"/blobs/{ENTRY.digest}": short})
    with pytest.raises(RefusedError, match=f"1000 bytes, expected {len(MODEL)}"):
        bench.client(server).fetch(ENTRY, bench.destination)
    assert server.blob_requests()[:2] == ["bytes=100000-", ""]
    assert not bench.destination.exists()


def test_one_corrupt_answer_costs_the_file_once_more(bench: Bench) -> None:
    server = bench.serve(corrupt=1)
    client = bench.client(server)
    client.fetch(ENTRY, bench.destination)
    assert bench.destination.read_bytes() == MODEL
    assert server.served == 2 * len(MODEL)
    assert client.refusals == []


def test_a_mirror_that_always_flips_a_byte_is_refused_by_name(bench: Bench) -> None:
    mirror = bench.serve(corrupt=-1)
    client = bench.client(mirror)
    with pytest.raises(RefusedError) as refused:
        client.fetch(ENTRY, bench.destination)
    flipped = hashlib.sha256(MODEL[:150_000] + bytes([MODEL[150_000] ^ 1]) + MODEL[150_001:])
    for told in (mirror.url, ENTRY.name, flipped.hexdigest(), ENTRY.digest):
        assert told in str(refused.value)
    assert mirror.served == 2 * len(MODEL)
    assert not bench.destination.exists()
    assert not bench.part.exists()
    assert [(one.source, one.target) for one in client.refusals] == [(mirror.url, ENTRY.name)]


def test_after_a_hostile_mirror_the_next_source_is_asked(bench: Bench) -> None:
    mirror, server = bench.serve(corrupt=-1), bench.serve()
    client = bench.client(mirror, server)
    client.fetch(ENTRY, bench.destination)
    assert bench.destination.read_bytes() == MODEL
    assert [one.source for one in client.refusals] == [mirror.url]


def test_an_endless_body_is_refused_after_two_tries(bench: Bench) -> None:
    server = bench.serve(endless=True)
    client = bench.client(server)
    with pytest.raises(RefusedError, match=f"endless, expected {len(MODEL)} bytes"):
        client.fetch(ENTRY, bench.destination)
    assert len(server.blob_requests()) == 2
    assert not bench.part.exists()


def test_a_body_that_says_it_is_longer_is_not_read(bench: Bench) -> None:
    bench.begin(MODEL[:1000])
    server = bench.serve(liar=5, ignores_range=True)
    with pytest.raises(RefusedError, match=f"{len(MODEL) + 5} bytes, expected {len(MODEL)}"):
        bench.client(server).fetch(ENTRY, bench.destination)
    assert bench.part.read_bytes() == MODEL[:1000]


def test_a_busy_server_is_asked_again_when_it_says(bench: Bench) -> None:
    server = bench.serve(busy=3, retry_after="7")
    bench.client(server).fetch(ENTRY, bench.destination)
    assert bench.waits == [7, 7, 7]


def test_a_time_to_retry_may_be_a_date(bench: Bench) -> None:
    server = bench.serve(busy=1, retry_after="Mon, 01 Jun 2026 12:00:42 GMT")
    bench.client(server).fetch(ENTRY, bench.destination)
    assert bench.waits == [42]


@pytest.mark.parametrize("nonsense", ["", "soon", "-5"])
def test_without_a_time_to_retry_waiting_doubles_up_to_a_bound(bench: Bench, nonsense: str) -> None:
    server = bench.serve(busy=TRIES - 1, retry_after=nonsense)
    bench.client(server).fetch(ENTRY, bench.destination)
    assert bench.waits == [1, 2, 4, 8, 16]


def test_a_server_that_asks_for_an_hour_is_left(bench: Bench) -> None:
    busy, server = bench.serve(busy=9, retry_after="3600"), bench.serve()
    bench.client(busy, server).fetch(ENTRY, bench.destination)
    assert bench.waits == []
    assert len(busy.blob_requests()) == 1


def test_tries_that_bring_nothing_are_bounded(bench: Bench) -> None:
    server = bench.serve(busy=1000)
    with pytest.raises(FetchError, match=f"{server.url}: HTTP 503, after {TRIES} tries") as failed:
        bench.client(server).fetch(ENTRY, bench.destination)
    assert not isinstance(failed.value, RefusedError)
    assert len(server.blob_requests()) == TRIES


def test_a_server_that_cuts_at_the_same_byte_and_ignores_ranges_is_left(bench: Bench) -> None:
    server = bench.serve(cut=150_000, ignores_range=True)
    with pytest.raises(FetchError, match="after 6 tries"):
        bench.client(server).fetch(ENTRY, bench.destination)
    assert len(server.blob_requests()) == TRIES + 1


@pytest.mark.parametrize("status", [401, 404, 302])
def test_what_no_retry_can_change_is_not_retried(bench: Bench, status: int) -> None:
    server = bench.serve(busy=1000, busy_status=status)
    with pytest.raises(FetchError, match=f"HTTP {status}"):
        bench.client(server).fetch(ENTRY, bench.destination)
    assert len(server.blob_requests()) == 1


@pytest.mark.parametrize("status", [408, 425, 429])
def test_what_passes_is_retried(bench: Bench, status: int) -> None:
    server = bench.serve(busy=1, busy_status=status)
    bench.client(server).fetch(ENTRY, bench.destination)
    assert bench.destination.read_bytes() == MODEL


def test_a_source_that_does_not_exist_is_named(bench: Bench) -> None:
    gone = bench.serve()
    gone.url = "http://127.0.0.1:1"
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:1: ConnectError"):
        bench.client(gone).fetch(ENTRY, bench.destination)


@pytest.mark.parametrize("url", ["http://[::1", "http://host\x07"])
def test_an_address_that_is_none_is_named_and_the_next_source_is_asked(
    bench: Bench, url: str
) -> None:
    wrong, right = bench.serve(), bench.serve()
    wrong.url = url
    with pytest.raises(FetchError, match=r"Invalid IPv6 URL|names no host"):
        bench.client(wrong).refresh()
    with pytest.raises(FetchError, match=r"Invalid IPv6 URL|names no host"):
        bench.client(wrong).fetch(ENTRY, bench.destination)
    assert bench.waits == []  # no other try would do better
    bench.client(wrong, right).refresh()
    bench.client(wrong, right).fetch(ENTRY, bench.destination)
    assert bench.destination.read_bytes() == MODEL


def test_a_stopped_download_keeps_its_part(bench: Bench) -> None:
    seen: list[int] = []
    client = bench.client(bench.serve())
    with pytest.raises(StoppedError, match=f"of {len(MODEL)}"):
        client.fetch(
            ENTRY,
            bench.destination,
            on_bytes=seen.append,
            should_stop=lambda: bool(seen) and seen[-1] > 100_000,
        )
    assert 100_000 < bench.part.stat().st_size < len(MODEL)
    client.fetch(ENTRY, bench.destination)
    assert bench.destination.read_bytes() == MODEL


def run(bench: Bench, server: FaultServer, **changes: Any) -> None:
    with http_client() as http:
        surroundings = replace(Surroundings(wait=bench.waits.append), **changes)
        Download(ENTRY, bench.destination, http, surroundings=surroundings).run([server.url])


def test_a_disk_that_cannot_hold_the_file_is_told_before_the_first_byte(bench: Bench) -> None:
    bench.begin(MODEL[:1000])
    server = bench.serve()
    with pytest.raises(StorageError, match=f"needs {len(MODEL) - 1000} bytes more") as full:
        run(bench, server, free=lambda _: 5000)
    assert full.value.hint.startswith(f"Free {len(MODEL) - 1000} bytes")
    assert server.asked == []
    assert bench.part.read_bytes() == MODEL[:1000]


def test_a_disk_that_fills_up_meanwhile_keeps_the_part(bench: Bench) -> None:
    bench.begin(b"")
    bench.part.unlink()
    bench.part.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="disk full"):
        run(bench, bench.serve())
    assert bench.part.is_symlink()


def test_a_directory_that_is_none_is_a_storage_error(bench: Bench) -> None:
    bench.directory.mkdir(parents=True)
    (bench.directory / "downloads").write_text("a file")
    with pytest.raises(StorageError, match="Not a directory"):
        run(bench, bench.serve())


def test_a_name_that_is_taken_meanwhile_is_a_storage_error(bench: Bench) -> None:
    def take(_: int) -> None:
        bench.destination.mkdir(exist_ok=True)

    with pytest.raises(StorageError, match="Is a directory"):
        bench.client(bench.serve()).fetch(ENTRY, bench.destination, on_bytes=take)
    assert bench.part.read_bytes() == MODEL


def test_a_destination_that_cannot_be_named_is_a_storage_error(bench: Bench) -> None:
    bench.begin(MODEL)
    (bench.destination / "occupied").mkdir(parents=True)
    with pytest.raises(StorageError, match="Is a directory"):
        run(bench, bench.serve())
    assert bench.part.exists()


def ticking(step: float) -> Callable[[], float]:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += step
        return now

    return clock


def test_a_source_that_drips_is_left(bench: Bench) -> None:
    server = bench.serve()
    with pytest.raises(FetchError, match="too slow, expected at least 256 bytes a second"):
        run(bench, server, clock=ticking(10_000))
    assert len(server.blob_requests()) == 1


def test_a_source_that_begins_fast_and_then_drips_is_left(bench: Bench) -> None:
    moments = iter([0.0, 31.0, *(31.0 + 300.0 * step for step in range(1, 1000))])
    with pytest.raises(FetchError, match="too slow"):
        run(bench, bench.serve(), clock=lambda: next(moments))


def test_a_body_that_is_packed_unasked_is_refused_unread(bench: Bench) -> None:
    server = bench.serve(encoding="gzip")
    with pytest.raises(RefusedError, match="encoded as gzip, expected identity"):
        bench.client(server).fetch(ENTRY, bench.destination)
    assert len(server.blob_requests()) == WRONG_TRIES


def test_a_loop_of_redirects_costs_one_request(bench: Bench) -> None:
    server = bench.serve()
    server.faults.location = f"{server.url}/blobs/{ENTRY.digest}"
    with pytest.raises(FetchError, match="HTTP 302"):
        bench.client(server).fetch(ENTRY, bench.destination)
    assert len(server.blob_requests()) == 1


def test_what_an_update_may_cost_holds_over_tries_and_sources(bench: Bench) -> None:
    faults = {"cut": 200_000, "ignores_range": True}
    one, other = bench.serve(**faults), bench.serve(**faults)
    budget = ByteBudget(3 * len(MODEL))
    with pytest.raises(BudgetError, match="bytes have come for this update, allowed are 900000"):
        bench.client(one, other).fetch(ENTRY, bench.destination, budget=budget)
    assert one.served + other.served <= 3 * len(MODEL) + 200_000
    assert bench.part.stat().st_size <= 200_000
    with pytest.raises(BudgetError):
        bench.client(bench.serve()).fetch(ENTRY, bench.destination, budget=budget)


def test_a_budget_that_suffices_is_counted(bench: Bench) -> None:
    budget = ByteBudget(len(MODEL))
    bench.client(bench.serve()).fetch(ENTRY, bench.destination, budget=budget)
    assert budget.spent == len(MODEL)


def test_metadata_that_drips_is_left(bench: Bench) -> None:
    server = bench.serve()
    with http_client() as http:
        source = HttpSource(http, server.url, clock=ticking(LONGEST_S + 1))
        with pytest.raises(FetchError, match="not there after 120 s"):
            list(source.read("tuf/metadata/timestamp.json"))


# What is signed: metadata, rollout documents, manifests.


def test_a_release_that_is_rolled_out_is_found_and_fetched(bench: Bench) -> None:
    release = bench.origin.publish(MODEL)
    bench.origin.roll_out(release)
    client = bench.client(bench.serve())
    client.refresh()
    document = client.rollout(GROUP)
    assert document is not None
    assert client.release(document.release_path) == release
    client.fetch(release.artifact, bench.destination)
    assert bench.destination.read_bytes() == MODEL


def test_a_poll_without_news_costs_two_requests(bench: Bench) -> None:
    server = bench.serve()
    bench.client(server).refresh()
    server.asked.clear()
    client = bench.client(server)
    client.refresh()
    assert [path for path, _ in server.asked] == [
        "/tuf/metadata/2.root.json",
        "/tuf/metadata/timestamp.json",
    ]


def test_a_document_that_is_still_what_is_signed_is_not_fetched_again(bench: Bench) -> None:
    server, release = bench.serve(), bench.origin.publish(MODEL)
    bench.origin.roll_out(release)
    client = bench.client(server)
    client.refresh()
    first = client.rollout(GROUP)
    server.asked.clear()
    client.refresh()
    assert client.rollout(GROUP) == first
    assert len(server.asked) == 2
    bench.origin.roll_out(release, permille=1)
    client.refresh()
    news = client.rollout(GROUP)
    assert news is not None
    assert news.permille == 1


def test_a_group_without_a_rollout_has_none(bench: Bench) -> None:
    assert bench.client(bench.serve()).rollout(GROUP) is None


def test_news_is_seen_after_the_next_refresh_and_not_before(bench: Bench) -> None:
    client = bench.client(bench.serve())
    client.refresh()
    bench.origin.roll_out(bench.origin.publish(MODEL))
    assert client.rollout(GROUP) is None
    client.refresh()
    assert client.rollout(GROUP) is not None


def test_a_wrong_signature_is_refused_and_the_next_source_is_asked(bench: Bench) -> None:
    bench.origin.roll_out(bench.origin.publish(MODEL))
    mirror, server = bench.serve(wrong_signature=True), bench.serve()
    client = bench.client(mirror, server)
    client.refresh()
    assert client.rollout(GROUP) is not None
    assert [one.source for one in client.refusals] == [mirror.url]  # once, not once per question
    assert "wrong signature" in client.refusals[0].reason


def test_a_wrong_signature_alone_is_an_error_that_names_the_source(bench: Bench) -> None:
    mirror = bench.serve(wrong_signature=True)
    with pytest.raises(RefusedError, match=f"{mirror.url} served metadata: wrong signature"):
        bench.client(mirror).refresh()


def test_an_expired_timestamp_is_refused(bench: Bench) -> None:
    bench.late = timedelta(days=2)
    with pytest.raises(RefusedError, match=r"expired: .*timestamp.*as of 2026-06-03"):
        bench.client(bench.serve()).refresh()


def test_older_metadata_than_seen_before_is_refused(bench: Bench) -> None:
    old = bench.origin.repository.current("timestamp")
    bench.origin.roll_out(bench.origin.publish(MODEL))
    server = bench.serve()
    bench.client(server).refresh()
    server.faults.stale["/tuf/metadata/timestamp.json"] = old
    with pytest.raises(RefusedError, match="rollback"):
        bench.client(server).refresh()


def test_endless_metadata_is_refused(bench: Bench) -> None:
    with pytest.raises(RefusedError, match="endless"):
        bench.client(bench.serve(endless_metadata=True)).refresh()


def test_a_cache_that_was_tampered_with_is_no_anchor(bench: Bench) -> None:
    server = bench.serve()
    bench.client(server).refresh()
    other = Origin(bench.directory / "other", NOON - timedelta(seconds=1))
    cache = bench.directory / "cache"
    (cache / "root.json").unlink()
    (cache / "root.json").write_bytes(other.root)
    (cache / "timestamp.json").write_bytes(other.repository.current("timestamp"))
    bench.client(server).refresh()
    assert (cache / "root.json").read_bytes() == bench.origin.root


def test_servers_that_answer_nothing_useful_are_a_fetch_error(bench: Bench) -> None:
    bench.origin.directory.joinpath("tuf/metadata/timestamp.json").unlink()
    with pytest.raises(FetchError, match="HTTP 404") as failed:
        bench.client(bench.serve()).refresh()
    assert not isinstance(failed.value, RefusedError)


def test_metadata_that_cannot_be_had_is_a_fetch_error(bench: Bench) -> None:
    busy, gone, server = bench.serve(metadata_status=500), bench.serve(), bench.serve()
    gone.url = "http://127.0.0.1:1"
    with pytest.raises(FetchError, match=r"(?s)HTTP 500.*ConnectError"):
        bench.client(busy, gone).refresh()
    bench.client(busy, gone, server).refresh()


def test_a_manifest_that_is_not_what_was_signed_is_refused(bench: Bench) -> None:
    release = bench.origin.publish(MODEL)
    path = target_path("auto", GROUP, 1)
    url = f"/tuf/targets/models/auto/{GROUP}/{release.digest}.1.json"
    wrong = release.to_bytes().replace(b"digits", b"fidgit")
    mirror, server = bench.serve(stale={url: wrong}), bench.serve()
    client = bench.client(mirror, server)
    assert client.release(path) == release
    assert "wrong digest" in client.refusals[0].reason
    assert release.digest in client.refusals[0].reason


def test_a_rollout_that_promises_another_digest_is_refused(bench: Bench) -> None:
    release = bench.origin.publish(MODEL)
    document = bench.origin.roll_out(release, release="ef" * 32)
    client = bench.client(bench.serve())
    client.rollout(GROUP)
    expected = f"found release {release.digest}, expected {'ef' * 32}"
    with pytest.raises(RefusedError, match=expected):
        client.release(document.release_path)


def test_a_caller_may_name_the_digest(bench: Bench) -> None:
    release = bench.origin.publish(MODEL)
    client = bench.client(bench.serve())
    path = target_path("auto", GROUP, 1)
    assert client.release(path, expected=release.digest) == release
    with pytest.raises(RefusedError, match="expected 0000"):
        client.release(path, expected="00" * 32)


def test_a_role_that_the_device_does_not_accept_is_refused_unasked(bench: Bench) -> None:
    server = bench.serve()
    client = bench.client(server)
    for path, found in [
        (target_path("auto", GROUP, 1), "role 'auto'"),
        ("other/x.json", "no role"),
    ]:
        with pytest.raises(RefusedError, match=rf"found {found}, expected one of \['approved'\]"):
            client.release(path, accepted=("approved",))
    assert server.asked == []


def test_a_release_that_nobody_signed_is_refused(bench: Bench) -> None:
    with pytest.raises(RefusedError, match="nobody who may has signed"):
        bench.client(bench.serve()).release(target_path("auto", GROUP, 9))


def test_a_manifest_of_another_group_or_order_is_refused(bench: Bench) -> None:
    release = bench.origin.publish(MODEL, 2)
    path = target_path("auto", GROUP, 7)
    bench.origin.put(AUTO, path, release.to_bytes())
    with pytest.raises(RefusedError, match=f"found the release of {target_path('auto', GROUP, 2)}"):
        bench.client(bench.serve()).release(path)


def test_a_document_for_another_group_is_refused(bench: Bench) -> None:
    document = bench.origin.roll_out(bench.origin.publish(MODEL))
    bench.origin.put(ROLLOUT, document_path("digits.other"), document.to_bytes())
    with pytest.raises(RefusedError, match=f"a document for {GROUP}, expected digits.other"):
        bench.client(bench.serve()).rollout("digits.other")


@pytest.mark.parametrize("signed", [b"", b"{}", b"\xff", b"[" * 5000])
def test_what_is_signed_and_malformed_is_refused(bench: Bench, signed: bytes) -> None:
    bench.origin.put(ROLLOUT, document_path(GROUP), signed)
    bench.origin.put(AUTO, target_path("auto", GROUP, 1), signed)
    client = bench.client(bench.serve())
    with pytest.raises(RefusedError, match="signed, but malformed"):
        client.rollout(GROUP)
    with pytest.raises(RefusedError, match="signed, but malformed"):
        client.release(target_path("auto", GROUP, 1))


def test_the_online_keys_cannot_make_a_release(bench: Bench) -> None:
    """Stolen, they sign a manifest, and metadata of the models role: devices see neither."""
    data = bench.origin.publish(MODEL).to_bytes()
    path, evil = target_path("auto", GROUP, 2), data.replace(b'"order":1', b'"order":2')
    thief = bench.origin.repository = ThiefsRepository(bench.origin.directory / "tuf")
    client = bench.client(bench.serve())
    bench.origin.put(ROLLOUT, path, evil)
    client.refresh()
    with pytest.raises(RefusedError, match="nobody who may has signed"):
        client.release(path)
    forged = signing.put_target(
        thief.current(AUTO), path, evil, bench.origin.keys[ROLLOUT].signers, expires=NOON + LIFE
    )
    thief.publish(Changes({AUTO: forged}, {path: evil}), bench.origin.keys, NOON)
    client.refresh()
    with pytest.raises(RefusedError, match="wrong signature"):
        client.release(path)


def test_a_client_needs_a_source(bench: Bench) -> None:
    with pytest.raises(ValueError, match="no source"):
        bench.client()
