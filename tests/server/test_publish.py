"""The publisher, with a real release signer in a process of its own and a real client."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tests.ota_fakes import (
    GROUP,
    FaultServer,
    Origin,
    document_for,
    http_client,
    release_of,
)
from tests.signer_fakes import case, server_directory, signer_process, today

from wildflower.ota.device.acceptance import Demands
from wildflower.ota.errors import ProvenanceError, RefusedError, SigningError
from wildflower.ota.release import files, signing
from wildflower.ota.release.fetch import ReleaseClient
from wildflower.ota.release.keys import APPROVED, AUTO, ROLLOUT
from wildflower.ota.release.manifest import Release, target_path
from wildflower.ota.release.provenance import RoundRecord
from wildflower.ota.release.statement import (
    Provenance,
    open_statement,
    sign_statement,
    statement_path,
)
from wildflower.ota.release.trust import NotThereError, TrustedView
from wildflower.ota.rollout.document import Order
from wildflower.server.errors import SignerError
from wildflower.server.publish import Publisher


class Desk:
    """A publisher on a server's directory, with a clock that can be put forward."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.late = timedelta()
        socket = origin.directory / "signer" / "signer.sock"
        self.publisher = Publisher(origin.directory, socket, self.now)

    def now(self) -> datetime:
        return today() + self.late

    def release(self, order: int = 1, data: bytes = b"the artifact") -> str:
        one = case(order, data)
        return self.publisher.release(
            one.release,
            gate_report=one.gate_report.to_bytes(),
            round_record=one.round_record.to_bytes(),
        )

    def approved(self, release: Release, *, signers: int = 2, statement: bytes = b"") -> bytes:
        return signing.add_release(
            self.publisher.current(APPROVED),
            target_path("approved", release.target_group, release.order),
            release.to_bytes(),
            self.origin.keys[APPROVED].signers[:signers],
            expires=self.now() + timedelta(days=365),
            provenance=statement,
        )

    def statement_of(self, release: Release, role: str = APPROVED) -> bytes:
        record = RoundRecord("t1", 3, release.lineage.model, 8, 7, True, {}, today())
        made = Provenance.of(release, record, {})
        return sign_statement(made, self.origin.keys[role].signers[:1])

    def version(self, role: str) -> int:
        return signing.read_targets(self.publisher.current(role)).signed.version

    @contextmanager
    def device(self, cache: Path) -> Iterator[ReleaseClient]:
        with FaultServer(self.origin) as server:
            yield ReleaseClient(cache, self.origin.root, [server.url], http_client, self.now)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(server_directory(tmp_path / "server"))


@pytest.fixture
def signing_desk(desk: Desk) -> Iterator[Desk]:
    with signer_process(desk.origin.directory / "signer"):
        yield desk


def test_a_release_goes_from_the_signer_to_a_device(signing_desk: Desk, tmp_path: Path) -> None:
    path = signing_desk.release()
    release = case().release
    signing_desk.publisher.rollout(document_for(release, not_before=today()))
    with signing_desk.device(tmp_path / "cache") as client:
        document = client.rollout(GROUP)
        assert document is not None
        assert document.release_path == path
        found = client.release(path)
        assert (found.artifact, found.order) == (release.artifact, 1)


def test_where_a_release_came_from_lies_beside_it_for_anybody_to_open(
    signing_desk: Desk, tmp_path: Path
) -> None:
    path = signing_desk.release()
    origin = signing_desk.origin
    wire = OnDisk(origin)
    view = TrustedView(tmp_path / "cache", origin.root, wire, today())
    view.refresh()
    envelope, manifest = view.target(statement_path(path)), view.target(path)
    assert envelope is not None
    assert manifest is not None
    found = open_statement(envelope, origin.keys[AUTO].public_keys)
    found.check(Release.from_bytes(manifest))
    assert found.training == "t1"


def test_what_the_signer_stated_is_what_an_owners_demands_are_held_against(
    signing_desk: Desk, tmp_path: Path
) -> None:
    path = signing_desk.release()
    with signing_desk.device(tmp_path / "cache") as client:
        found = client.statement(path, client.release(path))
    Demands(min_clients=7, strategies=("secagg+fedavg",)).check(found)
    for demands in (Demands(min_clients=8), Demands(strategies=("he",)), Demands(max_epsilon=9.0)):
        with pytest.raises(ProvenanceError):
            demands.check(found)


