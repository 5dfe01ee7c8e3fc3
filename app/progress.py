"""A progress bar of bytes, or of something else, with rate and time left, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class ByteBar(Protocol):
    """Is told how far a task is, and which of its phases it is in, if it has several."""

    def __call__(self, done_bytes: int, total_bytes: int, phase: str = "") -> None: ...


@contextmanager
def byte_bar(label: str, wanted: bool | None = None, *, unit: str = "B") -> Iterator[ByteBar | None]:
    """Give what a long task calls with the bytes done and the bytes in all; None where no bar is wanted.

    Without a wish, there is a bar where standard error is a terminal. The name of a phase stands before it.
    """
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=label, unit=unit, unit_scale=True, file=sys.stderr, leave=False, dynamic_ncols=True) as bar:
        shown = ""

        def tell(done_bytes: int, total_bytes: int, phase: str = "") -> None:
            nonlocal shown
            if phase != shown:
                bar.refresh()  # how the last phase ended
                shown = phase
                bar.reset(total_bytes or None)
                bar.set_description(f"{label}, {phase}")
            bar.total = total_bytes or None
            bar.update(done_bytes - bar.n)

        yield tell
        bar.refresh()
