"""A signal ends what runs, wherever it comes, and however many come."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from ingest.collectors.signals import ending_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_where_the_lock_is_held_that_the_end_needs_still_ends_it(number):
    lock, ended = threading.Lock(), threading.Event()

    def end() -> None:
        with lock:
            ended.set()

    with ending_on_signals(end):
        with lock:
            os.kill(os.getpid(), number)
            assert not ended.wait(0.2)
        assert ended.wait(5)


def test_many_signals_end_it_once():
    ends: list[int] = []
    with ending_on_signals(lambda: ends.append(1)):
        for _ in range(50):
            os.kill(os.getpid(), signal.SIGTERM)
    deadline = threading.Event()
    assert ends == [1] or (not deadline.wait(1) and ends == [1])


def test_the_handlers_from_before_are_back_after_it_and_nothing_waits_any_more():
    before, threads = signal.getsignal(signal.SIGTERM), set(threading.enumerate())
    with ending_on_signals(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)
        assert not thread.is_alive()
