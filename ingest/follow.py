"""A spool followed into a lake: round by round what is new is taken, and then removed from the spool.

Segments go at once, snapshots when they are older than what is kept (`ingest.old_snapshots`). A round is safe to be
killed at any moment: files are removed only after the commit that took them; their names are noted in the spool before
that (see `ingest.removal`), and forgotten by the lake with a later commit; until then it knows them, so that one that
was not removed yet is not taken twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Final

import polars as pl
import pyarrow as pa

from ingest.collectors.spool import (
    HEADERS,
    NO_ROOM,
    Lock,
    default_node,
    recover,
    refused_by_disk,
    row,
    write_whole,
)
from ingest.errors import JobwattError, SourceError, SpoolBusyError, SpoolError
from ingest.feature_commit import small_pairs
from ingest.head import HEAD, MANIFEST, read_head
from ingest.lag import Newest, newest_sample, snapshot_nodes
from ingest.maintenance import MERGED, SMALL_ROWS, maintain
from ingest.manifest import read_pieces_of
from ingest.old_snapshots import OldSnapshots, State
from ingest.pipeline import IngestReport, ingest
from ingest.removal import Removal
from ingest.retention import BelievedTime
from ingest.runner import Runner, SerialRunner
from ingest.sources.spool_files import SPOOL_CLUSTER, SPOOL_FILE, is_segment, node_of
from ingest.spool_lock import taking
from ingest.units import S_PER_MINUTE

IDLE_UPKEEP_S: Final = 60.0
"""Parts that cannot be merged, or not yet, are looked at no more often than this."""

BELIEVED: Final = ".retention.json"
"""In the spool: the time that retention believed last."""

IDLE_SAID_S: Final = 600.0
"""A follower that has nothing to do says so this often."""

SLEWED_S: Final = 10.0
"""A collector's clock may be this much ahead of the wall clock while it follows that slowly."""


@dataclass(frozen=True, slots=True)
class FollowPlan:
    """What is followed into which lake, how often, and what is kept.

    ``keep_s``: samples of GPUs and processes that are older go, and snapshots with them (None: all stay); whole days,
    so up to a day longer.
    ``compact_after``: so many small parts of a table are merged.
    """

    spool: Path
    lake: Path
    cluster: str = SPOOL_CLUSTER
    every_s: float = 10.0
    keep_s: float | None = None
    compact_after: int = 60


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did; ``lag_s`` is from the newest sample in the lake to now, None where there is none.

    Samples later than now, which a wrong clock made, are left out of it; ``ahead_s`` is how much later they are.
    ``refusal`` names the first file that was refused, with its reason code; ``doubt`` says why
    the clock is not believed; ``unnoted`` why the names of removed files could not be noted in the spool.
    """

    rows: int = 0
    segments: int = 0
    snapshots: int = 0
    lag_s: float | None = None
    ahead_s: float = 0.0
    parts_merged: int = 0
    rows_dropped: int = 0
    refused: int = 0
    refusal: str = ""
    quarantined: int = 0
    problem: str = ""
    doubt: str = ""
    unnoted: str = ""

    @property
    def did_something(self) -> bool:
        """Whether anything was taken, merged or dropped."""
        return any((self.segments, self.snapshots, self.quarantined, self.parts_merged, self.rows_dropped))

    @property
    def trouble(self) -> tuple[str, str, str, str, bool]:
        """What is wrong; it is said when it changes."""
        return self.problem, self.refusal, self.doubt, self.unnoted, self.ahead_s > 0

    def line(self) -> str:
        """Return what is said of it."""
        if self.problem:
            return f"follower: {self.problem}; trying again"
        said = [f"{self.segments} segments, {self.rows} rows"] if self.did_something else ["idle"]
        if self.snapshots:
            said.append(f"{self.snapshots} snapshots")
        if self.lag_s is not None:
            said.append(f"lag {self.lag_s:.1f} s")
        if self.ahead_s:
            said.append(f"samples up to {self.ahead_s:.0f} s later than now")
        for count, what in (
            (self.refused, f"files refused ({self.refusal})"),
            (self.quarantined, "rows in quarantine"),
            (self.parts_merged, "parts merged"),
            (self.rows_dropped, "old samples dropped"),
        ):
            if count:
                said.append(f"{count} {what}")
        said += filter(None, (self.doubt, self.unnoted))
        return f"follower: {', '.join(said)}"


def follow(plan: FollowPlan, stop: Event, say: Callable[[str], None], *, wall: Callable[[], float] = time.time) -> None:
    """Follow a spool until ``stop`` is set; the round that is under way is finished.

    Raises
    ------
    SourceError
        If there is no spool. What goes wrong in a round is said, and tried again in the next one.
    SpoolBusyError, SpoolError
        If another process takes this spool into a lake, or this one cannot write it.
    """
    if not (plan.spool / SPOOL_FILE).is_file():
        raise SourceError(
            f"{plan.spool} is no spool (no {SPOOL_FILE}); start a collector: jobwatt collect --spool {plan.spool}"
        )
    with taking(plan.spool, plan.lake, removes=True):
        follower = Follower(plan, wall=wall)
        teller = Teller(say)
        while not stop.is_set():
            began_s = time.monotonic()
            teller.tell(follower.round(), began_s)
            stop.wait(max(0.0, plan.every_s - (time.monotonic() - began_s)))


class Teller:
    """Says a round where it did something, or where something else is wrong than before; else now and then."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._trouble: object = None
        self._said_s = float("-inf")

    def tell(self, done: Round, now_s: float) -> None:
        """Say a round, if it is to be said."""
        if done.did_something or done.trouble != self._trouble or now_s - self._said_s >= IDLE_SAID_S:
            self._say(done.line())
            self._said_s = now_s
        self._trouble = done.trouble


