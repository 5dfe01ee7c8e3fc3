"""Kernels compiled before the first window comes: once, in one process, and with a word about it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

from features.kernel_cache import is_compiled
from ingest.errors import JobwattError

_SAMPLES = 64
"""A window long enough for every kernel to be called."""


def compile_kernels(say: Callable[[str], None], *, here: bool) -> None:
    """Compile what is not compiled yet, and call ``say`` with one line before that; nothing where all is there.

    Parameters
    ----------
    here : compile in this process, which needs the kernels itself; else in one of its own, whose memory is given back
        and whose code others find on disk

    Raises
    ------
    JobwattError
        If the compiling process dies.
    """
    if is_compiled():
        return
    if here:
        _compile(say)
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_compile_apart, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            say(ours.recv())
    except EOFError:
        process.join()
    if process.exitcode:
        raise JobwattError(
            f"compiling the kernels ended with {process.exitcode} (out of memory?); try it alone: "
            "jobwatt features extract --set efficient --workers 1"
        )


def _compile_apart(said: Connection) -> None:
    _compile(said.send)
    said.close()


def _compile(say: Callable[[str], None]) -> None:
    from features.efficient import compilation_told, efficient

    with compilation_told(say):
        efficient(np.random.default_rng(0).normal(size=(1, 1, _SAMPLES)))
