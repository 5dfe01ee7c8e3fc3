"""A progress bar of bytes, with rate and time left, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def byte_bar(label: str, wanted: bool | None = None) -> Iterator[Callable[[int, int], None] | None]:
    """Give what a long task calls with the bytes done and the bytes in all; None where no bar is wanted.

    Without a wish, there is a bar where standard error is a terminal.
    """
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=label, unit="B", unit_scale=True, file=sys.stderr, leave=False, dynamic_ncols=True) as bar:

        def tell(done_bytes: int, total_bytes: int) -> None:
            bar.total = total_bytes
            bar.update(done_bytes - bar.n)

        yield tell
        bar.refresh()