class Follower:
    """The rounds, and what is remembered between them.

    Parameters
    ----------
    wall, monotonic : the wall clock in epoch seconds; one in seconds that nobody sets
    runner : where the tasks of an ingest run; this process where None
    """

    def __init__(
        self,
        plan: FollowPlan,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        runner: Runner | None = None,
    ) -> None:
        self._plan = plan
        self._wall, self._monotonic = wall, monotonic
        self._runner = runner if runner is not None else SerialRunner()
        self._removal, self._snapshots = Removal(plan.spool), OldSnapshots(plan.spool)
        self._nodes = {node for name in sorted(self._removal.names) if (node := node_of(name))}
        self._snapshot_nodes: set[str] = set()
        self._node = ""
        self._time = BelievedTime(plan.spool / BELIEVED, self._newest_s, wall=wall, monotonic=monotonic)
        self._start = datetime.fromtimestamp(wall(), UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._seq = 0
        self._own: set[str] = set()
        self._told_s = float("-inf")
        self._doubt = ""
        self._looked_s = float("-inf")
        self._kept_from: datetime | None = None

    def round(self) -> Round:
        """Take what is new, remove it from the spool, look after the lake, and say how far behind it is."""
        try:
            done = self._round()
        except (JobwattError, OSError, pl.exceptions.PolarsError, pa.ArrowException) as error:
            done = Round(problem=_one_line(error))
        self._tell(done)
        return done

    def _round(self) -> Round:
        plan = self._plan
        close_left_open(plan.spool)
        removed = {name for name in self._removal.names if not (plan.spool / name).exists()}
        # by what the lake has dropped already
        old = self._snapshots.find(self._kept_from) if self._kept_from is not None else {}
        report = ingest(
            *(str(plan.spool), plan.lake),
            cluster=plan.cluster,
            runner=self._runner,
            forget=sorted(removed),
            holds_spool=True,
        )
        if self._changed(report):  # what was forgotten need not be noted any more
            self._removal.names -= removed
        taken = [r for r in report.records if r.status != "refused" and is_segment(r.name)]
        unnoted = self._removal.remove(r.name for r in taken)
        self._node = next((node for r in taken if (node := node_of(r.name))), self._node)
        self._nodes.update(node for r in taken if (node := node_of(r.name)))
        if not self._nodes:  # a spool of Prometheus alone; all of its snapshots are looked at once
            told = [r for r in report.records if r.is_taken or (r.status == "unchanged" and not self._snapshot_nodes)]
            self._snapshot_nodes |= snapshot_nodes(plan.spool, (r.name for r in told))
        foreign = [r for r in taken if r.name not in self._own and r.is_taken]
        self._own -= {r.name for r in taken}
        merged, dropped = self._look_after()
        unnoted = self._remove_old(old, report) or unnoted
        lag_s, ahead_s = self._lag_s()
        return Round(
            rows=sum(r.rows_out for r in foreign),
            segments=len(foreign),
            snapshots=sum(r.is_taken and not is_segment(r.name) for r in report.records),
            lag_s=lag_s,
            ahead_s=ahead_s,
            parts_merged=merged,
            rows_dropped=dropped,
            refused=report.files_refused,
            refusal=next((f"{r.name}: {r.reason} {r.detail}".strip() for r in report.records if r.reason), ""),
            quarantined=report.rows_quarantined,
            doubt=self._time.doubt,
            unnoted=unnoted,
        )

    @staticmethod
    def _changed(report: IngestReport) -> bool:
        return any(record.is_taken for record in report.records)

    def _remove_old(self, old: Mapping[str, State], report: IngestReport) -> str:
        """Remove old snapshots that the lake has as they are; return what the spool's disk refused of that."""
        settled = {r.name for r in report.records if r.is_taken or r.status == "unchanged"}
        mine = {name: state for name, state in old.items() if name in settled}
        if not mine or self._kept_from is None:
            return ""
        lake = self._plan.lake
        pieces = read_pieces_of(lake, read_head(lake), self._plan.cluster, ("input", "table", "part"))
        return self._snapshots.remove(mine, pieces, self._kept_from, self._removal)

    # -- the lake ------------------------------------------------------------------------------------------------------

    def _look_after(self) -> tuple[int, int]:
        """Merge small parts and drop old samples where it is time to; return parts merged and rows dropped."""
        keep_from = self._keep_from()
        is_due = keep_from is not None and keep_from != self._kept_from
        now_s = self._monotonic()
        if not (is_due or (self._has_many_parts() and now_s - self._looked_s >= IDLE_UPKEEP_S)):
            return 0, 0
        plan = self._plan
        if not (plan.lake / MANIFEST / HEAD).exists():
            return 0, 0
        done = maintain(plan.lake, plan.cluster, compact_after=plan.compact_after, keep_from=keep_from)
        self._looked_s = float("-inf") if done.parts_before else now_s
        self._kept_from = keep_from
        return done.parts_before, done.rows_dropped

    def _keep_from(self) -> datetime | None:
        """Return the midnight before which samples go, by a time that is believed."""
        if self._plan.keep_s is None:
            return None
        oldest = datetime.fromtimestamp(self._time.now_s(), UTC) - timedelta(seconds=self._plan.keep_s)
        return oldest.replace(hour=0, minute=0, second=0, microsecond=0)

    def _has_many_parts(self) -> bool:
        plan = self._plan
        if not (plan.lake / MANIFEST / HEAD).exists():
            return False
        mine = [part for part in read_head(plan.lake).parts if part.cluster == plan.cluster]
        small = Counter(part.table for part in mine if part.table in MERGED and part.rows < SMALL_ROWS)
        small.update({variant: len(pairs) for variant, pairs in small_pairs(mine).items()})
        return max(small.values(), default=0) > plan.compact_after

    def _lag_s(self) -> tuple[float | None, float]:
        """Return how far the newest sample of this spool's nodes is behind, and how far samples are ahead; in s."""
        now_s = self._wall()
        until = datetime.fromtimestamp(now_s + SLEWED_S, UTC)
        newest = self._newest(until)
        is_ahead = newest.of_all is not None and newest.of_all > until
        ahead_s = newest.of_all.timestamp() - now_s if newest.of_all is not None and is_ahead else 0.0
        return None if newest.time is None else max(0.0, now_s - newest.time.timestamp()), ahead_s

    def _newest_s(self) -> float | None:
        newest = self._newest(datetime.fromtimestamp(self._wall(), UTC)).time
        return None if newest is None else newest.timestamp()

    def _newest(self, until: datetime) -> Newest:
        """Return the newest sample of this spool's nodes, and the newest one up to a time."""
        nodes = self._nodes or self._snapshot_nodes
        return newest_sample(self._plan.lake, self._plan.cluster, nodes=nodes, until=until)

    # -- its own events ------------------------------------------------------------------------------------------------

    def _tell(self, done: Round) -> None:
        """Leave an event in the spool, at most once a minute, where a round took something or failed."""
        now_s = self._monotonic()
        problem = done.problem or ("" if done.doubt == self._doubt else done.doubt)
        if now_s - self._told_s < S_PER_MINUTE or not (problem or done.segments or done.snapshots):
            return
        event = ("error", 1, None, problem) if problem else ("lag", done.rows, done.lag_s, None)
        if not done.problem:
            self._doubt = done.doubt
        node = self._node or default_node()
        self._seq += 1
        name = f"events/{node}-follower-{self._start}-{self._seq:06d}.csv"
        what, count, seconds, detail = event
        cells = (
            f"{self._wall():.6f}",
            node,
            "follower",
            what,
            count,
            None if seconds is None else f"{seconds:.3f}",
            detail,
        )
        try:
            (self._plan.spool / "events").mkdir(exist_ok=True)
            write_whole(self._plan.spool / name, f"{HEADERS['events']}\n{row(cells)}")
        except OSError:  # said on standard error already, or nothing that matters more than the samples
            return
        self._own.add(name)
        self._told_s = now_s


def _one_line(error: Exception) -> str:
    """Return what went wrong, with the reason code of a full disk where it is one that has no other."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text} [disk_full]" if isinstance(error, OSError) and error.errno in NO_ROOM else text


def close_left_open(spool: Path) -> list[Path]:
    """Close segments that a killed collector left open, unless one is at work; return them.

    Where the disk has no room even for that, they wait until what is closed has been taken and removed.

    Raises
    ------
    SpoolError
        If the spool may not be written.
    """
    if next(spool.glob("*/*.csv.open"), None) is None:
        return []
    try:
        lock = Lock(spool)
    except SpoolBusyError:
        return []
    except OSError as error:
        if error.errno in NO_ROOM:
            return []
        raise SpoolError(f"{spool}: {error.strerror or error}; the follower must be able to write the spool") from error
    try:
        return recover(spool)
    except OSError as error:
        if error.errno in NO_ROOM:
            return []
        raise refused_by_disk(spool, error) from error
    finally:
        lock.release()
