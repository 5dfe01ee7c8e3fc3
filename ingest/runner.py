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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from ingest.errors import JobwattError

S = TypeVar("S")
R = TypeVar("R")

CONNECT_TIMEOUT_S: Final = 10.0
"""A dask scheduler that has not answered after this time is taken to be none."""

_ONE_THREAD: Final = {
    "POLARS_MAX_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_THREAD_LIMIT": "1",
    "ARROW_IO_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # holds on to less than Arrow's own
}
_PR_SET_PDEATHSIG: Final = 1
_SBATCH_TIMEOUT_S: Final = 60.0


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
    """Runs tasks in local processes, which start when they are needed and die with the thread that started them.

    Where a task fails, or nobody waits for the rest any more (Ctrl-C), the workers are killed before the error goes on:
    whoever cleans up after it can be sure that nobody writes any more.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}; give 1 or more")
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, task: Callable[[S], R], specs: Sequence[S]) -> Iterator[R]:
        """Yield the results as they come."""
        futures: list[Future[R]] = []
        try:
            self._submit(task, specs, futures)
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            self.close()
            raise JobwattError(
                "a worker process was killed (out of memory?); run it again, with fewer --workers if memory is short"
            ) from error
        finally:
            if len(futures) < len(specs) or not all(future.done() for future in futures):
                self.close()

    def warm(self, task: Callable[[int], object]) -> None:
        """Start every worker on ``task``, which imports what later tasks need, and do not wait for it."""
        self._submit(task, list(range(self.workers)), [])

    def _submit(self, task: Callable[[S], R], specs: Sequence[S], futures: list[Future[R]]) -> None:
        """Add the future of each spec to ``futures``; processes start here, deaf to Ctrl-C from their first moment."""
        resource_tracker.ensure_running()  # it would unblock the signal if it started with the first worker
        with _environment(_ONE_THREAD), _sigint_blocked():
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(
                    self.workers, context, initializer=_start_worker, initargs=(os.getpid(),)
                )
            futures.extend(self._pool.submit(task, spec) for spec in specs)

    def close(self) -> None:
        """End the worker processes at once, whatever they are at; a later map starts new ones.

        To take down what they imported would take its time.
        """
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in list((pool._processes or {}).values()):  # Python 3.14 calls it kill_workers()
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)


class DaskRunner(_Closing):
    """Runs tasks on a running dask cluster, whose workers see the same files under the same paths.

    Raises
    ------
    JobwattError
        If no scheduler answers there within `CONNECT_TIMEOUT_S`.
    """

    def __init__(self, address: str) -> None:
        from distributed import Client

        self._address = address
        _ask_scheduler(address)  # a Client that finds nobody complains again when it is thrown away
        try:
            self._client: Any = Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise _no_scheduler(address, error) from error
        try:
            self._check_versions()
        except BaseException:
            self.close()
            raise
        self.workers = max(len(self._client.scheduler_info(n_workers=-1)["workers"]), 1)

    def _check_versions(self) -> None:
        """Make sure that scheduler and workers have this jobwatt: without it they would wait for ever, not fail."""

        def installed() -> str | None:  # local, so that it travels whole and needs no jobwatt to be read
            from importlib import metadata

            try:
                return metadata.version("jobwatt")
            except metadata.PackageNotFoundError:
                return None

        own = _own_version()
        there = {"the scheduler": self._client.run_on_scheduler(installed), **self._client.run(installed)}
        for place, found in there.items():
            if found != own:
                has = f"jobwatt {found}" if found else "no jobwatt"
                raise JobwattError(f"{place} of the dask cluster at {self._address} has {has}; install {own} there")

    def map(self, task: Callable[[S], R], specs: Sequence[S]) -> Iterator[R]:
        """Yield the results as they come."""
        from distributed import KilledWorker
        from distributed import as_completed as completed
        from distributed.comm import CommClosedError

        futures = self._client.map(task, list(specs), pure=False)
        try:
            for future in completed(futures, loop=self._client.loop):
                yield future.result()
        except KilledWorker as error:
            raise JobwattError(
                f"every dask worker that took one of the tasks died (out of memory?); give the workers of "
                f"{self._address} more memory, and run it again"
            ) from error
        except (CancelledError, CommClosedError) as error:
            raise JobwattError(
                f"the dask scheduler at {self._address} went away before all was done; start it and run it again"
            ) from error
        except ModuleNotFoundError as error:
            raise JobwattError(
                f"the workers of {self._address} have no module {error.name}; install this version of jobwatt there"
            ) from error
        finally:
            if self._client.status == "running":
                self._client.cancel(futures)

    def close(self) -> None:
        """Close the connection; the cluster stays."""
        self._client.close(timeout=CONNECT_TIMEOUT_S)


def _own_version() -> str:
    from importlib.metadata import version

    return version("jobwatt")


def _ask_scheduler(address: str) -> None:
    """Make sure that a dask scheduler answers at ``address``."""
    import asyncio

    try:
        with ThreadPoolExecutor(1) as aside:  # this thread may run an event loop of its own, as in a notebook
            aside.submit(asyncio.run, _identify(address)).result()
    except (OSError, ValueError) as error:
        raise _no_scheduler(address, error) from error


async def _identify(address: str) -> None:
    import asyncio

    from distributed.core import rpc
    from distributed.security import Security

    security = Security().get_connection_args("client")
    async with rpc(address, timeout=CONNECT_TIMEOUT_S, connection_args=security) as scheduler:
        await asyncio.wait_for(scheduler.identity(), CONNECT_TIMEOUT_S)


def _no_scheduler(address: str, error: Exception) -> JobwattError:
    reason = str(error) or "no answer"
    return JobwattError(f"no dask scheduler answers at {address} ({reason}); start one, or leave --scheduler out")


class SlurmRunner(DaskRunner):
    """Runs tasks on dask workers that are Slurm jobs, through dask-jobqueue.

    Parameters
    ----------
    workers : Slurm jobs
    options : as for `make_slurm_cluster`

    Raises
    ------
    JobwattError
        If there is no Slurm here, or it refuses such a job.
    """

    def __init__(self, workers: int, **options: Any) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}; give 1 or more")
        self._cluster = make_slurm_cluster(**options)
        try:
            _test_job(self._cluster.job_script())
            self._cluster.scale(jobs=workers)
            super().__init__(self._cluster.scheduler_address)
        except BaseException:
            self._cluster.close()
            raise
        self.workers = workers

    def close(self) -> None:
        """Close the connection and end the Slurm jobs."""
        super().close()
        self._cluster.close()


def make_slurm_cluster(interface: str | None = None, **options: Any) -> Any:
    """Return a dask-jobqueue SLURMCluster of single-threaded processes, one a job; no job is submitted yet.

    Parameters
    ----------
    interface : network interface (``ib0``) on which scheduler and workers talk; the site's, or any, where None
    options : of SLURMCluster (queue, memory, walltime, …); they go before the site's settings, which are dask's own
        configuration (``jobqueue.slurm``), and those go before ours

    Notes
    -----
    Status pages listen on 127.0.0.1 only; with ``interface="lo"`` so does everything else.
    """
    from dask_jobqueue import SLURMCluster
    from distributed.config import config

    site: Mapping[str, Any] = config.get("jobqueue", {}).get("slurm", {})
    cores = options.get("cores") or site.get("cores") or 1
    exports = [f"export {name}={value}" for name, value in _ONE_THREAD.items()]
    defaults: dict[str, Any] = {
        "interface": interface,
        "cores": cores,
        "processes": cores,
        "memory": site.get("memory") or f"{cores}GB",
        "python": site.get("python") or sys.executable,
        "job_script_prologue": [*(site.get("job-script-prologue") or []), *exports],
        "worker_extra_args": [*(site.get("worker-extra-args") or []), "--dashboard-address", "127.0.0.1:0"],
        "scheduler_options": {"dashboard_address": "127.0.0.1:0", **(site.get("scheduler-options") or {})},
    }
    return SLURMCluster(**{**defaults, **options})


def _test_job(script: str) -> None:
    """Ask Slurm whether it would take such a job: dask-jobqueue itself would wait for a refused one without an end."""
    import shutil
    import subprocess

    command = shutil.which("sbatch")
    if command is None:
        raise JobwattError("there is no sbatch on this machine; run it where Slurm is, or leave --slurm out")
    try:
        test = subprocess.run(
            [command, "--test-only"],
            input=script,
            text=True,
            capture_output=True,
            timeout=_SBATCH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise JobwattError(f"Slurm does not answer within {_SBATCH_TIMEOUT_S:g} s; try sinfo") from error
    if test.returncode != 0:
        said = (test.stderr or test.stdout).strip().splitlines() or [f"sbatch ended with {test.returncode}"]
        raise JobwattError(f"Slurm refuses a worker's job ({said[-1]}); set jobqueue.slurm in dask's configuration")


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
def _sigint_blocked() -> Iterator[None]:
    """Hold Ctrl-C back for a moment; processes that start meanwhile never get it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
