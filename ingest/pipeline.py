"""One ingest from end to end: lock, plan, scan, commit. Light: the work with frames is in the tasks."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

from ingest import tasks
from ingest.checksum import join_blocks
from ingest.cluster_name import check_cluster_name
from ingest.errors import JobwattError, LakeError, SourceError
from ingest.head import NOW, STAGING, Head, find_parts, writing
from ingest.quality import is_defect
from ingest.records import (
    UNTOLD,
    CommitResult,
    CommitSpec,
    FileRecord,
    Held,
    IngestPlan,
    PlanSpec,
    RewriteResult,
    RewriteSpec,
    ScanFile,
    ScanResult,
    ScanSpec,
    SmiOptions,
    as_known,
)
from ingest.runner import PoolRunner, Runner, usable_cores
from ingest.shares import find_line_shifts, join_shares
from ingest.sources.archive import DEFAULT_MAX_MEMBER_BYTES
from ingest.sources.remote import is_url
from ingest.spool_lock import taking_once

S = TypeVar("S")
R = TypeVar("R")
NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one phase of an ingest is, in bytes of its input files as they are stored.

    ``phase`` is planning (the archive is listed; a compressed tar is inflated for that), verifying (large files that
    the lake has are hashed), reading, joining (parts are written anew), or committing. Planning and committing have no
    bytes.
    """

    phase: str
    bytes_done: int = 0
    bytes_total: int = 0
    files_done: int = 0


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did. Per file and in all: rows_in = rows_out + rows_quarantined + rows_merged + rows_unchanged.

    ``files_replaced`` are those that the lake had in another state (or whose series it had joined with one of those),
    and ``rows_replaced`` what it had taken from them, which goes. ``tables`` has the rows of each table of the cluster
    after the run; ``reasons`` the codes that this run counted.
    """

    source: str
    lake: str
    cluster: str
    generation: int
    files: int
    files_unchanged: int
    files_refused: int
    files_replaced: int
    rows_in: int
    rows_out: int
    rows_quarantined: int
    rows_merged: int
    rows_unchanged: int
    rows_replaced: int
    tables: dict[str, int]
    reasons: dict[str, int]
    unknown_columns: dict[str, list[str]]
    ignored_files: list[str]
    bytes_in: int
    seconds: float
    records: tuple[FileRecord, ...] = field(default=(), repr=False)

    @property
    def partial(self) -> bool:
        """Whether something could not be taken, or was bad (exit code 3)."""
        return self.rows_quarantined > 0 or self.files_refused > 0 or any(is_defect(reason) for reason in self.reasons)


def ingest(
    source: str,
    lake: Path,
    *,
    cluster: str | None = None,
    runner: Runner | None = None,
    force: bool = False,
    anonymous: bool = False,
    max_member_bytes: int = DEFAULT_MAX_MEMBER_BYTES,
    smi: SmiOptions = UNTOLD,
    progress: Callable[[Progress], None] | None = None,
    forget: Collection[str] = (),
    holds_spool: bool = False,
) -> IngestReport:
    """Take an archive into a lake and return what became of it.

    Parameters
    ----------
    source : a folder, a file, a .tar, .tar.gz, .tar.zst, or a URL that fsspec knows
    cluster : name under which the rows stand; by default the layout's (supercloud, supercloud-hpca22, recording)
    runner : where the tasks run; a pool of as many processes as there are cores where None
    force : take files that became shorter
    smi : what the output of nvidia-smi does not say of itself
    anonymous : access S3 without credentials
    forget : names of segments that are gone from a spool; where something else changes, they are forgotten too
    holds_spool : the caller has the right to take the spool already (`ingest.spool_lock`)

    Raises
    ------
    ValueError
        If ``cluster`` is no name for one.
    SourceError, LakeError, SpoolBusyError, JobwattError
        With nothing committed.
    """
    if cluster is not None:
        check_cluster_name(cluster)
    began = time.monotonic()
    own = runner is None
    active = runner if runner is not None else PoolRunner(usable_cores())
    where = source if is_url(source) else str(Path(source).resolve())
    if not is_url(source) and not Path(source).exists():
        raise SourceError(f"{source}: no such file or folder; give a folder, a .tar, .tar.gz, .tar.zst or a URL")
    root = lake.resolve()
    try:
        with taking_once(where, lake, is_held=holds_spool), writing(root) as head:
            run = _Run(root, head, active, progress)
            try:
                result = run.ingest(
                    where,
                    cluster,
                    force=force,
                    anonymous=anonymous,
                    max_member_bytes=max_member_bytes,
                    smi=smi,
                    forget=forget,
                )
            finally:
                run.clean()
    except OSError as error:
        if error.errno in NO_SPACE:
            raise LakeError(
                f"no space left for {lake} ({error.strerror}); nothing was committed, make room and repeat",
                reason="disk_full",
            ) from error
        raise JobwattError(f"{error.filename or lake}: {error.strerror or error}; nothing was committed") from error
    finally:
        if own:
            active.close()
    return _report(source, str(lake), result, run, time.monotonic() - began)


class _Run:
    """One ingest under the lake's lock."""

    def __init__(self, root: Path, head: Head, runner: Runner, progress: Callable[[Progress], None] | None) -> None:
        self._root = root
        self._head = head
        self._runner = runner
        self._progress = progress
        self._folder = root / STAGING / f"run-{head.generation + 1:06d}-{os.getpid()}"
        self._done_bytes = self._total_bytes = self._done_files = 0
        self.plan: IngestPlan | None = None
        self.unknown_columns: dict[str, list[str]] = {}
        self._specs: dict[str, ScanSpec] = {}

    def ingest(
        self,
        source: str,
        cluster: str | None,
        *,
        force: bool,
        anonymous: bool,
        max_member_bytes: int,
        smi: SmiOptions,
        forget: Collection[str] = (),
    ) -> CommitResult:
        """Plan, scan and commit."""
        self._clean_others()
        if self._head.version != NOW:
            self._head = self._one(partial(tasks.migrate, str(self._root)), self._head)
            self._folder = self._folder.with_name(f"run-{self._head.generation + 1:06d}-{os.getpid()}")
        self._folder.mkdir(parents=True, exist_ok=True)
        staging, lake = str(self._folder), str(self._root)
        spec = PlanSpec(
            source, lake, staging, self._runner.workers, self._head, cluster, anonymous, force, max_member_bytes, smi
        )
        if isinstance(self._runner, PoolRunner):
            self._runner.warm(tasks.warm)
        self._tell("planning")
        self.plan = plan = self._one(tasks.plan, spec)
        results, records = self._scan(plan)
        commit = CommitSpec(lake, staging, plan.cluster, self._head, tuple(results), records)
        name = PurePosixPath(source).name
        commit = replace(commit, line_shift=find_line_shifts(results, plan), source_name=name, force=force)
        commit = replace(commit, tres_names=plan.template.tres_names, forget=frozenset(forget) - plan.files.keys())
        while True:
            self._tell("committing")
            result = self._one(tasks.commit, commit)
            if result.held:
                commit = self._leave_out(plan, commit, result.held)
            elif result.rescan:
                commit = self._rescan(plan, commit, result.rescan)
            elif result.rewrites:
                commit = replace(commit, rewritten=self._rewrite(result.rewrites))
            else:
                return result

    def _one(self, task: Callable[[S], R], spec: S) -> R:
        """Run one task where it costs this process no memory, if there is such a place on this machine."""
        if isinstance(self._runner, PoolRunner):
            return next(iter(self._runner.map(task, [spec])))
        return task(spec)

    def _scan(self, plan: IngestPlan) -> tuple[list[ScanResult], tuple[FileRecord, ...]]:
        specs = list(plan.specs)
        records = list(plan.records)
        if plan.verify:
            changed, settled = self._verify(plan.verify, plan.template.force)
            specs += changed
            records += settled
        results, scanned = join_shares([*plan.found, *self._map_scan(specs)], specs)
        results.sort(key=lambda r: r.part)
        return results, (*records, *scanned)

    def _map_scan(self, specs: Sequence[ScanSpec]) -> Iterable[ScanResult]:
        self._specs.update({spec.part: spec for spec in specs})
        self._total_bytes += sum(file.stored_bytes for spec in specs for file in spec.files)
        self._tell_read()
        for result in self._runner.map(tasks.scan, specs):
            self._done_bytes += result.bytes_read
            self._done_files += len(result.files)
            for record in result.files:
                for column in record.unknown_columns:
                    names = self.unknown_columns.setdefault(column, [])
                    if len(names) < 5:
                        names.append(record.name)
            self._tell_read()
            yield result

    def _verify(self, specs: Sequence[ScanSpec], force: bool) -> tuple[list[ScanSpec], list[FileRecord]]:
        """Hash large files that the lake has; return the tasks of those that changed and the records of the others."""
        digests: dict[str, dict[int, list[str]]] = {}
        size = {(file.name, file.start): file.stored_bytes for spec in specs for file in spec.files}
        done, total = 0, sum(size.values())
        self._tell("verifying", done, total)
        for name, start, blocks in self._runner.map(tasks.verify, specs):
            digests.setdefault(name, {})[start] = blocks
            done += size[name, start]
            self._tell("verifying", done, total)
        changed: list[ScanSpec] = []
        settled: dict[str, FileRecord] = {}
        for spec in specs:
            file = spec.files[0]
            known = file.known
            if known is None:
                changed.append(spec)
                continue
            checksum = join_blocks([b for _, blocks in sorted(digests[file.name].items()) for b in blocks])
            known = file.find_same(file.member.size, checksum) or known
            shrunken = file.member.size < known.size and not force and not file.is_anonymous
            if checksum != known.checksum and not shrunken:
                changed.append(spec)
            elif file.name not in settled:
                why = {}
                if checksum != known.checksum:
                    why = {"reason": "shrunken", "detail": f"{file.member.size} bytes, {known.size} before"}
                settled[file.name] = as_known(known, file.kind, file.name, **why)
        return changed, list(settled.values())

    def _rewrite(self, specs: Sequence[RewriteSpec]) -> tuple[RewriteResult, ...]:
        """Write parts anew, in the order in which they were asked for."""
        done, total = 0, sum(spec.bytes for spec in specs)
        self._tell("joining", done, total)
        found: dict[str, RewriteResult] = {}
        for result in self._runner.map(tasks.rewrite, specs):
            found[result.part] = result
            done += result.bytes
            self._tell("joining", done, total)
        return tuple(found[spec.part] for spec in specs)

    def _rescan(self, plan: IngestPlan, commit: CommitSpec, names: Sequence[str]) -> CommitSpec:
        """Read files again that share a series with a changed one, and return the commit with them."""
        files = plan.find(commit.records, names)
        specs = [
            replace(
                plan.template,
                files=(replace(files[name], known=None, others=(), alias=name, start=0, stop=None),),
                part=f"rescan-{len(commit.results):05d}-{i:05d}",
                stream=files[name].member.location if files[name].member.offset == -1 else "",
            )
            for i, name in enumerate(names)
        ]
        extra = list(self._map_scan(specs))
        again = {r.name: r.read_again(files[r.name].name) for e in extra for r in e.files}
        records = tuple(again.pop(record.name, record) for record in commit.records)  # a copy of one is no second one
        return replace(commit, results=(*commit.results, *extra), records=records)

    def _leave_out(self, plan: IngestPlan, commit: CommitSpec, held: Sequence[Held]) -> CommitSpec:
        """Return the commit without some files that the lake has in an older state, which stays."""
        why = {one.scanned: one for one in held}
        kept = [r for r in commit.results if r.part not in self._specs or not why.keys() & self._specs[r.part].names]
        dropped = [self._specs[r.part] for r in commit.results if r not in kept]
        others = [replace(s, files=tuple(f for f in s.files if f.name not in why), part=f"{s.part}+") for s in dropped]
        results = [*kept, *self._map_scan([spec for spec in others if spec.files])]
        results.sort(key=lambda r: r.part)
        files = plan.files
        records = tuple(_as_held(r, files[r.origin], why[r.name]) if r.name in why else r for r in commit.records)
        return replace(commit, results=tuple(results), records=records)

    def _tell_read(self) -> None:
        self._tell("reading", self._done_bytes, max(self._total_bytes, self._done_bytes), self._done_files)

    def _tell(self, phase: str, *figures: int) -> None:
        if self._progress is not None:
            self._progress(Progress(phase, *figures))

    def _clean_others(self) -> None:
        """Remove what killed runs left: their staging, and files that no committed state lists."""
        shutil.rmtree(self._root / STAGING, ignore_errors=True)
        listed = {part.file for part in self._head.parts}
        for path in find_parts(self._root):
            if path.relative_to(self._root).as_posix() not in listed:
                path.unlink(missing_ok=True)
        indexes = {self._head.inputs, self._head.pieces}
        for path in (self._root / "_manifest").glob("*-*.parquet"):
            if path.name not in indexes:
                path.unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove this run's staging."""
        shutil.rmtree(self._folder, ignore_errors=True)
        parent = self._root / STAGING
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def _as_held(record: FileRecord, file: ScanFile, held: Held) -> FileRecord:
    """Return the record of a file that stays as the lake knows it."""
    known = next((known for known in file.candidates if known.name == held.known), None)
    if known is None:
        raise JobwattError(f"{file.name}: its old rows are not in the lake; please report this")
    why = {} if record.checksum == known.checksum else {"reason": held.reason, "detail": held.detail}
    return as_known(known, file.kind, file.name, **why)


