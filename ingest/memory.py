"""What a process gives back before and between tasks: heap that lies free, and code that ran once."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from functools import cache
from pathlib import Path
from typing import Final

_MADV_DONTNEED: Final = 4
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (r-xp) \S+ \S+ \d+ +(/\S+\.so\S*)$")


def give_back_heap() -> None:
    """Let go of heap that lies free; little time, so that a long task can do it between two batches."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def give_back_memory() -> None:
    """Let go of free heap, and of libraries' code pages; those that are needed again come back from the page cache.

    Importing polars and pyarrow alone runs through some 100 MiB of code that no later task needs.
    """
    give_back_heap()
    with contextlib.suppress(OSError, AttributeError):  # not glibc, not Linux
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, size in _code():
            libc.madvise(start, size, _MADV_DONTNEED)


def settle() -> None:
    """Keep what was imported so far out of the garbage collector's way, which need not look at it again and again.

    What imports left behind is given back (`give_back_memory`).
    """
    gc.collect()
    gc.freeze()
    give_back_memory()


@cache
def _code() -> tuple[tuple[int, int], ...]:
    """Return (address, bytes) of each library's code that is as in its file: nothing is lost if it is read again."""
    found: list[tuple[int, int]] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := _MAPPING.match(line):
            start, end = int(match[1], 16), int(match[2], 16)
            found.append((start, end - start))
            is_code = True
        elif not line[:1].isupper():
            is_code = False
        elif is_code and line.startswith("Anonymous:") and line.split()[1] != "0":
            found.pop()  # it was changed after it was loaded
    return tuple(found)
