"""The role that signs software: who may be appointed, and what whoever signs is shown."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from securesystemslib.signer import CryptoSigner, Key
from tests.ota.test_software import LABELS
from tests.ota_fakes import NOON, Origin

from wildflower.ota.errors import FormatError, SigningError
from wildflower.ota.release.bundle import Bundle
from wildflower.ota.release.ceremony import Authority
from wildflower.ota.release.keys import AUTO, SOFTWARE
from wildflower.ota.release.repository import Changes
from wildflower.ota.release.software_role import propose_role, propose_software


@pytest.fixture
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    return Origin(tmp_path_factory.mktemp("server"))


def authority(origin: Origin) -> Authority:
    return Authority(origin.repository.current("root"), origin.repository.current("targets"))


def role_for(origin: Origin, keys: Sequence[Key], threshold: int = 1) -> Bundle:
    return propose_role(authority(origin), keys, threshold, NOON)


def delegated(origin: Origin, signer: CryptoSigner) -> None:
    bundle = role_for(origin, [signer.public_key])
    bundle, _ = bundle.signed_by([*origin.keys["targets"].signers, signer])
    origin.repository.publish(Changes(bundle.proposals), origin.keys, NOON)


def test_whoever_appoints_signers_is_shown_their_keys_and_their_threshold(origin: Origin) -> None:
    one, two = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ecdsa()
    bundle = role_for(origin, [one.public_key, two.public_key], 2)
    said = bundle.says()
    assert f"  software: + key {one.public_key.keyid[:12]}" in said
    assert f"  software: + key {two.public_key.keyid[:12]}" in said
    assert "  software: threshold 0 -> 2" in said
    assert [one.role for one in bundle.missing()] == ["targets", SOFTWARE]
    assert Bundle.from_bytes(bundle.to_bytes()) == bundle


def test_a_role_that_a_bundle_would_take_away_is_shown(origin: Origin) -> None:
    now = authority(origin)
    targets = json.loads(now.targets)
    targets["signed"]["version"] += 1
    roles = targets["signed"]["delegations"]["roles"]
    targets["signed"]["delegations"]["roles"] = [one for one in roles if one["name"] != AUTO]
    said = Bundle(now, {"targets": json.dumps(targets).encode()}).says()
    [key] = origin.keys[AUTO].public_keys
    assert f"  {AUTO}: - key {key.keyid[:12]}" in said
    assert f"  {AUTO}: threshold 1 -> 0" in said


def test_a_role_is_appointed_once(origin: Origin) -> None:
    delegated(origin, CryptoSigner.generate_ed25519())
    with pytest.raises(SigningError, match="there already") as refused:
        role_for(origin, [CryptoSigner.generate_ed25519().public_key])
    assert refused.value.hint == "wildflower keys rotate software"


def test_no_key_serves_two_roles(origin: Origin) -> None:
    with pytest.raises(SigningError, match="signs for models/auto already"):
        role_for(origin, origin.keys[AUTO].public_keys)


@pytest.mark.parametrize("threshold", [0, 2])
def test_a_threshold_that_nobody_could_meet_is_refused(origin: Origin, threshold: int) -> None:
    key = CryptoSigner.generate_ed25519().public_key
    with pytest.raises(SigningError, match=f"1 keys and a threshold of {threshold}"):
        role_for(origin, [key, key], threshold)


def test_only_the_top_level_targets_delegate(origin: Origin) -> None:
    wrong = Authority(origin.repository.current("root"), origin.repository.current("rollout"))
    with pytest.raises(SigningError, match="delegate nothing"):
        propose_role(wrong, [CryptoSigner.generate_ed25519().public_key], 1, NOON)


def test_whoever_signs_software_is_shown_the_document(origin: Origin) -> None:
    delegated(origin, CryptoSigner.generate_ed25519())
    current = origin.repository.current(SOFTWARE)
    bundle = propose_software(authority(origin), current, LABELS, NOON)
    assert f"  + software/labels.json {LABELS.digest[:12]}" in bundle.says()
    assert [one.missing for one in bundle.missing()] == [1]


def test_a_document_out_of_range_is_not_signed(origin: Origin) -> None:
    delegated(origin, CryptoSigner.generate_ed25519())
    current = origin.repository.current(SOFTWARE)
    with pytest.raises(FormatError, match="not a plain name"):
        propose_software(authority(origin), current, replace(LABELS, name="../etc"), NOON)