def _report(source: str, lake: str, result: CommitResult, run: _Run, seconds: float) -> IngestReport:
    plan = run.plan
    if plan is None:
        raise JobwattError(f"{source}: nothing was planned")
    totals: Counter[str] = Counter()
    for record in result.records:
        for name in ("rows_in", "rows_out", "rows_quarantined", "rows_merged", "rows_unchanged"):
            totals[name] += getattr(record, name)
    reasons = dict(sorted(result.reasons.items()))
    return IngestReport(
        source=source,
        lake=lake,
        cluster=plan.cluster,
        generation=result.generation,
        files=len(result.records),
        files_unchanged=sum(r.status == "unchanged" for r in result.records),
        files_refused=sum(r.status == "refused" for r in result.records),
        files_replaced=sum(r.status == "replaced" for r in result.records),
        rows_in=totals["rows_in"],
        rows_out=totals["rows_out"],
        rows_quarantined=totals["rows_quarantined"],
        rows_merged=totals["rows_merged"],
        rows_unchanged=totals["rows_unchanged"],
        rows_replaced=result.rows_replaced,
        tables=dict(result.tables),
        reasons=reasons,
        unknown_columns=run.unknown_columns,
        ignored_files=list(plan.ignored),
        bytes_in=plan.total_bytes,
        seconds=round(seconds, 3),
        records=result.records,
    )
