"""Attacks by who has stolen keys, or signs with keys that may not: what each of them cannot do."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.attacks.bench import Bench, Thief, recovers, refused
from tests.client_fakes import LONG_AGO, today
from tests.device_fakes import Bundle, bundle, document
from tests.ota_fakes import FaultServer
from tests.update_fakes import offer

from wildflower.client.policy import Policy
from wildflower.ota.device.report import Outcome
from wildflower.ota.errors import RefusedError
from wildflower.ota.release.manifest import Ceiling, target_path
from wildflower.ota.rollout.document import document_path

ONLINE = ("timestamp", "snapshot", "rollout")


@pytest.fixture
def thief(bench: Bench, tmp_path: Path) -> Thief:
    """Return somebody who has stolen all online keys but the release signer's."""
    return Thief(bench.releases, tmp_path / "thief")


@pytest.fixture
def theft(thief: Thief) -> Iterator[str]:
    with FaultServer(thief) as server:
        yield server.url


def signed(thief: Thief, one: Bundle, role: str, by: str, *, keys: int = 9) -> None:
    """Publish a release as one of a role, signed by keys of this or another role, and order it."""
    path = target_path(role, one.release.target_group, one.release.order)
    signers = thief.releases.keys[by].signers[:keys]
    thief.blobs |= one.blobs
    thief.put(f"models/{role}", path, one.release.to_bytes(), signers=signers)
    thief.order(document(one.release, release_path=path, not_before=LONG_AGO))


def evil() -> Bundle:
    return bundle(2, scale=666.0, not_before=LONG_AGO)


def stop(bench: Bench) -> None:
    """Do as an operator does whose online keys were stolen."""
    bench.rotate(*ONLINE)


def test_a_stolen_online_key_cannot_ship_an_image(bench: Bench, thief: Thief, theft: str) -> None:
    signed(thief, evil(), "auto", by="rollout")
    refused(bench, theft, "wrong signature: models/auto was signed by 0/1", error=RefusedError)
    stop(bench)
    recovers(bench)


def test_a_release_that_has_too_few_signatures(bench: Bench, thief: Thief, theft: str) -> None:
    signed(thief, evil(), "approved", by="models/approved", keys=1)
    refused(bench, theft, "wrong signature: models/approved was signed by 1/2", error=RefusedError)
    stop(bench)
    recovers(bench)


def test_a_key_that_was_revoked_signs_nothing(bench: Bench, tmp_path: Path) -> None:
    old = bench.releases.keys["models/auto"]
    bench.rotate("models/auto")
    thief = Thief(bench.releases, tmp_path / "later")
    one = evil()
    path = target_path("auto", one.release.target_group, 2)
    thief.put("models/auto", path, one.release.to_bytes(), signers=old.signers)
    thief.order(document(one.release, not_before=LONG_AGO))
    with FaultServer(thief) as server:
        said = "wrong signature: models/auto was signed by 0/1"
        refused(bench, server.url, said, error=RefusedError)
    stop(bench)
    recovers(bench)


def test_a_stolen_online_key_cannot_appoint_signers(bench: Bench, thief: Thief, theft: str) -> None:
    thief.put("targets", "models/auto/light.linux-generic/2.json", b"{}",
              signers=bench.releases.keys["timestamp"].signers)  # fmt: skip
    refused(bench, theft, "wrong signature: targets was signed by 0/1", error=RefusedError)
    stop(bench)
    recovers(bench)


def test_a_stolen_online_key_cannot_ramp_past_the_signed_ceiling(
    bench: Bench, thief: Thief, theft: str
) -> None:
    ramp = (Ceiling(LONG_AGO, 0), Ceiling(today() + timedelta(days=30), 1000))
    one = bundle(2, scale=2.0, not_before=LONG_AGO, ramp=ramp)
    bench.releases.publish(one)
    thief.put("models/auto", target_path("auto", one.release.target_group, 2),
              one.release.to_bytes())  # fmt: skip
    thief.order(document(one.release, not_before=LONG_AGO))
    said = "rollout r2 asks 1000 of 1000 devices to install release 2; signed are 0 of 1000"
    refused(bench, theft, said, error=None)
    stop(bench)
    recovers(bench)


def test_a_stolen_online_key_cannot_choose_an_older_release(bench: Bench, tmp_path: Path) -> None:
    old, bench.first = bench.first, offer(bench.server, 2)
    bench.kit.look()
    thief = Thief(bench.releases, tmp_path / "later")
    thief.order(document(old.release, rollout="mine", not_before=LONG_AGO))
    with FaultServer(thief) as server:
        said = "order 1 is below 2, which this device had; it goes back by a signed order alone"
        refused(bench, server.url, said, error=None)
    stop(bench)
    recovers(bench)


@pytest.mark.parametrize(
    "path",
    [
        "software/labels.json",
        "models/auto/other.linux-generic/1.json",
        pytest.param("models/auto/../../../etc/passwd", marks=pytest.mark.slow),
        pytest.param("/etc/passwd", marks=pytest.mark.slow),
        pytest.param("models/auto/%2e%2e/1.json", marks=pytest.mark.slow),
        pytest.param("models\\auto\\light.linux-generic\\1.json", marks=pytest.mark.slow),
        pytest.param("models/auto/light.linux-generic/1\0.json", marks=pytest.mark.slow),
        pytest.param("models/auto/light.linux-generic/\u0661.json", marks=pytest.mark.slow),
        pytest.param(f"models/auto/light.linux-generic/{'9' * 5000}.json", marks=pytest.mark.slow),
    ],
)
def test_a_stolen_online_key_can_name_releases_of_the_group_and_nothing_else(
    bench: Bench, thief: Thief, theft: str, path: str
) -> None:
    bench.kit.policy = Policy(release=("auto", "approved"), software=("labels",))
    forged = document(bench.first.release, rollout="r7", release_path=path)
    thief.order(replace(forged, release="ab" * 32))
    said = r"rollout r7 names .*, expected a release of light\.linux-generic"
    refused(bench, theft, said, error=None)
    stop(bench)
    recovers(bench)


def test_a_stolen_online_key_brings_no_software(bench: Bench, thief: Thief, theft: str) -> None:
    bench.kit.policy = Policy(release=("auto",), software=("labels",))
    thief.put("rollout", "software/labels.json", b"{}")  # its delegation names rollout/* alone
    bench.look(theft)
    assert bench.errors == []
    assert [one.outcome for one in bench.reports()] == [Outcome.COMMITTED]
    stop(bench)
    recovers(bench)


def test_a_document_of_another_group_signed_for_this_one(
    bench: Bench, thief: Thief, theft: str
) -> None:
    other = replace(document(bench.first.release), target_group="other.linux-generic")
    thief.put("rollout", document_path("light.linux-generic"), other.to_bytes())
    said = r"a document for other\.linux-generic, expected light\.linux-generic"
    refused(bench, theft, said, error=RefusedError)
    stop(bench)
    recovers(bench)


def test_a_model_for_another_device_class(bench: Bench) -> None:
    requires = replace(bench.first.release.requires, device_class="mcu-m7")
    offer(bench.server, 2, requires=requires)
    said = "device class: found linux-generic, expected mcu-m7"
    honest = bench.server.url
    refused(bench, honest, said, error=None, outcome=Outcome.INCOMPATIBLE)
    recovers(bench)
