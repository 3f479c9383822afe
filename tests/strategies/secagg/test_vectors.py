"""The frozen sessions in tests/goldens/secagg: all messages of fixed seeds, and what is refused."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from tests.secagg_vectors import (
    SESSIONS,
    Json,
    RepeatableDevice,
    complete,
    plain,
    refusals,
    rich,
    vector_of,
)

from wildflower.strategies.errors import CapacityError, ProtocolError
from wildflower.strategies.secagg import client, keys
from wildflower.strategies.secagg.client_state import State
from wildflower.strategies.secagg.messages import SessionParams
from wildflower.strategies.secagg.server import Session

PLACE = Path(__file__).parents[2] / "goldens" / "secagg"


def frozen(name: str) -> Json:
    found: Json = json.loads((PLACE / f"{name}.json").read_text())
    return found


def freeze(name: str, found: Json) -> None:
    PLACE.mkdir(exist_ok=True)
    (PLACE / f"{name}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize("name", SESSIONS)
def test_the_seeds_give_the_very_same_messages_and_sum(name: str, update_goldens: bool) -> None:
    made = vector_of(SESSIONS[name]())
    if update_goldens:
        freeze(name, made)
    assert made == frozen(name)


def said(vector: Json, kind: str) -> dict[str, Any]:
    return {device: rich(kind, found) for device, found in vector["messages"][kind].items()}


def context(vector: Json) -> tuple[x509.Certificate, datetime, SessionParams]:
    ca = x509.load_der_x509_certificate(bytes.fromhex(vector["ca"]))
    return ca, datetime.fromisoformat(vector["now"]), rich("params", vector["params"])


@pytest.mark.parametrize("name", SESSIONS)
def test_a_server_that_hears_the_messages_finds_the_sum(name: str) -> None:
    vector = frozen(name)
    ca, now, params = context(vector)
    server = Session(params, vector["clients"].keys(), ca=ca)

    def hear(kind: str) -> None:
        for device, message in said(vector, kind).items():
            server.receive(device, message, now=now)

    hear("advertisement")
    assert server.rosters(entropy=bytes.fromhex(vector["ring_entropy"])) == said(vector, "roster")
    hear("shares")
    assert server.deliveries() == said(vector, "delivery")
    hear("masked")
    assert server.requests() == said(vector, "unmask")
    hear("reveal")
    total = server.total()
    assert total.astype(total.dtype.newbyteorder("<")).tobytes().hex() == vector["sum"]
    assert list(server.survivors) == vector["survivors"]


@pytest.mark.parametrize("name", SESSIONS)
def test_the_sum_is_that_of_the_survivors_residues(name: str) -> None:
    vector = frozen(name)
    width = rich("params", vector["params"]).encoding.bits // 8
    rows = [
        np.frombuffer(bytes.fromhex(vector["clients"][device]["residues"]), f"<u{width}")
        for device in vector["survivors"]
    ]
    assert np.add.reduce(rows, dtype=f"<u{width}").tobytes().hex() == vector["sum"]
    lost = len(vector["clients"]) - len(vector["survivors"])
    assert lost == 2


class Clients:
    """The clients of a frozen session, who hear what the server says in it."""

    def __init__(self, vector: Json) -> None:
        self.vector = vector
        self.ca, self.now, self.params = context(vector)

    def private(self, device: str, name: str) -> bytes:
        return bytes.fromhex(self.vector["clients"][device][name])

    def advertise(self, device: str) -> tuple[State, Any]:
        number = int.from_bytes(self.private(device, "identity"))
        key = ec.derive_private_key(number, ec.SECP256R1())
        assert keys.device_id_of(key.public_key()) == device
        certificate = said(self.vector, "advertisement")[device].certificate
        identity = RepeatableDevice(key, device, certificate)
        return client.advertise(
            self.params, identity, entropy=self.private(device, "entropy_advertise")
        )

    def share(self, device: str) -> tuple[State, Any]:
        return client.share(
            self.advertise(device)[0],
            said(self.vector, "roster")[device],
            ca=self.ca,
            now=self.now,
            entropy=self.private(device, "entropy_share"),
        )

    def open(self, device: str) -> State:
        return client.open_shares(self.share(device)[0], said(self.vector, "delivery")[device])

    def mask(self, device: str) -> tuple[State, Any]:
        width = self.params.encoding.bits // 8
        residues = np.frombuffer(self.private(device, "residues"), f"<u{width}")
        return client.mask(self.open(device), residues.astype(self.params.encoding.dtype))

    def reveal(self, device: str) -> tuple[State, Any]:
        return client.reveal(self.mask(device)[0], said(self.vector, "unmask")[device])


@pytest.mark.parametrize("name", SESSIONS)
def test_clients_that_hear_the_messages_answer_them_as_they_did(name: str) -> None:
    vector = frozen(name)
    clients = Clients(vector)
    steps = {
        "advertisement": clients.advertise,
        "shares": clients.share,
        "masked": clients.mask,
        "reveal": clients.reveal,
    }
    answered = 0
    for kind, step in steps.items():
        for device, found in vector["messages"][kind].items():
            answered += 1
            assert plain(step(device)[1]) == found
    assert answered == sum(len(vector["messages"][kind]) for kind in steps) > 20


# What is refused.


def victim() -> str:
    """Return a client that goes through the whole session."""
    return min(complete(32).said["reveal"])


def made_refusals() -> Json:
    return {
        name: {"kind": kind, "message": plain(message), "reason": reason}
        for name, (kind, message, reason) in refusals(complete(32), victim()).items()
    }


def test_the_seeds_give_the_very_same_refusals(update_goldens: bool) -> None:
    made = {"session": "complete-32", "client": victim(), "refused": made_refusals()}
    if update_goldens:
        freeze("refused-32", made)
    assert made == frozen("refused-32")
    assert len(made["refused"]) >= 28


def hear(clients: Clients, device: str, kind: str, found: Json) -> None:
    """Have a client hear one message at the time when it would expect it."""
    message = rich(kind, found)
    match kind:
        case "params":
            client.advertise_again(clients.advertise(device)[0], message)
        case "roster":
            state, _ = clients.advertise(device)
            client.share(state, message, ca=clients.ca, now=clients.now, entropy=bytes(32))
        case "delivery":
            client.open_shares(clients.share(device)[0], message)
        case _:
            client.reveal(clients.mask(device)[0], message)


def test_a_client_refuses_every_frozen_message_and_says_why() -> None:
    listed = frozen("refused-32")
    clients = Clients(frozen(listed["session"]))
    for name, each in listed["refused"].items():
        with pytest.raises((ProtocolError, CapacityError)) as caught:
            hear(clients, listed["client"], each["kind"], each["message"])
        assert each["reason"] in str(caught.value), name


def test_the_same_client_hears_what_was_not_changed() -> None:
    listed = frozen("refused-32")
    vector = frozen(listed["session"])
    clients, device = Clients(vector), listed["client"]
    hear(clients, device, "params", vector["params"])
    for kind in ("roster", "delivery", "unmask"):
        hear(clients, device, kind, vector["messages"][kind][device])
