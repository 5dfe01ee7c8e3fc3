"""The spool: what collectors append to, in plain CSV segments that survive ``kill -9`` and are closed by a rename.

SPOOL/spool.json                            what this folder is
SPOOL/LOCK                                  held (flock) by the collector that writes it
SPOOL/<kind>/<node>-<start>-<seq>.csv.open  being written: whole lines, synced every `SYNC_S`
SPOOL/<kind>/<node>-<start>-<seq>.csv       closed: complete, synced, never touched again
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ingest.collectors.segment import OPEN_SUFFIX, Segment, sync_folder
from ingest.errors import SpoolBusyError, SpoolError

SPOOL_JSON: Final = "spool.json"
FORMAT: Final = {"format": "jobwatt-spool", "version": 1}
LOST_FOUND: Final = "lost+found"
"""What the root of a file system of its own has from the beginning."""

SYNC_S: Final = 3.0
"""How often the collector hands its rows to the disk; a ``kill -9`` loses no more than that and what a sync takes."""

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a disk, or what is left of a quota, is full."""

HEADERS: Final[Mapping[str, str]] = {
    "gpu": (
        "timestamp,node,job_id,gpu_index,utilization_gpu_pct,utilization_memory_pct,memory_free_MiB,memory_used_MiB,"
        "temperature_gpu,temperature_memory,power_draw_W,pcie_link_width_current,power_average_W,energy_mJ,"
        "clock_sm_MHz,clock_memory_MHz,enforced_power_limit_W,throttle_reasons"
    ),
    "process": (
        "id_job,Step,Node,Series,ElapsedTime,EpochTime,CPUFrequency,CPUTime,CPUUtilization,RSS,VMSize,Pages,ReadMB,"
        "WriteMB"
    ),
    "node": ("Node,Time,UserPIDCount,FSlatency,LoadAvg,MemoryFreeInactiveKB,LustreRPCTotals,NfsOps,NodePowerW"),
    "devices": (
        "time,node,gpu_index,uuid,name,memory_total_MiB,power_limit_W,power_limit_default_W,power_limit_min_W,"
        "power_limit_max_W,mig_mode,driver_version"
    ),
    "events": "time,node,collector,event,count,seconds,detail",
    "labels": "id_job,model",
    "jobs": (
        "id_job,id_user,nodes_alloc,nodelist,cpus_req,state,exit_code,time_submit,time_eligible,time_start,time_end,"
        "tres_alloc,job_type"
    ),
}
"""Kind of segment to its header; the names are those of the MIT Supercloud Dataset and of jobwatt's recordings."""


def cell(value: object) -> str:
    """Return one CSV cell: empty for None, quoted where it must be, on one line.

    Examples
    --------
    >>> cell(None), cell(1.5), cell("a,b")
    ('', '1.5', '"a,b"')
    """
    if value is None:
        return ""
    text = str(value)
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


def row(values: Iterable[object]) -> str:
    """Return one CSV line, its end included."""
    return ",".join(map(cell, values)) + "\n"


def default_node() -> str:
    """Return this machine's name as all collectors write it: the host name up to its first dot, as Slurm does."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().partition(".")[0]) or "localhost"


def check_node(name: str) -> str:
    """Return the name.

    Raises
    ------
    ValueError
        It could not stand in a file name.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is None:
        raise ValueError(f"node is {name!r}; give letters, digits, '.', '_' and '-', at most 100")
    return name


class Lock:
    """The right to write a spool, held until `release` or the end of the process, however it ends.

    Parameters
    ----------
    wait_s
        How long to wait for whoever has it: a follower has it for a moment, to recover what a killed collector left.

    Raises
    ------
    SpoolBusyError
        Somebody else has it.
    """

    def __init__(self, root: Path, wait_s: float = 0.0) -> None:
        path = root / "LOCK"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not self._take(wait_s):
            holder = os.read(self._file, 500).decode("utf-8", "replace").strip()
            os.close(self._file)
            raise SpoolBusyError(
                f"{root} is being written by another collector ({holder or 'unknown'}); stop that one, or use "
                "another spool"
            )
        told = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat()}
        with suppress(OSError):  # a full disk: the lock is held all the same
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, (json.dumps(told) + "\n").encode(), 0)

    def _take(self, wait_s: float) -> bool:
        until_s = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until_s:
                    return False
                time.sleep(0.05)
            else:
                return True

    def release(self) -> None:
        """Let another collector have the spool."""
        os.close(self._file)


