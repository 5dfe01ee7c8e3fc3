"""A lake's windows described, one task and one part a partition; what is committed is not made again.

A partition of gpu_samples is one of its parts, or several small ones, with the series that begin there. Which series
are done stands in the lake's table ``feature_series``, so a run that was killed goes on after its last commit, one that
is repeated has nothing to do, and after an ingest only what is new or changed is made.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from features.extraction import FeatureTask, TaskDone, extract_part
from features.kernel_cache import is_compiled
from features.planning import Summary, plan, split_by_part, summarise
from features.variant import Variant
from features.warming import compile_kernels
from ingest.errors import LakeBusyError, LakeError
from ingest.feature_commit import FeatureResult, commit_features
from ingest.head import Head, read_head
from ingest.lake_lock import locked
from ingest.runner import PoolRunner, Runner, SerialRunner

COMMIT_EVERY_S: Final = 2.0
"""Parts that are ready wait so long for others, and are committed together."""

LAST_BUSY_S: Final = 600.0
"""So long the last commit waits for whoever writes the lake; those before it are put off instead."""

PASSES: Final = 3
"""So often a lake that somebody else is writing is planned anew for what changed meanwhile."""

STAGING: Final = "_extraction"
"""The folder below the lake's root in which parts are written; one extraction at a time."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an extraction is; ``phase`` is planning or extracting."""

    phase: str
    windows_done: int = 0
    windows_total: int = 0


@dataclass(frozen=True, slots=True)
class ExtractReport(Summary):
    """What there is of the variant in the lake now, and what this extraction did.

    ``rows`` is what it added, ``series_done`` the series it worked on, ``series_changed`` those that somebody changed
    meanwhile, which are to be extracted again.
    """

    rows: int
    series_done: int
    series_changed: int
    seconds: float

    @property
    def is_repeated(self) -> bool:
        """Whether everything was there already."""
        return self.series_done == 0


def extract(
    lake: Path,
    variant: Variant,
    *,
    runner: Runner,
    cluster: str | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    commit_every_s: float = COMMIT_EVERY_S,
) -> ExtractReport:
    """Describe the windows of every series that the lake's ``features`` have not got yet, and return what there is.

    Parameters
    ----------
    cluster : only the jobs of this one
    progress : called with how far it is
    say : called with a line, where kernels have to be compiled first, or somebody else writes the lake for long

    Raises
    ------
    LakeError
        If there is no lake, it has no GPU samples (of that cluster), or another extraction is at work in it; or, when
        all others are done, if a part of it is damaged. What was committed before stays.
    """
    began = time.monotonic()
    root = lake.resolve()
    head = read_head(root)
    clusters = _clusters(lake, head, cluster)
    with _staging(root) as folder:
        run = _Run(root, variant, runner, folder, progress=progress, say=say, commit_every_s=commit_every_s)
        for name in clusters:
            run.extract(name)
    if run.failed:
        raise LakeError(_damage(run.failed))
    return ExtractReport(
        **asdict(summarise(lake, variant, clusters)),
        rows=run.rows,
        series_done=run.series,
        series_changed=run.changed,
        seconds=round(time.monotonic() - began, 3),
    )


def _damage(failed: Sequence[tuple[FeatureTask, str]]) -> str:
    """Return the first error, and how much it and its like left out."""
    series = sum(task.series for task, _ in failed)
    return f"{failed[0][1]}; {series} series in damaged parts have no features, those of all others are in the lake"


