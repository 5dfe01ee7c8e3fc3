"""The node collector: load, memory, processes of each user, what the file systems do, and the power of the host."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ingest.collectors.clock import steady_time
from ingest.collectors.spool import Spool, row

PROBE_BYTES: Final = 4096
LUSTRE_ROOTS: Final = ("proc/fs/lustre", "sys/fs/lustre", "sys/kernel/debug/lustre")
"""Where clients of different versions keep ``osc/*/stats`` and ``mdc/*/stats``, below the root of all."""

MOST_W: Final = 1000.0
"""No package, and no memory of one, draws more."""

RAPL_EVERY_S: Final = 30.0
"""Energy counters are read at least so often: at `MOST_W`, AMD's (65.5 kJ) goes round in 66 s, Intel's in 262 s."""


def rise(before: dict[str, int], now: dict[str, int]) -> int | None:
    """Return by how much counters rose in all; None before there are two readings of any.

    A counter that is new, or fell (it was cleared, or its file system mounted anew), counts from zero.
    """
    if not before or not now:
        return None
    return sum(value - before.get(name, 0) if value >= before.get(name, 0) else value for name, value in now.items())


def parse_lustre_stats(text: str) -> int:
    """Return the RPCs in an ``osc`` or ``mdc`` stats file: the samples of ``req_waittime``, of which each has one."""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 2 and words[0] == "req_waittime" and words[2] == "samples":
            return int(words[1])
    return 0


def parse_mountstats(text: str) -> dict[str, int]:
    """Return, for each NFS mount in a ``/proc/PID/mountstats``, the operations sent to its server so far."""
    found: dict[str, int] = {}
    mount, counting = "", False
    for line in text.splitlines():
        words = line.split()
        if line.startswith("device "):
            is_nfs = "fstype" in words and words[words.index("fstype") + 1].startswith("nfs")
            mount, counting = (words[4] if is_nfs and len(words) > 4 else ""), False
        elif mount and line.strip() == "per-op statistics":
            found[mount], counting = 0, True
        elif counting and len(words) > 1 and words[0].endswith(":") and words[1].isdigit():
            found[mount] += int(words[1])
    return found


@dataclass(frozen=True, slots=True)
class Rapl:
    """One energy counter of the processor: its reading and where it wraps around, in µJ."""

    energy_uj: int
    range_uj: int


def read_rapl(powercap: Path) -> dict[str, Rapl]:
    """Return the counters of every package and of its memory; empty where there are none or only root may read them.

    Parameters
    ----------
    powercap
        ``/sys/class/powercap``. Cores and graphics are parts of a package, and ``psys`` holds all: left out.
    """
    found = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text("ascii").strip()
            if not name.startswith("package-") and name != "dram":
                continue
            energy_uj = int((zone / "energy_uj").read_text("ascii"))
            range_uj = int((zone / "max_energy_range_uj").read_text("ascii"))
        except (OSError, ValueError):
            continue
        found[zone.name] = Rapl(energy_uj, range_uj)
    return found


def rapl_energy_j(before: dict[str, Rapl], now: dict[str, Rapl], passed_s: float) -> float | None:
    """Return the energy between two readings in J; None where a counter is missing, or may have gone round unseen."""
    if not before or before.keys() != now.keys():
        return None
    if any(passed_s * MOST_W * 1e6 >= reading.range_uj for reading in now.values()):
        return None
    total_uj = 0
    for name, reading in now.items():
        risen_uj = reading.energy_uj - before[name].energy_uj
        total_uj += risen_uj if risen_uj >= 0 else risen_uj + reading.range_uj
    return total_uj / 1e6


@dataclass(slots=True)
class NodeCollector:
    """Writes one row of this node a tick.

    Parameters
    ----------
    probe
        The folder whose file system is timed by writing and syncing 4 KiB; None: not timed.
    root
        The root of ``/proc`` and ``/sys``.
    """

    spool: Spool
    probe: Path | None = None
    root: Path = Path("/")
    lustre_roots: tuple[str, ...] = LUSTRE_ROOTS
    wall: Callable[[], float] = steady_time
    monotonic: Callable[[], float] = time.monotonic
    latest: dict[str, float] = field(default_factory=dict)
    problem: str = ""
    _lustre: dict[str, int] = field(default_factory=dict)
    _nfs: dict[str, int] = field(default_factory=dict)
    _metering: threading.Lock = field(default_factory=threading.Lock)
    _rapl: dict[str, Rapl] = field(default_factory=dict)
    _rapl_s: float = 0.0
    _energy_j: float | None = None
    _told_s: float = 0.0

    def begin(self) -> None:
        """Take the first reading of all that is told as a difference."""
        self._differences()

    @property
    def has_meters(self) -> bool:
        """Whether the host's energy counters could be read."""
        return bool(self._rapl)

    def meter(self) -> None:
        """Read the host's energy counters, also between ticks, so that none goes round unseen."""
        with self._metering:
            rapl, now_s = read_rapl(self.root / "sys/class/powercap"), self.monotonic()
            risen_j = rapl_energy_j(self._rapl, rapl, now_s - self._rapl_s)
            self._energy_j = None if risen_j is None or self._energy_j is None else self._energy_j + risen_j
            self._rapl, self._rapl_s = rapl, now_s

    def _power_w(self) -> float | None:
        """Return the host's mean power in W since this was asked last; None where some of it is not known."""
        self.meter()
        with self._metering:
            energy_j, passed_s = self._energy_j, self._rapl_s - self._told_s
            self._energy_j, self._told_s = 0.0, self._rapl_s
        return None if energy_j is None or passed_s <= 0 else energy_j / passed_s

    def tick(self) -> None:
        """Read everything and append the row."""
        time_s = self.wall()
        latency_s = self._latency_s()
        lustre, nfs, power_w = self._differences()
        load, memory_kib = self._load(), self._memory_kib()
        values = (
            self.spool.node,
            f"{time_s:.3f}",
            self._processes(),
            None if latency_s is None else f"{latency_s:.6f}",
            load,
            memory_kib,
            lustre,
            nfs,
            None if power_w is None else f"{power_w:.1f}",
        )
        self.spool.append("node", row(values))
        told = {
            "load": load,
            "memory_free_bytes": None if memory_kib is None else memory_kib * 1024,
            "filesystem_latency_seconds": latency_s,
            "power_watts": power_w,
        }
        self.latest = {name: float(value) for name, value in told.items() if value is not None}

    def _differences(self) -> tuple[int | None, int | None, float | None]:
        """Return Lustre RPCs, NFS operations and mean power in W since the last reading."""
        lustre, nfs = self._read_lustre(), parse_mountstats(self._text("proc/self/mountstats"))
        told = rise(self._lustre, lustre), rise(self._nfs, nfs), self._power_w()
        self._lustre, self._nfs = lustre, nfs
        return told

    def _read_lustre(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for place in self.lustre_roots:
            for path in _below(self.root / place, ("osc", "mdc")):
                try:
                    # a client may show the same target in two places; it is one
                    found.setdefault(f"{path.parents[1].name}/{path.parent.name}", parse_lustre_stats(path.read_text()))
                except (OSError, ValueError):
                    continue
        return found

    def _latency_s(self) -> float | None:
        """Return how long the file system takes to write and sync 4 KiB, in s; None where it cannot."""
        if self.probe is None:
            return None
        path = self.probe / f".jobwatt-probe-{self.spool.node}-{os.getpid()}"
        started_s = self.monotonic()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, bytes(PROBE_BYTES))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            taken_s = self.monotonic() - started_s
            path.unlink()
        except OSError as error:
            with suppress(OSError):  # a file system that refuses may refuse this too
                path.unlink()
            self.problem = f"{self.probe} cannot be timed: {error.strerror}"
            return None
        self.problem = ""
        return taken_s

    def _processes(self) -> str | None:
        """Return how many processes each user has: ``uid:count|uid:count|``, as the dataset writes it."""
        counts: Counter[int] = Counter()
        try:
            for entry in os.scandir(self.root / "proc"):
                if entry.name.isdigit():
                    try:
                        counts[entry.stat().st_uid] += 1
                    except OSError:
                        continue
        except OSError:
            return None
        return "".join(f"{user}:{count}|" for user, count in sorted(counts.items())) or None

    def _load(self) -> float | None:
        try:
            return float(self._text("proc/loadavg").split()[0])
        except (ValueError, IndexError):
            return None

    def _memory_kib(self) -> int | None:
        """Return free plus inactive memory in KiB."""
        found = {}
        for line in self._text("proc/meminfo").splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemFree", "Inactive"):
                found[name] = int(rest.split()[0])
        return found["MemFree"] + found["Inactive"] if len(found) == 2 else None

    def _text(self, path: str) -> str:
        try:
            return (self.root / path).read_text("utf-8", "replace")
        except OSError:
            return ""


def _below(root: Path, kinds: Iterable[str]) -> list[Path]:
    try:
        return [path for kind in kinds for path in sorted(root.glob(f"{kind}/*/stats"))]
    except OSError:
        return []
