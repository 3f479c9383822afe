"""Measuring as if nobody else used the machine: what neighbours do shall not be in a figure.

They stop what is measured in the middle, and leave it a cache that it has to fill again.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def at_real_time() -> Iterator[bool]:
    """Let this thread, and those that it starts, run whenever they can; yield whether they do.

    It needs a privilege (sched(7)); without it, what other processes do is part of the figures.
    """
    usual = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield os.sched_getscheduler(0) == os.SCHED_RR
    finally:
        os.sched_setscheduler(0, *usual)
