"""Where tasks run: in this process, in a local process pool, on a dask cluster, or on Slurm through dask-jobqueue.

A task is a function of one small spec that reads its own input, writes its own output and returns a small record.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from ingest.errors import JobwattError

S = TypeVar("S")
R = TypeVar("R")

_ONE_THREAD = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1", "ARROW_IO_THREADS": "1"}
_PR_SET_PDEATHSIG = 1


class Runner(Protocol):
    """Runs one function over many specs."""

    workers: int

    def map(self, task: Callable[[S], R], specs: Sequence[S]) -> Iterator[R]:
        """Yield the results as they come, in no order."""
        ...

    def close(self) -> None:
        """Let go of processes and connections."""
        ...


class _Closing:
    def close(self) -> None:
        """Let go of processes and connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SerialRunner(_Closing):
    """Runs tasks in this process, one after another."""

    workers = 1

    def map(self, task: Callable[[S], R], specs: Sequence[S]) -> Iterator[R]:
        """Yield the results in order."""
        for spec in specs:
            yield task(spec)


class PoolRunner(_Closing):
    """Runs tasks in local processes, which start when they are needed and die with this one."""

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}; give 1 or more")
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, task: Callable[[S], R], specs: Sequence[S]) -> Iterator[R]:
        """Yield the results as they come."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            with _environment(_ONE_THREAD):
                self._pool = ProcessPoolExecutor(
                    self.workers, context, initializer=_start_worker, initargs=(os.getpid(),)
                )
                yield from self._run(self._pool, task, specs)
        else:
            yield from self._run(self._pool, task, specs)

    def _run(self, pool: ProcessPoolExecutor, task: Callable[[S], R], specs: Sequence[S]) -> Iterator[R]:
        futures = [pool.submit(task, spec) for spec in specs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise JobwattError(
                "a worker process was killed (out of memory?); nothing was committed, try fewer --workers"
            ) from error
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


class DaskRunner(_Closing):
    """Runs tasks on a running dask cluster, whose workers see the same files under the same paths."""

    def __init__(self, address: str) -> None:
        from distributed import Client

        try:
            self._client: Any = Client(address, timeout=20, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise JobwattError(
                f"no dask scheduler answers at {address} ({error}); start one, or leave --scheduler out"
            ) from error
        self.workers = max(len(self._client.scheduler_info(n_workers=-1)["workers"]), 1)

    def map(self, task: Callable[[S], R], specs: Sequence[S]) -> Iterator[R]:
        """Yield the results as they come."""
        from distributed import as_completed as completed

        futures = self._client.map(task, list(specs), pure=False)
        try:
            for future in completed(futures):
                yield future.result()
        finally:
            self._client.cancel(futures)

    def close(self) -> None:
        """Close the connection; the cluster stays."""
        self._client.close()


class SlurmRunner(DaskRunner):
    """Runs tasks on dask workers that are Slurm jobs, through dask-jobqueue."""

    def __init__(self, workers: int, **options: Any) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}; give 1 or more")
        self._cluster = make_slurm_cluster(**options)
        self._cluster.scale(jobs=workers)
        super().__init__(self._cluster.scheduler_address)
        self.workers = workers

    def close(self) -> None:
        """Close the connection and end the Slurm jobs."""
        super().close()
        self._cluster.close()


def make_slurm_cluster(**options: Any) -> Any:
    """Return a dask-jobqueue SLURMCluster: one single-threaded process a job; ``options`` override (queue, memory, …).

    Site settings come from dask's own configuration (``jobqueue.slurm``).
    """
    from dask_jobqueue import SLURMCluster

    exports = [f"export {name}={value}" for name, value in _ONE_THREAD.items()]
    defaults: dict[str, Any] = {
        "cores": 1,
        "processes": 1,
        "memory": "1GB",
        "python": sys.executable,
        "job_script_prologue": exports,
        "worker_extra_args": ["--no-dashboard"],
        "scheduler_options": {"dashboard": False},
    }
    return SLURMCluster(**{**defaults, **options})


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(parent: int) -> None:
    """Tie this worker's life to its parent's, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
