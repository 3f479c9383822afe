"""How monitoring summaries leave the device: from the spool to the server, acknowledged."""

import logging
from typing import Final

from wildflower.client.channel import Channel
from wildflower.client.spool import Spool

log = logging.getLogger(__name__)

BATCH: Final = 24  # summaries a message: a day's, one an hour; about 25 kB


def upload_pending(spool: Spool, channel: Channel) -> int:
    """Deliver what the spool holds; return how many summaries the server now has or refused.

    A summary leaves the spool only when the server has acknowledged it; what is sent twice is
    stored once.

    Raises:
        ChannelError: The server cannot be reached now; the rest stays in the spool.
    """
    delivered = 0
    while batch := spool.pending(BATCH):
        through = channel.upload(spool.stream, batch)
        taken = sum(sequence <= through for sequence, _ in batch)
        if not taken:
            break
        spool.ack(through)
        delivered += taken
    if delivered:
        log.info("summaries uploaded", extra={"count": delivered})
    return delivered
