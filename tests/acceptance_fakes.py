"""Releases with statements of where they come from, as the release signer makes them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.client_fakes import LONG_AGO, FakeServer

from wildflower.ota.release.manifest import Release
from wildflower.ota.release.method import Method
from wildflower.ota.release.provenance import RoundRecord
from wildflower.ota.release.statement import Provenance, sign_statement

METHOD = Method("fedavg", "secagg", "central", "device")


def stating(server: FakeServer, role: str = "auto", **changes: Any) -> Callable[[Release], bytes]:
    """Return what makes a release's statement, which differs from a good one in `changes`."""

    def made(release: Release) -> bytes:
        lineage = release.lineage
        record = RoundRecord(
            lineage.training, lineage.round_number, lineage.model, 8, 7, True, {}, LONG_AGO, METHOD
        )
        found = Provenance.of(release, record, {}, {"epsilon": 2.5, "delta": 1e-5})
        signers = server.releases.keys[f"models/{role}"].signers
        return sign_statement(replace(found, **changes), signers)

    return made
