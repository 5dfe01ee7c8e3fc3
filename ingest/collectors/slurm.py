"""Slurm's accounting into a spool: one snapshot for each day on which jobs were submitted, kept current.

SPOOL/jobs/<cluster>-<day>.sacct.txt has all attempts of the jobs that were first submitted on that day (UTC). It is
rewritten whole, under another name first, when one of them changed; a row goes only when a newer one of the same
attempt comes. Jobs that had not ended when this collector was last seen are asked for by their number. A day that a
follower removed is not written again for the jobs that it had.
"""

from __future__ import annotations

import fcntl
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Final

from ingest.collectors.removed import read_removed
from ingest.collectors.sacct_command import Cells, Sacct
from ingest.collectors.snapshots import changing
from ingest.collectors.spool import on_disk, prepare, write_whole
from ingest.errors import JobwattError, SourceError
from ingest.sources.sacct_files import FORMAT

LOCK: Final = "LOCK-slurm"
SUFFIX: Final = ".sacct.txt"
JOBS_A_CALL: Final = 500
"""So many jobs are asked for by their number at a time."""

OVERLAP_S: Final = 3600.0
"""After a pause, jobs are asked for from so long before the last change on."""

_ENDED: Final = frozenset(
    (
        *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"),
        *("OUT_OF_MEMORY", "REVOKED"),
    )
)

Key = tuple[int, str]
"""Job id and submission: one attempt."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did: attempts that sacct told, those that were new or changed, the files written, doubts."""

    attempts: int
    changed: int
    files: tuple[str, ...]
    open_jobs: int
    doubts: tuple[str, ...]


class Snapshots:
    """The snapshots of one spool."""

    def __init__(self, spool: Path) -> None:
        self._spool, self._folder = spool, spool / "jobs"
        self._last: dict[tuple[str, Key], int] = {}
        self._open: dict[str, dict[int, str]] = {}
        self.newest_s: float | None = None
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            cluster, day = parse_name(path)
            if cluster:
                self._note_open(cluster, day, read_snapshot(path).values())
                self.newest_s = max(self.newest_s or 0.0, path.stat().st_mtime)  # a follower leaves the newest one

    @property
    def open_jobs(self) -> list[int]:
        """The jobs that have not ended, as far as is known."""
        return sorted(job for jobs in self._open.values() for job in jobs)

    def update(self, rows: Iterable[Cells]) -> tuple[int, tuple[str, ...]]:
        """Take attempts in; return how many were new or changed, and the files that were written."""
        by_file: dict[tuple[str, str], dict[Key, Cells]] = {}
        seen: dict[tuple[str, Key], int] = {}
        first = _first_days(rows)
        for row in rows:
            cluster, key = row.get("Cluster") or "slurm", _key(row)
            seen[cluster, key] = hash(tuple(row.items()))
            if self._last.get((cluster, key)) != seen[cluster, key]:
                day = self._open.get(cluster, {}).get(key[0]) or first[cluster, key[0]]
                by_file.setdefault((cluster, day), {})[key] = row
        changed, written = 0, []
        for (cluster, day), new in sorted(by_file.items()):
            path = self._folder / f"{_safe(cluster)}-{day}{SUFFIX}"
            with changing(self._spool):
                told = {key: _whole(row) for key, row in new.items()}
                old = read_snapshot(path) if path.exists() else {}
                new_here = told if old else self._without_removed(path, told)
                n = sum(old.get(key) != row for key, row in new_here.items())
                both = {**old, **new_here}
                if n:
                    _write(path, [both[key] for key in sorted(both)])
                    written.append(path.name)
                    changed += n
            self._note_open(cluster, day, both.values())
        self._last = seen
        return changed, tuple(written)

    def _without_removed(self, path: Path, rows: dict[Key, Cells]) -> dict[Key, Cells]:
        """Return the rows of a day that is not there, but for those that it had when a follower removed it."""
        until_s = read_removed(self._spool).days.get(f"{self._folder.name}/{path.name}")
        if until_s is None:
            return rows
        ended = {key for key, row in rows.items() if row["End"].isdigit() and 0 < int(row["End"]) < until_s}
        return {key: row for key, row in rows.items() if key not in ended}

    def forget(self, jobs: Iterable[int]) -> None:
        """No longer follow jobs that Slurm does not know any more."""
        for job in jobs:
            for known in self._open.values():
                known.pop(job, None)

    def _note_open(self, cluster: str, day: str, rows: Iterable[Cells]) -> None:
        known = self._open.setdefault(cluster, {})
        for job, has_ended in _ended(rows).items():
            if has_ended:
                known.pop(job, None)
            else:
                known[job] = day


def _ended(rows: Iterable[Cells]) -> dict[int, bool]:
    """Return of each job whether it has ended, by its last attempt."""
    last: dict[int, tuple[str, str]] = {}
    for row in rows:
        job, submit = _key(row)
        last[job] = max(last.get(job, ("", "")), (submit, row["State"]))
    return {job: state.partition(" ")[0] in _ENDED for job, (_, state) in last.items()}


def last_end_s(rows: Iterable[Cells]) -> float | None:
    """Return when the last of some attempts ended, in epoch seconds; None while a job goes on, or where none can tell.

    >>> row = {"JobIDRaw": "7", "Submit": "1", "State": "COMPLETED", "End": "9"}
    >>> last_end_s([row]), last_end_s([row, {**row, "Submit": "2", "State": "RUNNING", "End": "Unknown"}])
    (9.0, None)
    """
    attempts = list(rows)
    ends = [row["End"] for row in attempts]
    if not attempts or not all(_ended(attempts).values()) or not all(end.isdigit() for end in ends):
        return None
    return float(max(map(int, ends)))


