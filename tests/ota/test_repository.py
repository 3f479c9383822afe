"""The repository on disk: the order of writes, what is never half there, what is not published."""

import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from tests.ota_fakes import GROUP, LIFE, NOON, Origin, document_for, release_of

from wildflower.ota.errors import RefusedError, SigningError
from wildflower.ota.release import files, signing
from wildflower.ota.release.keys import APPROVED, AUTO, ROLES, ROLLOUT
from wildflower.ota.release.manifest import target_path
from wildflower.ota.release.repository import Changes, Lifetimes, Repository
from wildflower.ota.rollout.document import document_path

PATH = target_path("auto", GROUP, 1)


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path)


def on_disk(origin: Origin) -> dict[str, bytes]:
    root = origin.directory / "tuf"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def with_release(origin: Origin, order: int = 1, role: str = AUTO) -> Changes:
    """Return the changes that publish a release, properly signed."""
    path = target_path(role.split("/")[1], GROUP, order)
    data = release_of(b"model", order).to_bytes()
    metadata = signing.add_release(
        origin.repository.current(role),
        path,
        data,
        origin.keys[role].signers,
        expires=NOON + LIFE,
    )
    return Changes({role: metadata}, {path: data})


def test_a_new_repository_has_every_role_in_its_first_version(origin: Origin) -> None:
    assert set(on_disk(origin)) == {
        "metadata/1.root.json",
        "metadata/1.targets.json",
        "metadata/1.models/auto.json",
        "metadata/1.models/approved.json",
        "metadata/1.rollout.json",
        "metadata/1.snapshot.json",
        "metadata/timestamp.json",
    }
    assert origin.root == origin.repository.root == origin.repository.current("root")
    assert all(json.loads(origin.repository.current(role))["signatures"] for role in ROLES)


def test_a_repository_is_made_once(origin: Origin) -> None:
    before = on_disk(origin)
    with pytest.raises(SigningError, match="holds a repository already"):
        origin.repository.create(origin.keys, NOON)
    assert on_disk(origin) == before


def test_what_is_good_for_how_long_is_an_argument(origin: Origin, tmp_path: Path) -> None:
    short = Lifetimes(timestamp=timedelta(hours=1))
    other = Repository(tmp_path / "other")
    other.create(origin.keys, NOON, short)
    assert signing.expiry(other.current("timestamp")) == NOON + timedelta(hours=1)
    assert signing.expiry(other.current("root")) == NOON + Lifetimes().root


def test_a_published_target_carries_its_digest_in_its_name(origin: Origin) -> None:
    changes = with_release(origin)
    origin.repository.publish(changes, origin.keys, NOON)
    digest = release_of(b"model").digest
    written = on_disk(origin)
    assert written[f"targets/models/auto/{GROUP}/{digest}.1.json"] == changes.targets[PATH]
    assert origin.repository.targets(AUTO) == {PATH: changes.targets[PATH]}


def test_a_target_that_is_signed_and_gone_is_named(origin: Origin) -> None:
    origin.repository.publish(with_release(origin), origin.keys, NOON)
    shutil.rmtree(origin.directory / "tuf/targets/models")
    with pytest.raises(SigningError, match=f"target {PATH} cannot be read"):
        origin.repository.targets(AUTO)


def test_published_files_are_never_changed_but_for_the_timestamp(origin: Origin) -> None:
    before = on_disk(origin)
    origin.repository.publish(with_release(origin), origin.keys, NOON)
    after = on_disk(origin)
    assert {name for name in before if after[name] != before[name]} == {"metadata/timestamp.json"}


