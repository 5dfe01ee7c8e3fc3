"""Kernels compiled before the first window comes: once, in one process, and with a word about it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

from features.kernel_cache import compiling, is_compiled, note_compiled
from features.sets import FeatureSet, WindowShape, find_set
from ingest.errors import JobwattError

_WINDOWS, _CHANNELS, _SAMPLES = 2, 7, 64
"""Windows enough, and long enough, for every kernel to be called with arrays like those that come from a lake."""


def compile_kernels(made: FeatureSet, say: Callable[[str], None], *, here: bool) -> None:
    """Compile what a set needs and is not compiled yet, and call ``say`` with one line before that.

    Nothing happens where all is there, or the set has no kernels. Where another process compiles them, this one waits
    and finds them on disk; one that died leaves no lock behind.

    Parameters
    ----------
    here : compile in this process, which needs the kernels itself; else in one of its own, whose memory is given back
        and whose code others find on disk

    Raises
    ------
    JobwattError
        If the compiling process dies.
    """
    if not made.compiled or is_compiled(made.name):
        return
    waits = "another process compiles the kernels of the feature sets: up to a minute, once on this machine"
    with compiling(lambda: say(waits)):
        if not is_compiled(made.name):
            _compile_once(made, say, here=here)


def _compile_once(made: FeatureSet, say: Callable[[str], None], *, here: bool) -> None:
    if here:
        _compile(made, say)
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_compile_apart, args=(made.name, theirs), daemon=True)
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
            f"jobwatt features extract --set {made.name} --workers 1"
        )


def _compile_apart(set_name: str, said: Connection) -> None:
    _compile(find_set(set_name), said.send)
    said.close()


def _compile(made: FeatureSet, say: Callable[[str], None]) -> None:
    from features.kernel import compilation_told

    with compilation_told(say):
        call_kernels(made)
    note_compiled(made.name)


def call_kernels(made: FeatureSet) -> None:
    """Describe a few windows, so that every kernel of a set is in this process."""
    values = np.random.default_rng(0).normal(size=(_WINDOWS, _CHANNELS, _SAMPLES)).astype(np.float32)
    channels = tuple(f"channel_{number}" for number in range(_CHANNELS))
    made.features(values, WindowShape(channels, _SAMPLES, 9.0))