def _key(row: Cells) -> Key:
    return int(row["JobIDRaw"].partition("+")[0]), row["Submit"]


def _first_days(rows: Iterable[Cells]) -> dict[tuple[str, int], str]:
    first: dict[tuple[str, int], int] = {}
    for row in rows:
        key = row.get("Cluster") or "slurm", _key(row)[0]
        submit = int(row["Submit"]) if row["Submit"].isdigit() else 0
        first[key] = min(first.get(key, submit), submit)
    return {key: f"{datetime.fromtimestamp(submit, UTC):%Y-%m-%d}" for key, submit in first.items()}


def _whole(row: Cells) -> Cells:
    """Return a row with all columns of `FORMAT`."""
    return {name: row.get(name, "") for name in FORMAT}


def _safe(cluster: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", cluster)


def parse_name(path: Path) -> tuple[str, str]:
    """Return cluster and day of a snapshot's name; ('', '') where it is none of ours."""
    match = re.match(rf"^(.+)-(\d{{4}}-\d\d-\d\d){re.escape(SUFFIX)}$", path.name)
    return (match[1], match[2]) if match else ("", "")


def read_snapshot(path: Path) -> dict[Key, Cells]:
    """Return the attempts of a snapshot."""
    lines = path.read_text("utf-8").split("\n")[:-1]
    names = lines[0].split("|") if lines else []
    try:
        rows = [dict(zip(names, line.split("|", len(names) - 1), strict=True)) for line in lines[1:]]
        return {_key(row): _whole(row) for row in rows}
    except (KeyError, ValueError) as error:
        raise SourceError(f"{path} is no snapshot of this collector ({error}); move it out of the way") from error


def _write(path: Path, rows: Iterable[Cells]) -> None:
    """Replace a snapshot: it is there as it was, or as it is to be, whatever happens in between."""
    lines = ["|".join(FORMAT), *("|".join(row[name] for name in FORMAT) for row in rows)]
    with on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "\n".join(lines) + "\n")


class SlurmCollector:
    """Rounds of asking and writing.

    Parameters
    ----------
    since_s : how far back the first round looks, and every round looks for what has changed
    """

    def __init__(self, spool: Path, sacct: Sacct, since_s: float) -> None:
        self._sacct = sacct
        self._since_s = since_s
        self._snapshots = Snapshots(spool)
        before = self._snapshots.newest_s
        self._resume_s = None if before is None else before - OVERLAP_S

    def collect(self, now_s: float) -> Round:
        """Ask once and bring the snapshots up to date.

        Raises
        ------
        SourceError
            If sacct gives no answer; what was gathered stays as it is.
        SpoolError
            If the disk is full or refuses; the same.
        """
        begin = min(now_s - self._since_s, self._resume_s or now_s)
        answer = self._sacct.ask(begin)
        rows, doubts = list(answer.rows), list(answer.doubts)
        told = {_key(row)[0] for row in rows}
        quiet = [job for job in self._snapshots.open_jobs if job not in told]
        for at in range(0, len(quiet), JOBS_A_CALL):
            asked = quiet[at : at + JOBS_A_CALL]
            more = self._sacct.ask(begin, asked)
            rows += more.rows
            doubts += [doubt for doubt in more.doubts if doubt not in doubts]
            if not more.doubts:
                self._snapshots.forget(set(asked) - {_key(row)[0] for row in more.rows})
        changed, files = self._snapshots.update(rows)
        self._resume_s = None
        return Round(len(rows), changed, files, len(self._snapshots.open_jobs), tuple(doubts))


@contextmanager
def holding(spool: Path) -> Iterator[None]:
    """Hold a spool's jobs for one collector, and make the spool if there is none.

    Raises
    ------
    JobwattError
        If another collector holds them, or the folder is something else than a spool.
    """
    with on_disk(spool):
        prepare(spool)
        held = (spool / LOCK).open("a")
    with held as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobwattError(
                f"{spool}: another collector writes its jobs; stop it, or give another spool", reason="spool_busy"
            ) from error
        yield


def run(
    spool: Path,
    *,
    since_s: float,
    every_s: float,
    once: bool,
    stop: Event,
    tell: Callable[[str], None],
    command: Sequence[str] = ("sacct",),
    timeout_s: float = 30.0,
) -> Round | None:
    """Collect once, or every so many seconds until ``stop`` is set; return the last round that succeeded.

    With ``once`` a fault is raised. Otherwise it is told once, and asked again at the next turn; turns keep to their
    schedule, and one that comes too late is left out.
    """
    with holding(spool):
        collector = SlurmCollector(spool, Sacct(command, timeout_s), since_s)
        last: Round | None = None
        said = ""
        due = time.monotonic()
        while True:
            try:
                last = collector.collect(time.time())
                what = "; ".join(last.doubts)
            except SourceError as error:
                if once:
                    raise
                what = str(error)
            if what != said:
                tell(what or "sacct answers well again")
                said = what
            if once:
                return last
            due += every_s * max(1, -(-(time.monotonic() - due) // every_s))
            if stop.wait(max(0.0, due - time.monotonic())):
                return last
