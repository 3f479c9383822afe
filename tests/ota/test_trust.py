"""The verified view: python-tuf's checks, on our clock, from our anchor, through power cuts."""

import inspect
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.ota_fakes import GROUP, LIFE, NOON, Origin
from tuf.ngclient import Updater

from wildflower.ota import canonical
from wildflower.ota.errors import FetchError, RefusedError, StorageError
from wildflower.ota.release import signing, tuf_compat
from wildflower.ota.release.keys import ROLLOUT
from wildflower.ota.release.repository import Changes
from wildflower.ota.release.trust import NotThereError, TrustedView
from wildflower.ota.rollout.document import document_path

PATH = document_path(GROUP)


class Wire:
    """Reads an origin from its directory; what is in `lies` is served instead."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.lies: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut = False

    def read(self, path: str) -> Iterator[bytes]:
        self.asked.append(path)
        data = self.lies.get(path, self.origin.read(path))
        if data is None:
            raise NotThereError(f"{path}: HTTP 404")
        yield data[: len(data) // 2]
        if self.cut:
            raise FetchError("the line is dead")
        yield data[len(data) // 2 :]


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    origin = Origin(tmp_path / "server")
    origin.roll_out(origin.publish(b"model"))
    return origin


@pytest.fixture
def wire(origin: Origin) -> Wire:
    return Wire(origin)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def view(cache: Path, wire: Wire, late: timedelta = timedelta()) -> TrustedView:
    found = TrustedView(cache, wire.origin.root, wire, NOON + late)
    found.refresh()
    return found


def test_a_signed_target_is_returned_and_written_nowhere(cache: Path, wire: Wire) -> None:
    data = view(cache, wire).target(PATH)
    assert data is not None
    assert data in {p.read_bytes() for p in (wire.origin.directory / "tuf").rglob("*.json")}
    assert data not in {p.read_bytes() for p in cache.rglob("*") if p.is_file()}


def test_a_target_nobody_signed_is_none(cache: Path, wire: Wire) -> None:
    assert view(cache, wire).target("rollout/other.json") is None
    assert view(cache, wire).target("elsewhere/other.json") is None


@pytest.mark.parametrize(
    ("days", "found"), [(0.9, None), (1.1, "timestamp"), (400, "root"), (-10_000, None)]
)
def test_expiry_is_checked_against_the_moment_handed_in(
    cache: Path, wire: Wire, days: float, found: str | None
) -> None:
    if found is None:
        view(cache, wire, timedelta(days=days))
        return
    with pytest.raises(RefusedError, match=rf"expired: .*{found}.*as of 20"):
        view(cache, wire, timedelta(days=days))


def test_a_delegated_role_that_has_expired_is_refused(cache: Path, origin: Origin) -> None:
    short = signing.renew(
        origin.repository.current(ROLLOUT),
        origin.keys[ROLLOUT].signers,
        expires=NOON + timedelta(hours=1),
    )
    origin.repository.publish(Changes({ROLLOUT: short}), origin.keys, NOON)
    with pytest.raises(RefusedError, match=r"expired: New rollout is expired"):
        view(cache, Wire(origin), timedelta(hours=2)).target(PATH)


def test_snapshots_cannot_be_mixed(cache: Path, origin: Origin) -> None:
    """An older snapshot under the newer one's name: each is well signed, together they lie."""
    old = origin.repository.current("snapshot")
    origin.roll_out(origin.publish(b"other", 2))
    number = signing.snapshot_version(origin.repository.current("timestamp"))
    wire = Wire(origin)
    wire.lies[f"tuf/metadata/{number}.snapshot.json"] = old
    with pytest.raises(RefusedError, match="rollback"):
        view(cache, wire)


def test_an_older_timestamp_is_refused_even_after_a_restart(cache: Path, origin: Origin) -> None:
    old, wire = origin.repository.current("timestamp"), Wire(origin)
    origin.roll_out(origin.publish(b"other", 2))
    view(cache, wire)
    wire.lies["tuf/metadata/timestamp.json"] = old
    with pytest.raises(RefusedError, match="rollback"):
        view(cache, wire)


def test_a_target_of_unheard_length_is_not_even_asked_for(cache: Path, origin: Origin) -> None:
    origin.put(ROLLOUT, PATH, bytes(10))
    metadata = signing.read_targets(origin.repository.current(ROLLOUT))
    metadata.signed.targets[PATH].length = canonical.MAX_DOCUMENT + 1
    metadata.signed.version += 1
    metadata.sign(origin.keys[ROLLOUT].signers[0])
    origin.repository.publish(Changes({ROLLOUT: metadata.to_bytes()}), origin.keys, NOON)
    wire = Wire(origin)
    with pytest.raises(RefusedError, match=f"at most {canonical.MAX_DOCUMENT}"):
        view(cache, wire).target(PATH)
    assert not any(path.startswith("tuf/targets") for path in wire.asked)


