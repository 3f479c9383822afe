"""Signals end a wait whenever they come, and whichever thread they come to."""

import os
import signal
import threading

import pytest

from wildflower.wakeup import ENDING, Wakeup, stopped_by_signals, woken_by_signals


def receive() -> None:
    """Be the thread that a signal is delivered to."""
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)


def test_a_wake_up_before_the_sleep_or_after_the_end_harms_nothing() -> None:
    wakeup = Wakeup()
    wakeup.wake()
    wakeup.sleep()
    wakeup.close()
    wakeup.wake()


def test_a_signal_that_another_thread_receives_ends_the_sleep_too() -> None:
    with woken_by_signals() as wakeup:
        thread = threading.Thread(target=receive)
        thread.start()
        wakeup.sleep()
        thread.join()


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_sets_the_event_while_the_main_thread_waits_for_it(number: int) -> None:
    with stopped_by_signals() as stopping:
        os.kill(os.getpid(), number)
        assert stopping.wait(20)


def test_a_signal_to_another_thread_sets_the_event() -> None:
    with stopped_by_signals() as stopping:
        thread = threading.Thread(target=receive)
        thread.start()
        assert stopping.wait(20)
        thread.join()


def test_handlers_and_threads_are_as_before_once_the_block_has_ended() -> None:
    before = [signal.getsignal(number) for number in ENDING], threading.active_count()
    with stopped_by_signals() as stopping:
        assert not stopping.is_set()
    assert stopping.is_set()  # whoever still asks is told to end
    assert ([signal.getsignal(number) for number in ENDING], threading.active_count()) == before
