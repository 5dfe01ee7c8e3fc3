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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from features.extraction import FeatureTask, TaskDone, extract_part
from features.kernel_cache import is_compiled
from features.planning import plan, summarise
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
class ExtractReport:
    """What an extraction did.

    ``windows``, ``series``, ``series_short`` (those without a window, for each ``reasons``), ``jobs`` and
    ``jobs_short`` (those of which no series gave a window) are of the whole variant as it is in the lake now;
    ``rows`` is what this run added, ``series_done`` the series it worked on, ``series_changed`` those that somebody
    changed meanwhile, which are to be extracted again.
    """

    lake: str
    variant: str
    generation: int
    clusters: tuple[str, ...]
    windows: int
    jobs: int
    jobs_short: int
    series: int
    series_short: int
    windows_refused: int
    reasons: dict[str, int]
    rows: int
    series_done: int
    series_changed: int
    features: int
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
        If there is no lake, it has no GPU samples (of that cluster), another extraction is at work in it, or a part of
        it is damaged. What was committed before stays.
    """
    began = time.monotonic()
    root = lake.resolve()
    head = read_head(root)
    clusters = _clusters(lake, head, cluster)
    with _staging(root) as folder:
        run = _Run(root, variant, runner, folder, progress=progress, say=say, commit_every_s=commit_every_s)
        for name in clusters:
            run.extract(name)
    summary = summarise(root, variant, clusters)
    return ExtractReport(
        lake=str(lake),
        variant=variant.name,
        generation=summary.generation,
        clusters=tuple(clusters),
        windows=summary.windows,
        jobs=summary.jobs,
        jobs_short=summary.jobs_short,
        series=summary.series,
        series_short=summary.series_short,
        windows_refused=summary.windows_refused,
        reasons=summary.reasons,
        rows=run.rows,
        series_done=run.series,
        series_changed=run.changed,
        features=summary.features,
        seconds=round(time.monotonic() - began, 3),
    )


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
        self.rows = self.series = self.changed = 0

    def extract(self, cluster: str) -> None:
        """Extract what one cluster lacks, again for what changes meanwhile."""
        changed = 0
        for number in range(PASSES):
            self._progress(Progress("planning"))
            folder = self._folder / f"{cluster}-{number}"
            tasks = plan(self._root, folder, self._variant, cluster, self._runner.workers)
            if not tasks:
                return
            self._compile()
            changed = self._work(tasks)
            if not changed:
                return
        self.changed += changed

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

    def _work(self, tasks: Sequence[FeatureTask]) -> int:
        """Run tasks and commit what they wrote; return how many series have to be done again."""
        self._total += sum(task.windows for task in tasks)
        series_of = {task.name: task.series for task in tasks}
        again = 0
        ready: list[FeatureResult] = []
        committed_s = time.monotonic()
        self._tell()
        for done in self._runner.map(_extract_compiled, tasks):
            self._done += done.windows
            self._tell()
            if done.result is None:
                again += series_of[done.name]
            else:
                ready.append(done.result)
            if ready and time.monotonic() - committed_s >= self._commit_every_s:
                with contextlib.suppress(LakeBusyError):  # what is ready waits; it is not worth stopping the others for
                    again += self._commit(ready, busy_s=0.0)
                    ready = []
                committed_s = time.monotonic()
        return again + (self._commit_last(ready) if ready else 0)

    def _tell(self) -> None:
        self._progress(Progress("extracting", self._done, self._total))

    def _commit_last(self, ready: Sequence[FeatureResult]) -> int:
        """Take the rest of the parts into the lake, waiting for whoever writes it."""
        try:
            return self._commit(ready, busy_s=1.0)
        except LakeBusyError as error:
            self._say(f"{error} (what is finished waits here, for up to {LAST_BUSY_S / 60:g} minutes)")
        return self._commit(ready, busy_s=LAST_BUSY_S)

    def _commit(self, ready: Sequence[FeatureResult], *, busy_s: float) -> int:
        """Take parts into the lake; return how many series changed since their task was planned."""
        taken = commit_features(self._root, ready, busy_s=busy_s)
        self.rows += taken.windows
        self.series += taken.series
        return taken.changed
