"""Summaries leave the spool when the server has them, and not before."""

from pathlib import Path

import pytest
from tests.client_fakes import MemoryChannel

from wildflower.client.errors import ChannelError
from wildflower.client.spool import Spool
from wildflower.client.upload import BATCH, upload_pending


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def test_everything_that_waits_is_delivered_in_order(spool: Spool) -> None:
    channel = MemoryChannel()
    sequences = [spool.append(b"%d" % number) for number in range(2 * BATCH + 1)]
    assert upload_pending(spool, channel) == 2 * BATCH + 1
    assert channel.summaries == [(n, b"%d" % i) for i, n in enumerate(sequences)]
    assert spool.pending(10) == []


def test_without_summaries_nothing_is_sent(spool: Spool) -> None:
    channel = MemoryChannel()
    channel.is_down = True
    assert upload_pending(spool, channel) == 0


def test_what_was_not_acknowledged_stays(spool: Spool) -> None:
    channel = MemoryChannel()
    first = spool.append(b"one")
    spool.append(b"two")
    channel.takes = first
    assert upload_pending(spool, channel) == 1
    assert [payload for _, payload in spool.pending(10)] == [b"two"]


def test_a_server_that_acknowledges_nothing_is_not_asked_for_ever(spool: Spool) -> None:
    channel = MemoryChannel()
    channel.takes = 0
    spool.append(b"one")
    assert upload_pending(spool, channel) == 0
    assert len(spool.pending(10)) == 1


def test_a_server_that_is_away_loses_nothing(spool: Spool) -> None:
    channel = MemoryChannel()
    spool.append(b"one")
    channel.is_down = True
    with pytest.raises(ChannelError):
        upload_pending(spool, channel)
    channel.is_down = False
    assert upload_pending(spool, channel) == 1