def test_what_points_at_a_file_is_written_after_it(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop before every write: what is published then is the old state, whole, or the new one."""
    old, changes = origin.repository.current("snapshot"), with_release(origin)
    names: list[str] = []
    allowed = 0

    def dying(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        if len(names) == allowed:
            raise OSError("power cut")
        names.append(path.name)
        files.write_durably(path, data, mode=mode)

    monkeypatch.setattr("wildflower.ota.release.repository.write_durably", dying)
    for allowed in range(4):  # noqa: B007  `dying` reads it
        names.clear()
        with pytest.raises(OSError, match="power cut"):
            origin.repository.publish(changes, origin.keys, NOON)
        assert origin.repository.current("snapshot") == old
        assert signing.read_targets(origin.repository.current(AUTO)).signed.version == 1
    names.clear()
    allowed = 9
    origin.repository.publish(changes, origin.keys, NOON)  # again, over what the cuts left
    assert names == [
        f"{release_of(b'model').digest}.1.json",
        "auto.json",
        "2.snapshot.json",
        "timestamp.json",
    ]
    assert origin.repository.current(AUTO) == changes.roles[AUTO]


def test_a_change_that_is_not_signed_by_its_role_is_not_published(origin: Origin) -> None:
    changes = with_release(origin)
    forged = signing.read_targets(changes.roles[AUTO])
    forged.signatures.clear()
    forged.sign(origin.keys[ROLLOUT].signers[0])
    before = on_disk(origin)
    with pytest.raises(RefusedError, match="wrong signature"):
        origin.repository.publish(
            Changes({AUTO: forged.to_bytes()}, changes.targets), origin.keys, NOON
        )
    assert on_disk(origin) == before


def test_one_approver_alone_cannot_publish(origin: Origin) -> None:
    data = release_of(b"model").to_bytes()
    path = target_path("approved", GROUP, 1)
    alone = signing.add_release(
        origin.repository.current(APPROVED),
        path,
        data,
        origin.keys[APPROVED].signers[:1],
        expires=NOON + LIFE,
    )
    with pytest.raises(RefusedError, match="1/2"):
        origin.repository.publish(Changes({APPROVED: alone}, {path: data}), origin.keys, NOON)
    both = signing.countersign(alone, origin.keys[APPROVED].signers[1])
    origin.repository.publish(Changes({APPROVED: both}, {path: data}), origin.keys, NOON)


def test_a_target_that_is_not_what_was_signed_is_not_published(origin: Origin) -> None:
    changes = with_release(origin)
    wrong = Changes(changes.roles, {PATH: changes.targets[PATH] + b" "})
    with pytest.raises(RefusedError, match="would not find what is signed"):
        origin.repository.publish(wrong, origin.keys, NOON)


def test_a_target_that_no_metadata_names_is_not_published(origin: Origin) -> None:
    changes = with_release(origin)
    stray = target_path("auto", GROUP, 9)
    with pytest.raises(RefusedError, match=f"{stray}: nobody who may has signed"):
        origin.repository.publish(
            Changes(changes.roles, {**changes.targets, stray: b"x"}), origin.keys, NOON
        )


def test_what_has_expired_is_not_published(origin: Origin) -> None:
    with pytest.raises(RefusedError, match="expired"):
        origin.repository.publish(with_release(origin), origin.keys, NOON + LIFE)


def test_the_online_keys_of_another_repository_publish_nothing(
    origin: Origin, tmp_path: Path
) -> None:
    other = Origin(tmp_path / "other", NOON - timedelta(seconds=1))
    with pytest.raises(RefusedError, match="wrong signature"):
        origin.repository.publish(Changes(), other.keys, NOON)


def test_an_older_version_of_a_role_is_not_published_again(origin: Origin) -> None:
    old = with_release(origin)
    origin.repository.publish(old, origin.keys, NOON)
    origin.repository.publish(with_release(origin, 2), origin.keys, NOON)
    with pytest.raises(SigningError, match="version 3 is published"):
        origin.repository.publish(old, origin.keys, NOON)


def test_several_documents_are_published_together(origin: Origin) -> None:
    metadata, targets = origin.repository.current(ROLLOUT), dict[str, bytes]()
    for group in ("digits.a", "digits.b"):
        path = document_path(group)
        targets[path] = document_for(release_of(b"x", target_group=group)).to_bytes()
        metadata = signing.put_target(
            metadata, path, targets[path], origin.keys[ROLLOUT].signers, expires=NOON + LIFE
        )
    origin.repository.publish(Changes({ROLLOUT: metadata}, targets), origin.keys, NOON)
    assert set(signing.read_targets(origin.repository.current(ROLLOUT)).signed.targets) == set(
        targets
    )


def test_publishing_nothing_renews_snapshot_and_timestamp(origin: Origin) -> None:
    later = NOON + timedelta(days=8)
    origin.repository.publish(Changes(), origin.keys, later)
    assert signing.expiry(origin.repository.current("snapshot")) == later + timedelta(days=7)
    assert signing.snapshot_version(origin.repository.current("timestamp")) == 2


def test_the_newest_root_is_the_current_one(origin: Origin) -> None:
    newer = origin.directory / "tuf" / "metadata" / "2.root.json"
    newer.write_bytes(b"the second root")
    assert origin.repository.current("root") == b"the second root"
    assert origin.repository.root == origin.root


def test_an_unknown_role_or_a_missing_repository_is_told(origin: Origin, tmp_path: Path) -> None:
    with pytest.raises(SigningError, match="no role 'models/other'") as unknown:
        origin.repository.current("models/other")
    assert "models/auto" in unknown.value.hint
    with pytest.raises(SigningError, match="no TUF metadata at") as missing:
        Repository(tmp_path / "nowhere").current("timestamp")
    assert "server init" in missing.value.hint


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    files.write_durably(path, b"old")
    (tmp_path / "a" / ".file.new").write_bytes(b"left by a power cut")
    files.write_durably(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    (occupied / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        files.write_durably(occupied, b"new")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["occupied"]