def _clusters(lake: Path, head: Head, cluster: str | None) -> list[str]:
    found = sorted({part.cluster for part in head.parts if part.table == "gpu_samples"})
    if not found:
        raise LakeError(
            f"{lake} has no GPU samples, which features are made of; take some in: "
            f"jobwatt lake ingest PATH --lake {lake}"
        )
    if cluster is not None and cluster not in found:
        raise LakeError(f"{lake} has no GPU samples of a cluster {cluster!r}; it has those of {', '.join(found)}")
    return found if cluster is None else [cluster]


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """Give an empty folder for this run, the only one in this lake; what killed runs left is thrown away."""
    above = root / STAGING
    with locked(above / "LOCK", root) as lock:
        for left in above.glob("run-*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = above / f"run-{os.getpid()}"
        folder.mkdir()
        try:
            yield folder
        finally:
            lock.truncate(0)
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                (above / "LOCK").unlink()
                above.rmdir()


def _extract_compiled(task: FeatureTask) -> TaskDone:
    """Extract a part where the kernels are, or else become, compiled: a worker may be on another machine."""
    compile_kernels(task.variant.set, lambda _: None, here=True)
    return extract_part(task)


class _Run:
    """One extraction."""

    def __init__(
        self,
        root: Path,
        variant: Variant,
        runner: Runner,
        folder: Path,
        *,
        progress: Callable[[Progress], None],
        say: Callable[[str], None],
        commit_every_s: float,
    ) -> None:
        self._root, self._variant, self._runner, self._folder = root, variant, runner, folder
        self._progress, self._say = progress, say
        self._is_ready = not variant.set.compiled
        self._commit_every_s = commit_every_s
        self._done = self._total = 0
        self._ready: list[FeatureResult] = []
        self.failed: list[tuple[FeatureTask, str]] = []
        self.rows = self.series = self.changed = 0

    def extract(self, cluster: str) -> None:
        """Extract what one cluster lacks, again for what changes meanwhile; ``failed`` are tasks that met damage."""
        changed = 0
        failed: list[tuple[FeatureTask, str]] = []
        for number in range(PASSES):
            self._progress(Progress("planning"))
            folder = self._folder / f"{cluster}-{number}"
            tasks = plan(self._root, folder, self._variant, cluster, self._runner.workers)
            if not tasks:
                changed, failed = 0, []
                break
            self._compile()
            changed, failed = self._work_apart(tasks)
            if not changed:
                break
        self.changed += changed
        self.failed += failed

    def _work_apart(self, tasks: Sequence[FeatureTask]) -> tuple[int, list[tuple[FeatureTask, str]]]:
        """Run tasks, those that failed and have several parts once more, part by part."""
        changed, failed = self._work(tasks)
        apart = {task.name: split_by_part(task) for task, _ in failed}
        if not any(apart.values()):
            return changed, failed
        more, again = self._work([task for split in apart.values() for task in split])
        return changed + more, [(task, error) for task, error in failed if not apart[task.name]] + again

    def _compile(self) -> None:
        """Have the kernels compiled before the first task: here or beside this process, else where the workers are."""
        if self._is_ready:
            return
        self._is_ready = True
        made, runner = self._variant.set, self._runner
        if isinstance(runner, SerialRunner | PoolRunner):
            compile_kernels(made, self._say, here=isinstance(runner, SerialRunner))
        elif not all(list(runner.map(is_compiled, [made.name] * runner.workers))):
            self._say(f"the workers compile the kernels of {made.name}: up to a minute, once on each machine")

    def _work(self, tasks: Sequence[FeatureTask]) -> tuple[int, list[tuple[FeatureTask, str]]]:
        """Run tasks and commit what they wrote; return how many series are to be done again, and what failed."""
        self._total += sum(task.windows for task in tasks)
        named = {task.name: task for task in tasks}
        changed = 0
        failed: list[tuple[FeatureTask, str]] = []
        committed_s = time.monotonic()
        self._tell()
        try:
            for done in self._runner.map(_extract_compiled, tasks):
                self._done += done.windows
                self._tell()
                if done.result is not None:
                    self._ready.append(done.result)
                elif done.error:
                    failed.append((named[done.name], done.error))
                else:
                    changed += named[done.name].series
                if self._ready and time.monotonic() - committed_s >= self._commit_every_s:
                    with contextlib.suppress(LakeBusyError):  # it waits; that is not worth stopping the others for
                        changed += self._commit(busy_s=0.0)
                    committed_s = time.monotonic()
        except BaseException:  # Ctrl-C, or a worker that died: what is ready is not to be made again
            with contextlib.suppress(LakeError, OSError):
                self._commit(busy_s=0.0)
            raise
        return changed + self._commit_last(), failed

    def _tell(self) -> None:
        self._progress(Progress("extracting", self._done, self._total))

    def _commit_last(self) -> int:
        """Take the rest of the parts into the lake, waiting for whoever writes it."""
        try:
            return self._commit(busy_s=1.0)
        except LakeBusyError as error:
            self._say(f"{error} (what is finished waits here, for up to {LAST_BUSY_S / 60:g} minutes)")
        return self._commit(busy_s=LAST_BUSY_S)

    def _commit(self, *, busy_s: float) -> int:
        """Take the parts that are ready into the lake; return how many series changed since their task was planned."""
        if not self._ready:
            return 0
        taken = commit_features(self._root, self._ready, busy_s=busy_s)
        self._ready = []
        self.rows += taken.windows
        self.series += taken.series
        return taken.changed
