"""What a server says it will release of a round's answers, told to the devices that answer.

A device with a privacy budget must know what its answer costs before it gives it. The server's
request therefore carries the event of this round as one text in its config. What the device can
check itself, it checks (the clipping of its own update, noise that it adds itself); that the
server adds the noise it claims is what `CentralDP` asks one to trust.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from wildflower.strategies.dp import events
from wildflower.strategies.dp.events import EVERYONE, Event, Tree
from wildflower.strategies.errors import StoredStateError

KEY: Final = "dp-event"
MAX_CLAIM: Final = 2000  # characters; an event has about 200


def to_config(event: Event) -> dict[str, str]:
    """Return what to put into the config of a round's request."""
    return {KEY: json.dumps(events.to_fields(event), sort_keys=True)}


def from_config(config: Mapping[str, object]) -> Event | None:
    """Return the event that a request claims, None if it claims none.

    `from_config(to_config(event)) == event`.

    Raises:
        StoredStateError: What is claimed is no event.
    """
    text = config.get(KEY)
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > MAX_CLAIM:
        raise StoredStateError(f"{KEY} is no text of at most {MAX_CLAIM} characters")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoredStateError(f"{KEY} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise StoredStateError(f"{KEY} is no object, found {type(fields).__name__}")
    return events.from_fields(fields)


def of_one_answer(event: Event) -> Event:
    """Return what one answer costs the device that gave it.

    Nothing is gained by sampling: the device knows, and counts, the very rounds it was drawn for.
    """
    if isinstance(event, Tree):
        return replace(event, rounds=1)
    return replace(event, rounds=1, sampling=EVERYONE)