def test_a_shorter_or_longer_target_is_refused(cache: Path, wire: Wire) -> None:
    asked = view(cache, wire)
    asked.target(PATH)
    name = wire.asked[-1]
    data = wire.origin.read(name)
    assert data is not None
    wire.lies[name] = data[:-1]
    with pytest.raises(RefusedError, match=f"wrong digest: found {len(data) - 1} bytes"):
        asked.target(PATH)
    wire.lies[name] = data + b"!"
    with pytest.raises(RefusedError, match="endless"):
        asked.target(PATH)


def test_a_source_that_dies_meanwhile_is_a_fetch_error(cache: Path, wire: Wire) -> None:
    wire.cut = True
    with pytest.raises(FetchError, match="the line is dead"):
        view(cache, wire)


def test_a_root_that_is_none_is_refused(cache: Path, wire: Wire) -> None:
    with pytest.raises(RefusedError, match="root: malformed"):
        TrustedView(cache, b"{}", wire, NOON)


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path: Path, wire: Wire) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(StorageError, match="metadata cache"):
        TrustedView(tmp_path / "file", wire.origin.root, wire, NOON)


def test_a_cache_lost_altogether_is_built_again_from_the_pinned_root(
    cache: Path, wire: Wire
) -> None:
    view(cache, wire)
    shutil.rmtree(cache)
    assert view(cache, wire).target(PATH) is not None


@pytest.mark.parametrize("left", [b"", b"{}", b"\x00" * 100])
def test_a_power_cut_that_empties_any_cached_file_costs_nothing(
    cache: Path, wire: Wire, left: bytes
) -> None:
    view(cache, wire).target(PATH)
    for file in [path for path in cache.rglob("*.json") if not path.is_symlink()]:
        file.write_bytes(left)
        assert view(cache, wire).target(PATH) is not None


def test_what_is_cached_already_is_not_written_again(cache: Path, wire: Wire) -> None:
    view(cache, wire)
    times = {path: path.lstat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    view(cache, wire)
    assert {path: path.lstat().st_mtime_ns for path in times} == times


def test_the_link_to_the_root_is_replaced_in_one_step(cache: Path, wire: Wire) -> None:
    cache.mkdir()
    (cache / ".root.json.new").symlink_to("left by a power cut")
    (cache / "root.json").symlink_to("root_history/0.root.json")
    view(cache, wire)
    assert (cache / "root.json").readlink() == Path("root_history/1.root.json")
    assert not (cache / ".root.json.new").is_symlink()


def test_python_tuf_still_has_the_private_names_that_are_replaced(cache: Path, wire: Wire) -> None:
    """Contract with tuf: when this fails, read `Updater` anew before anything is changed."""
    updater = tuf_compat.DurableUpdater(
        cache,
        metadata_url="m",
        targets_url="t",
        fetcher=None,  # type: ignore[arg-type]  # never fetches here
        root=wire.origin.root,
        now=NOON,
    )
    assert all(hasattr(updater, name) for name in tuf_compat.PRIVATE_NAMES)
    stock = vars(Updater)
    assert list(inspect.signature(stock["_persist_file"]).parameters) == [
        "self",
        "filename",
        "data",
    ]
    assert list(inspect.signature(stock["_update_root_symlink"]).parameters) == ["self"]
    source = inspect.getsource(Updater)
    assert "self._persist_file(" in source
    assert "self._update_root_symlink()" in source
    trusted = updater._trusted_set
    assert trusted.reference_time == NOON
    checks = inspect.getsource(type(trusted))
    assert checks.count("is_expired(self.reference_time)") == checks.count("is_expired(")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(["timestamp", "snapshot", ROLLOUT]), st.integers(0), st.integers(1, 255))
def test_no_changed_byte_of_metadata_changes_what_is_believed(
    tmp_path_factory: pytest.TempPathFactory, origin: Origin, role: str, position: int, change: int
) -> None:
    """Sign, then mutate: refused, or harmless (a space, a signature that is one too many)."""
    good = view(tmp_path_factory.mktemp("good"), Wire(origin)).target(PATH)
    data, wire = origin.repository.current(role), Wire(origin)
    at = position % len(data)
    mutated = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
    for name in (f"{role}.json", *(f"{n}.{role}.json" for n in range(1, 5))):
        if origin.read(f"tuf/metadata/{name}") == data:
            wire.lies[f"tuf/metadata/{name}"] = mutated
    assert wire.lies
    try:
        found = view(tmp_path_factory.mktemp("bad"), wire).target(PATH)
    except RefusedError:
        return
    assert found == good


def test_metadata_lives_as_long_as_its_signer_says(origin: Origin) -> None:
    assert signing.expiry(origin.repository.current(ROLLOUT)) == NOON + LIFE