class OnDisk:
    """What a static server would answer."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin

    def read(self, path: str) -> Iterator[bytes]:
        data = self.origin.read(path)
        if data is None:
            raise NotThereError(path)
        yield data


def test_publishing_a_release_again_changes_nothing(signing_desk: Desk) -> None:
    one = case()
    evidence = (one.gate_report.to_bytes(), one.round_record.to_bytes())
    paths = [
        signing_desk.publisher.release(
            one.release, gate_report=evidence[0], round_record=evidence[1]
        )
        for _ in range(2)
    ]
    assert paths == [target_path("auto", GROUP, 1)] * 2
    assert signing_desk.version(AUTO) == 2


@pytest.mark.parametrize("survived", range(5))
def test_a_release_that_a_crash_left_half_published_is_published_the_next_time(
    signing_desk: Desk, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """A manifest on the disk is no publication: only the timestamp makes it one."""
    written = 0

    def dying(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        nonlocal written
        if written == survived:
            raise OSError("power cut")
        written += 1
        files.write_durably(path, data, mode=mode)

    with monkeypatch.context() as cut:
        cut.setattr("wildflower.ota.release.repository.write_durably", dying)
        with pytest.raises(OSError, match="power cut"):
            signing_desk.release()
    path = signing_desk.release()
    assert path in signing.read_targets(signing_desk.publisher.current(AUTO)).signed.targets


def test_releases_of_several_threads_are_all_published(signing_desk: Desk) -> None:
    """Each keeps what the others added; orders that come too late are refused, not lost."""
    start = threading.Barrier(4)

    def publish(number: int) -> str:
        one = case(1, bytes([number]))
        group = f"digits{number}.linux-generic"
        release = replace(one.release, model_name=f"digits{number}", target_group=group)
        start.wait()
        return signing_desk.publisher.release(
            release,
            gate_report=one.gate_report.to_bytes(),
            round_record=one.round_record.to_bytes(),
        )

    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(publish, range(4)))
    published = set(signing.read_targets(signing_desk.publisher.current(AUTO)).signed.targets)
    assert published == paths | {statement_path(path) for path in paths}


def test_what_the_signer_refuses_is_not_published(signing_desk: Desk) -> None:
    one = case()
    wrong = replace(one.round_record, model="00" * 32)
    with pytest.raises(SignerError, match="refused: model of the round"):
        signing_desk.publisher.release(
            one.release, gate_report=one.gate_report.to_bytes(), round_record=wrong.to_bytes()
        )
    assert signing_desk.version(AUTO) == 1


def test_without_a_signer_nothing_is_published(desk: Desk) -> None:
    with pytest.raises(SignerError, match="does not answer"):
        desk.release()
    assert desk.version(AUTO) == 1


def test_a_signer_with_another_key_publishes_nothing(desk: Desk) -> None:
    other = Origin(desk.origin.directory / "other", today() - timedelta(days=3))
    stranger = (other.directory / "signer" / "key.pem").read_bytes()
    (desk.origin.directory / "signer" / "key.pem").write_bytes(stranger)
    running = signer_process(desk.origin.directory / "signer")
    with running, pytest.raises(SignerError, match="found none"):
        desk.release()
    assert desk.version(AUTO) == 1


def test_what_two_approvers_signed_is_published(desk: Desk, tmp_path: Path) -> None:
    release = release_of(b"by people")
    path = desk.publisher.approved(desk.approved(release), release)
    assert path == target_path("approved", GROUP, 1)
    with desk.device(tmp_path / "cache") as client:
        assert client.release(path, accepted=("approved",)) == release


def test_where_an_approved_release_comes_from_lies_beside_it(desk: Desk, tmp_path: Path) -> None:
    release = release_of(b"by people")
    statement = desk.statement_of(release)
    metadata = desk.approved(release, statement=statement)
    path = desk.publisher.approved(metadata, release, statement)
    assert desk.publisher.statement(path) == statement
    with desk.device(tmp_path / "cache") as client:
        found = client.statement(path, release)
        assert found is not None
        assert found.survivors == 7


def test_without_a_statement_there_is_none_to_read(desk: Desk, tmp_path: Path) -> None:
    release = release_of(b"by people")
    path = desk.publisher.approved(desk.approved(release), release)
    assert desk.publisher.statement(path) == b""
    with desk.device(tmp_path / "cache") as client:
        assert client.statement(path, release) is None


def test_a_statement_that_devices_would_not_find_or_not_believe_is_not_published(
    desk: Desk,
) -> None:
    release, other = release_of(b"this one"), release_of(b"that one")
    good = desk.statement_of(release)
    stranger, wrong = desk.statement_of(release, AUTO), desk.statement_of(other)
    cases = (
        (desk.approved(release, statement=good), b"", "none was brought"),
        (desk.approved(release), good, "one was brought"),
        (desk.approved(release, statement=stranger), stranger, "wrong signature"),
        (desk.approved(release, statement=wrong), wrong, "of another manifest"),
        (desk.approved(release, statement=wrong), good, "would not find"),
    )
    for metadata, statement, told in cases:
        with pytest.raises(RefusedError, match=told):
            desk.publisher.approved(metadata, release, statement)
    assert desk.version(APPROVED) == 1


def test_what_one_approver_signed_is_not_published(desk: Desk) -> None:
    release = release_of(b"by one")
    with pytest.raises(RefusedError, match="1/2") as refused:
        desk.publisher.approved(desk.approved(release, signers=1), release)
    assert "missing signers" in refused.value.hint
    assert desk.version(APPROVED) == 1


def test_approved_metadata_that_does_not_name_the_release_is_refused(desk: Desk) -> None:
    metadata = desk.approved(release_of(b"this one"))
    with pytest.raises(RefusedError, match="does not name models/approved"):
        desk.publisher.approved(metadata, release_of(b"that one"))
    with pytest.raises(RefusedError, match="does not name models/approved"):
        desk.publisher.approved(metadata, release_of(b"this one", 2))


def test_of_two_approvals_of_one_version_the_second_is_refused(desk: Desk) -> None:
    """It would take back the first, which its signers have never seen."""
    first, second = release_of(b"first", 1), release_of(b"second", 2)
    both = [(desk.approved(one), one) for one in (first, second)]
    desk.publisher.approved(*both[0])
    with pytest.raises(SigningError, match="version 2 is published"):
        desk.publisher.approved(*both[1])
    assert set(signing.read_targets(desk.publisher.current(APPROVED)).signed.targets) == {
        target_path("approved", GROUP, 1)
    }


def test_a_rollout_document_replaces_the_one_before(desk: Desk, tmp_path: Path) -> None:
    release = release_of(b"model")
    desk.publisher.approved(desk.approved(release), release)
    with desk.device(tmp_path / "cache") as client:
        for order in (Order.INSTALL, Order.PAUSE, Order.ROLL_BACK):
            document = document_for(release, role="approved", order=order)
            desk.publisher.rollout(document)
            client.refresh()
            assert client.rollout(GROUP) == document


@pytest.mark.parametrize("days", [0.5, 5, 29])
def test_refreshing_keeps_devices_believing(desk: Desk, tmp_path: Path, days: float) -> None:
    desk.late = timedelta(days=days)
    desk.publisher.refresh()
    desk.late += timedelta(hours=23)
    with desk.device(tmp_path / "cache") as client:
        client.refresh()
        assert client.rollout(GROUP) is None


def test_without_refreshing_devices_stop_believing(desk: Desk, tmp_path: Path) -> None:
    desk.late = timedelta(days=2)
    with desk.device(tmp_path / "cache") as client, pytest.raises(RefusedError, match="expired"):
        client.refresh()


def test_a_refresh_cannot_hide_that_an_offline_role_has_expired(desk: Desk) -> None:
    desk.late = timedelta(days=366)
    with pytest.raises(RefusedError, match="expired"):
        desk.publisher.refresh()


def test_a_role_that_is_not_there_is_told(desk: Desk) -> None:
    with pytest.raises(SigningError, match="no role 'models/other'"):
        desk.publisher.current("models/other")


def test_an_online_key_that_is_missing_is_told_at_the_start(desk: Desk) -> None:
    (desk.origin.directory / "keys" / f"{ROLLOUT}.pem").unlink()
    with pytest.raises(SigningError, match="No such file"):
        Desk(desk.origin)
