"""Bundles: what travels to offline keys, what they sign in it, and what they refuse to."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tests.ota_fakes import NOON, Origin, release_of

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, SigningError
from wildflower.ota.release.audit import AuditedSigner, Trail
from wildflower.ota.release.bundle import Bundle, propose
from wildflower.ota.release.ceremony import Authority, Change
from wildflower.ota.release.keys import APPROVED, AUTO, DELEGATED, ROLLOUT
from wildflower.ota.release.manifest import target_path
from wildflower.ota.release.signing import add_release, read_targets


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    return Origin(tmp_path_factory.mktemp("server"))


def proposed(origin: Origin, change: Change) -> Bundle:
    read = origin.repository.current
    authority = Authority(read("root"), read("targets"))
    return propose(authority, {role: read(role) for role in DELEGATED}, change, NOON)


def replacement(origin: Origin, role: str) -> tuple[CryptoSigner, Change]:
    """Return a new key and the change that puts it in the place of a role's first."""
    signer = CryptoSigner.generate_ed25519()
    old = origin.keys[role].public_keys[0].keyid
    return signer, Change(role, (signer.public_key,), (old,))


def release_bundle(origin: Origin) -> Bundle:
    release = release_of(b"model", 1)
    path = target_path("approved", release.target_group, 1)
    read = origin.repository.current
    edited = add_release(read(APPROVED), path, release.to_bytes(), [], expires=NOON)
    return Bundle(
        Authority(read("root"), read("targets")),
        {APPROVED: edited},
        {path: release.to_bytes()},
        {APPROVED: read(APPROVED)},
    )


def test_a_bundle_comes_back_as_it_left(origin: Origin) -> None:
    for bundle in (release_bundle(origin), proposed(origin, replacement(origin, APPROVED)[1])):
        assert Bundle.from_bytes(bundle.to_bytes()) == bundle


def test_a_root_travels_until_old_and_new_keys_have_signed(origin: Origin) -> None:
    new, change = replacement(origin, "root")
    bundle = proposed(origin, change)
    assert [one.judge for one in bundle.missing()] == ["root 1", "root 2"]
    bundle, made = bundle.signed_by([new])
    assert made == (("root", new.public_key.keyid),)
    assert [one.judge for one in bundle.missing()] == ["root 1"]
    bundle, _ = bundle.signed_by(origin.keys["root"].signers)
    assert bundle.missing() == ()


def test_a_key_in_both_roots_signs_once(origin: Origin) -> None:
    bundle = proposed(origin, Change("root", (CryptoSigner.generate_ed25519().public_key,)))
    bundle, made = bundle.signed_by(origin.keys["root"].signers)
    assert len(made) == 1
    assert bundle.missing() == ()
    again, none = bundle.signed_by(origin.keys["root"].signers)
    assert (again, none) == (bundle, ())


def test_keys_sign_only_what_is_theirs(origin: Origin) -> None:
    bundle = release_bundle(origin)
    foreign = [key for role in ("root", "targets", AUTO) for key in origin.keys[role].signers]
    same, made = bundle.signed_by([*foreign, CryptoSigner.generate_ed25519()])
    assert (same, made) == (bundle, ())
    assert bundle.wanted() == {key.keyid for key in origin.keys[APPROVED].public_keys}


@pytest.mark.parametrize("role", [APPROVED, AUTO, ROLLOUT, "targets"])
def test_what_a_removed_key_alone_vouched_for_is_to_be_signed_anew(
    origin: Origin, role: str
) -> None:
    _, change = replacement(origin, role)
    bundle = proposed(origin, change)
    above = "root" if role == "targets" else "targets"
    assert list(bundle.proposals) == [above, role]
    old, new = origin.repository.current(role), bundle.proposals[role]
    assert read_targets(new).signed.version == read_targets(old).signed.version + 1
    assert read_targets(new).signed.targets == read_targets(old).signed.targets


@pytest.mark.parametrize("role", ["root", "snapshot", "timestamp"])
def test_other_roles_are_signed_at_publication(origin: Origin, role: str) -> None:
    assert list(proposed(origin, replacement(origin, role)[1]).proposals) == ["root"]


def test_a_key_more_leaves_what_is_signed_as_it_is(origin: Origin) -> None:
    added = Change(APPROVED, (CryptoSigner.generate_ed25519().public_key,))
    assert list(proposed(origin, added).proposals) == ["targets"]


