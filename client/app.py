"""The device's Flower ClientApp: the device's app behind the device's policy.

    message -> PrivacyGuard (budget) -> Outgoing (policy) -> UpdateMod (protecting) -> app

`app` is what Flower's own `flower-supernode` loads; give it the device's directory with
`--node-config 'directory="/path"'`. Our agent's training child uses the same parts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from wildflower.client.config import load_config
from wildflower.client.identity import Identity
from wildflower.client.local_app import find_app
from wildflower.client.outgoing import Guard, Outgoing
from wildflower.client.policy import load_policy
from wildflower.client.privacy_book import FILE, PrivacyBook
from wildflower.client.privacy_guard import PrivacyGuard
from wildflower.strategies import round_messages as wire
from wildflower.strategies.he.protection import Homomorphic
from wildflower.strategies.mod import App, UpdateMod
from wildflower.strategies.protection import Protection
from wildflower.strategies.secagg.keys import load_ca
from wildflower.strategies.secagg.one_shot_protection import OneShot
from wildflower.strategies.secagg.protection import SecAgg
from wildflower.strategies.secagg.sessions import DirectorySessions

DIRECTORY: Final = "directory"
"""Key of Flower's node config that names the device's directory."""


def guard_of(directory: Path) -> Guard:
    """Return the guard that a device's files describe.

    Raises:
        ClientError: A file is missing or wrong.
    """
    identity, policy = Identity.load(directory), load_policy(directory)
    sessions = DirectorySessions(directory / "training")
    ca = load_ca(identity.ca_pem)
    protections: list[Protection] = [
        SecAgg(identity, ca, sessions, min_cohort=policy.min_cohort),
        OneShot(
            identity,
            DirectorySessions(directory / "training/one-shot"),
            policy.helpers,
            policy.min_cohort,
        ),
        Homomorphic(
            identity,
            DirectorySessions(directory / "training/he"),
            policy.key_holder,
            policy.min_cohort,
        ),
    ]
    book = PrivacyBook(directory / "training" / FILE)
    limit = policy.max_epsilon_per_month
    privacy = PrivacyGuard(book, protections, limit, policy.unit, policy.delta)
    return Guard(Outgoing(policy.secagg, protections), UpdateMod(protections), privacy)


def device_app(find: Callable[[Context], App]) -> ClientApp:
    """Return a ClientApp that answers every message of a round as `find` says.

    Args:
        find: Returns the guarded app of the node of a context.
    """
    client = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        return find(context)(message, context)

    client.train()(answer)
    client.evaluate()(answer)
    for kind in (wire.ADVERTISE, wire.SHARE, wire.UNMASK):
        client.query(kind.removeprefix("query."))(answer)
    return client


def _of_node(context: Context) -> App:
    """Return the app of the device whose directory Flower's node config names."""
    directory = Path(str(context.node_config.get(DIRECTORY, "")))
    config = load_config(directory)
    guard = guard_of(directory)
    return guard.around(find_app(config.app, config.data, guard.privacy))


app = device_app(_of_node)