def prepare(root: Path) -> None:
    """Make the folder a spool, if it is not one already; what a killed collector left half made does not hinder it.

    Raises
    ------
    SpoolError
        It is something else, or a spool of a version that this jobwatt does not know.
    """
    root.mkdir(parents=True, exist_ok=True)
    if not is_spool(root):
        write_whole(root / SPOOL_JSON, json.dumps(FORMAT) + "\n")


def is_spool(root: Path) -> bool:
    """Return whether a folder is a spool; it is not yet where it has nothing but what spools have. Nothing is written.

    Raises
    ------
    SpoolError
        As `prepare`.
    """
    path = root / SPOOL_JSON
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if all(_is_of_a_spool(child.name) for child in root.iterdir()):
            return False
        raise SpoolError(f"{root} holds other files and no {SPOOL_JSON}; give an empty folder") from None
    except ValueError as error:
        raise SpoolError(f"{path} is not JSON ({error}); give another folder") from error
    if found != FORMAT:
        raise SpoolError(f"{path} says {found}; this jobwatt writes {FORMAT}; give another folder")
    return True


def _is_of_a_spool(name: str) -> bool:
    """Return whether a spool may hold a name before its ``spool.json`` is seen: what is hidden or a lock is passing."""
    return name in (*HEADERS, SPOOL_JSON, LOST_FOUND) or name.startswith((".", "LOCK"))


def recover(root: Path) -> list[Path]:
    """Close what a killed collector left open, and return the closed segments; for whoever holds the `Lock`.

    An unfinished last line is cut off, as is what a power failure left as zero bytes; a segment without rows goes.
    """
    closed = []
    for path in sorted(root.glob(f"*/*.csv{OPEN_SUFFIX}")):
        content = path.read_bytes()
        kept = content.partition(b"\0")[0]
        kept = kept[: kept.rfind(b"\n") + 1]
        if kept.count(b"\n") < 2:
            path.unlink()
            continue
        with path.open("r+b") as file:
            file.truncate(len(kept))
            os.fsync(file.fileno())
        closed.append(path.rename(path.with_name(path.name.removesuffix(OPEN_SUFFIX))))
        sync_folder(path.parent)
    for path in (*root.glob(".*.part"), *root.glob("*/.*.part")):
        path.unlink(missing_ok=True)
    return closed


def write_whole(path: Path, text: str) -> None:
    """Write a file so that readers see the old one or the new one, whatever happens."""
    try:
        _write_and_rename(path, text)
    except FileNotFoundError:  # a starting collector clears up unfinished files
        _write_and_rename(path, text)


def _write_and_rename(path: Path, text: str) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with staged.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(path.parent)