def test_a_bundle_says_every_key_that_changes(origin: Origin) -> None:
    new, change = replacement(origin, APPROVED)
    says = proposed(origin, replace(change, threshold=1)).says()
    assert says[:4] == (
        "targets 2, good until 2027-06-01",
        f"  models/approved: + key {new.public_key.keyid[:12]}",
        f"  models/approved: - key {change.remove[0][:12]}",
        "  models/approved: threshold 2 -> 1",
    )


def test_a_bundle_says_every_target_that_changes_also_those_it_does_not_bring(
    origin: Origin,
) -> None:
    bundle = release_bundle(origin)
    [(path, manifest)] = bundle.targets.items()
    line = f"  + {path} {canonical.digest(manifest)[:12]}"
    assert bundle.says() == ("models/approved 2, good until 2026-06-01", line)
    smuggled = read_targets(bundle.proposals[APPROVED])
    smuggled.signed.targets[f"{path}2"] = smuggled.signed.targets[path]
    told = replace(bundle, proposals={APPROVED: smuggled.to_bytes()}).says()
    assert f"  + {path}2 {canonical.digest(manifest)[:12]}" in told
    dropped = replace(
        bundle,
        proposals={APPROVED: bundle.current[APPROVED]},
        current={APPROVED: bundle.proposals[APPROVED]},
    )
    assert f"  - {path}" in dropped.says()
    assert line in replace(bundle, current={}).says()


def test_a_target_that_is_replaced_is_said_to_be(origin: Origin) -> None:
    bundle = release_bundle(origin)
    [path] = bundle.targets
    other = read_targets(bundle.proposals[APPROVED])
    other.signed.targets[path].hashes["sha256"] = "00" * 32
    changed = replace(
        bundle,
        proposals={APPROVED: other.to_bytes()},
        current={APPROVED: bundle.proposals[APPROVED]},
    )
    assert f"  ~ {path} 000000000000" in changed.says()


def test_a_signer_that_cannot_write_its_trail_says_so_itself(
    origin: Origin, tmp_path_factory: pytest.TempPathFactory
) -> None:
    nowhere = Trail(tmp_path_factory.mktemp("x") / "missing" / "audit.jsonl")
    signer = AuditedSigner(origin.keys[APPROVED].signers[0], nowhere, lambda: NOON)
    with pytest.raises(SigningError, match=r"audit trail .* cannot be written"):
        release_bundle(origin).signed_by([signer])


class Unplugged(CryptoSigner):
    """A signer whose token is gone."""

    def sign(self, payload: bytes):  # type: ignore[no-untyped-def]  # as its parent's
        raise RuntimeError


def test_a_signer_that_fails_is_named(origin: Origin) -> None:
    [signer, _] = origin.keys[APPROVED].signers
    assert isinstance(signer, CryptoSigner)
    with pytest.raises(SigningError, match=r"cannot sign models/approved: RuntimeError"):
        release_bundle(origin).signed_by([Unplugged(signer._private_key)])


def changed(bundle: Bundle, **fields: object) -> bytes:
    document = canonical.from_bytes(bundle.to_bytes(), kind="wildflower.signing-bundle")
    return canonical.to_bytes(document | fields)


def test_what_is_no_bundle_is_refused_by_name(origin: Origin) -> None:
    bundle = release_bundle(origin)
    metadata = bundle.proposals[APPROVED].decode()
    refused: dict[str, bytes] = {
        "not JSON": b"",
        "expected wildflower.signing-bundle": b'{"format":1,"kind":"x"}',
        "expected .*contents": changed(bundle, more=1),
        "expected an object, found list": changed(bundle, proposals=[]),
        "expected a text, found int": changed(bundle, proposals={APPROVED: 1}),
        "root metadata": changed(bundle, root="{}"),
        "expected targets metadata, found root": changed(
            bundle, targets=bundle.authority.root.decode()
        ),
        "a proposal for 'mirrors'": changed(bundle, proposals={"mirrors": metadata}),
        "a proposal for 'timestamp'": changed(bundle, proposals={"timestamp": metadata}),
        "expected root metadata": changed(bundle, proposals={"root": metadata}),
        "targets metadata": changed(bundle, current={APPROVED: "{}"}),
    }
    for message, data in refused.items():
        with pytest.raises(FormatError, match=message):
            Bundle.from_bytes(data)


def test_a_bundle_that_is_too_long_is_not_read() -> None:
    with pytest.raises(FormatError, match="at most 16000000"):
        Bundle.from_bytes(b" " * 16_000_001)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_bytes_make_the_parser_fail_otherwise_than_by_name(
    origin: Origin, data: st.DataObject
) -> None:
    good = bytearray(release_bundle(origin).to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = Bundle.from_bytes(bytes(good))
        found.owed()
        found.says()
    except (FormatError, SigningError):
        return
