"""SIGTERM and SIGINT as a request to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue


@contextmanager
def ending_on_signals(end: Callable[[], None]) -> Iterator[None]:
    """Have ``end`` called once, in a thread of its own, when SIGTERM or SIGINT comes, however many do.

    A handler interrupts the main thread wherever that is, also where it holds the lock of the very event that the
    handler would set, or sets it for an earlier signal: it would wait for itself for ever. So all that the handler does
    is to put into a queue, which may be done anywhere.
    """
    asked: SimpleQueue[bool] = SimpleQueue()

    def wait() -> None:
        if asked.get():
            end()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: asked.put(True)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        asked.put(False)