class Spool:
    """A spool that this process writes: any thread appends, one thread syncs.

    Parameters
    ----------
    segment_s, segment_bytes
        Age and size at which a segment is closed and the next one begun.
    most_pending
        Rows of one kind that wait in memory at most, where the disk does not take them; more are dropped and counted.
    """

    def __init__(
        self,
        root: Path,
        node: str,
        *,
        segment_s: float = 20.0,
        segment_bytes: int = 8 * 2**20,
        most_pending: int = 100_000,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = root
        self.node = check_node(node)
        self.dropped: dict[str, int] = dict.fromkeys(HEADERS, 0)
        self._segment_s, self._segment_bytes, self._most_pending = segment_s, segment_bytes, most_pending
        self._wall, self._monotonic = wall, monotonic
        self._pending: dict[str, deque[object]] = {kind: deque() for kind in HEADERS}
        self._open: dict[str, Segment] = {}
        self._failed = False
        self._syncing = threading.Lock()
        try:
            root.mkdir(parents=True, exist_ok=True)
            is_spool(root)  # else somebody's own folder would get a lock
            self._lock = Lock(root, wait_s=1.0)
            self.recovered = self._begin()
        except OSError as error:
            raise refused_by_disk(root, error) from error
        self._start, self._seq = self._stamp(), 0

    def _begin(self) -> list[Path]:
        """Make the folder a spool and close what was left open; where that fails the lock is let go."""
        try:
            prepare(self.root)
            return recover(self.root)
        except BaseException:
            self._lock.release()
            raise

    def append(self, kind: str, line: object) -> None:
        """Take one line, its end included; it reaches the disk with the next `sync`.

        Of something else than a text, ``str`` gives the line when it is written: that is cheaper done for many at once
        than among the readings.
        """
        pending = self._pending[kind]
        if self._failed or len(pending) >= self._most_pending:
            self.dropped[kind] += 1
            return
        pending.append(line)

    def sync(self) -> None:
        """Write and sync what is pending, and close segments that are old or large enough.

        Raises
        ------
        SpoolError
            The disk does not take it: what was written stays, nothing more is taken.
        """
        try:
            with self._syncing:
                for kind, pending in self._pending.items():
                    if pending:
                        self._write(kind, [str(pending.popleft()) for _ in range(len(pending))])
                    self._rotate(kind)
        except OSError as error:
            self._failed = True
            raise refused_by_disk(self.root, error) from error

    def next_name(self) -> str:
        """Return a name for a segment that nobody else uses: node, start of this run, number."""
        self._seq += 1
        if self._seq > 999_999:
            self._start, self._seq = self._stamp(), 1
        return f"{self.node}-{self._start}-{self._seq:06d}.csv"

    def close(self) -> None:
        """Sync and close every segment, and let the lock go."""
        try:
            if not self._failed:
                self.sync()
        finally:
            try:
                for kind in list(self._open):
                    self._open.pop(kind).close()
            except OSError as error:
                raise refused_by_disk(self.root, error) from error
            finally:
                self._lock.release()

    def _stamp(self) -> str:
        return datetime.fromtimestamp(self._wall(), UTC).strftime("%Y%m%dT%H%M%S.%fZ")

    def _write(self, kind: str, lines: list[str]) -> None:
        segment = self._open.get(kind)
        rows = 0 if segment is None else segment.rows
        try:
            if segment is None:
                folder = self.root / kind
                folder.mkdir(exist_ok=True)
                path = folder / (self.next_name() + OPEN_SUFFIX)
                segment = self._open[kind] = Segment(path, HEADERS[kind], self._monotonic())
            segment.append(lines)
        except OSError:
            self.dropped[kind] += len(lines) - (0 if segment is None else segment.rows - rows)
            raise

    def _rotate(self, kind: str) -> None:
        segment = self._open.get(kind)
        if segment is None:
            return
        if self._monotonic() - segment.opened_s >= self._segment_s or segment.bytes >= self._segment_bytes:
            self._open.pop(kind).close()


@contextmanager
def on_disk(root: Path) -> Iterator[None]:
    """Do something that writes below a spool; what the system refuses meanwhile is told as by `refused_by_disk`."""
    try:
        yield
    except OSError as error:
        raise refused_by_disk(root, error) from error


def refused_by_disk(root: Path, error: OSError) -> SpoolError:
    """Return what the system refused, in one line that says what to do about it."""
    where = error.filename or root
    if error.errno in NO_ROOM:
        return SpoolError(
            f"{where}: no space left ({error.strerror}); what was written stays; make room and start again",
            reason="disk_full",
        )
    if isinstance(error, PermissionError):
        return SpoolError(f"{where}: permission denied; give a spool folder that you may write", reason="no_permission")
    return SpoolError(
        f"{where}: {error.strerror or error}; what was written stays; look at the disk, or give another spool folder",
        reason="disk_error",
    )
