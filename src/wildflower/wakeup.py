"""How a process that runs until it is told to end waits for that, without a race.

with woken_by_signals() as wakeup:        # a main thread that does nothing but wait
wakeup.sleep()

with stopped_by_signals() as stopping:    # code that asks an event
serve(stopping)
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Final

ENDING: Final = (signal.SIGTERM, signal.SIGINT)
WAKING: Final = frozenset({b"x", *(bytes([number]) for number in ENDING)})


class Wakeup:
    """Lets a thread sleep until a signal or another thread wakes it.

    A pipe, because a handler may interrupt the main thread anywhere: taking a lock in it, as
    `Event.set` does, could wait for itself. Python writes a signal's number into it as the signal
    arrives; a handler alone would run too late for a thread that is just about to sleep.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def watch(self) -> int:
        """Have signals written into the pipe; return where they were written before."""
        return signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def wake(self, *_: object) -> None:
        """End the sleep, or the next one."""
        with contextlib.suppress(OSError):  # closed: nobody sleeps any more
            os.write(self._write, b"x")

    def sleep(self) -> None:
        """Wait to be woken."""
        while os.read(self._read, 1) not in WAKING:
            pass  # a signal that is none of ours

    def close(self) -> None:
        """Give the pipe back; who wakes from now on wakes nobody."""
        ends, self._read, self._write = (self._read, self._write), -1, -1
        for end in ends:
            os.close(end)


@contextlib.contextmanager
def woken_by_signals() -> Iterator[Wakeup]:
    """Turn SIGTERM and SIGINT into a wake-up for the length of the block."""
    wakeup = Wakeup()
    before = {number: signal.signal(number, wakeup.wake) for number in ENDING}
    watched = wakeup.watch()
    try:
        yield wakeup
    finally:
        signal.set_wakeup_fd(watched)
        for number, handler in before.items():
            signal.signal(number, handler)
        wakeup.close()


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set for the length of the block.

    A thread of its own sets it: whoever waits for the event holds its lock at times, and a handler
    would run in that very thread.
    """
    stopping = threading.Event()
    with woken_by_signals() as wakeup:

        def pass_on() -> None:
            wakeup.sleep()
            stopping.set()

        watcher = threading.Thread(target=pass_on, name="signals", daemon=True)
        watcher.start()
        try:
            yield stopping
        finally:
            wakeup.wake()
            watcher.join()
