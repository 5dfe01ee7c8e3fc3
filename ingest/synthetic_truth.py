"""The known answers of a made-up archive, computed from the values as they are written and from nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ingest.synthetic_signals import IntArray, Signals
from ingest.units import US_PER_S


@dataclass(frozen=True, slots=True)
class GpuTruth:
    """What one GPU's rows of one job say: counts, times, extremes, and its energy by plain trapezoids."""

    node: str
    gpu_index: int
    rows: int
    first_time_us: int
    last_time_us: int
    first_power_w: float
    last_power_w: float
    energy_j: float
    power_min_w: float
    power_max_w: float
    gpu_util_sum_pct: int
    gpu_util_min_pct: int
    gpu_util_max_pct: int
    memory_util_sum_pct: int
    memory_util_min_pct: int
    memory_util_max_pct: int
    memory_used_max_mib: int
    gpu_temp_max_c: int

    @property
    def covered_s(self) -> float:
        """Seconds from the first sample to the last."""
        return (self.last_time_us - self.first_time_us) / US_PER_S

    @property
    def power_mean_w(self) -> float:
        """Energy over covered seconds."""
        return self.energy_j / self.covered_s

    @property
    def gpu_util_mean_pct(self) -> float:
        """Mean of the samples."""
        return self.gpu_util_sum_pct / self.rows

    @property
    def memory_util_mean_pct(self) -> float:
        """Mean of the samples."""
        return self.memory_util_sum_pct / self.rows


@dataclass(frozen=True, slots=True)
class JobTruth:
    """One job: what the scheduler says of it (times in whole seconds since 1970) and what its GPUs' rows say."""

    job_id: int
    label: str
    labelled: bool
    user: int
    state: str
    submit_s: int
    start_s: int
    end_s: int
    attempts: int
    nodes: tuple[str, ...]
    gpus: tuple[GpuTruth, ...]

    @property
    def gpu_rows(self) -> int:
        """Rows of all its GPUs."""
        return sum(gpu.rows for gpu in self.gpus)

    @property
    def energy_j(self) -> float:
        """Energy of all its GPUs."""
        return sum(gpu.energy_j for gpu in self.gpus)

    @property
    def power_max_w(self) -> float:
        """Largest sample of any one of its GPUs; NaN for a job without any."""
        return max((gpu.power_max_w for gpu in self.gpus), default=math.nan)

    @property
    def power_mean_w(self) -> float:
        """Energy over covered GPU seconds: the mean draw of one of its GPUs; NaN for a job without any."""
        return self.energy_j / sum(gpu.covered_s for gpu in self.gpus) if self.gpus else math.nan

    @property
    def gpu_util_mean_pct(self) -> float:
        """Mean of all its samples; NaN for a job without any."""
        return sum(gpu.gpu_util_sum_pct for gpu in self.gpus) / self.gpu_rows if self.gpus else math.nan


@dataclass(frozen=True, slots=True)
class FileTruth:
    """One data file: its path below the archive's root, its table, its rows (the header not counted), its bytes."""

    path: str
    table: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ArchiveTruth:
    """A made-up archive: where it is and every answer that a reader of it should come to."""

    root: Path
    jobs: tuple[JobTruth, ...]
    files: tuple[FileTruth, ...]
    nodes: tuple[str, ...]

    @property
    def rows(self) -> dict[str, int]:
        """Rows by table."""
        total: Counter[str] = Counter()
        for file in self.files:
            total[file.table] += file.rows
        return dict(total)

    @property
    def gpu_bytes(self) -> int:
        """Bytes of the files that hold GPU samples."""
        return sum(file.bytes for file in self.files if file.table == "gpu_samples")

    @property
    def labels(self) -> dict[int, str]:
        """Class by job id, of the labelled jobs."""
        return {job.job_id: job.label for job in self.jobs if job.labelled}

    @property
    def energy_j(self) -> float:
        """Energy of all jobs."""
        return sum(job.energy_j for job in self.jobs)

    def job(self, job_id: int) -> JobTruth:
        """Return one job's answers."""
        found = [job for job in self.jobs if job.job_id == job_id]
        if not found:
            raise ValueError(f"job {job_id} is not in this archive; it has {len(self.jobs)} jobs, see .jobs")
        return found[0]


def tally(node: str, gpu_index: int, time_us: IntArray, signals: Signals) -> GpuTruth:
    """Return what a run of samples of one GPU says; there must be at least one sample.

    Examples
    --------
    >>> flat = np.array([10, 20, 30])
    >>> two_seconds = np.array([0, 1_000_000, 2_000_000])
    >>> power = np.array([10_000, 20_000, 10_000])
    >>> tally("n", 0, two_seconds, Signals(flat, flat, flat, flat, flat, power)).energy_j
    300.0
    """
    power_w = signals.power_cw / 100.0
    step_s = np.diff(time_us) / US_PER_S
    return GpuTruth(
        node=node,
        gpu_index=gpu_index,
        rows=int(time_us.size),
        first_time_us=int(time_us[0]),
        last_time_us=int(time_us[-1]),
        first_power_w=float(power_w[0]),
        last_power_w=float(power_w[-1]),
        energy_j=float(np.sum(step_s * (power_w[1:] + power_w[:-1]) / 2.0)),
        power_min_w=float(power_w.min()),
        power_max_w=float(power_w.max()),
        gpu_util_sum_pct=int(signals.gpu_util_pct.sum()),
        gpu_util_min_pct=int(signals.gpu_util_pct.min()),
        gpu_util_max_pct=int(signals.gpu_util_pct.max()),
        memory_util_sum_pct=int(signals.memory_util_pct.sum()),
        memory_util_min_pct=int(signals.memory_util_pct.min()),
        memory_util_max_pct=int(signals.memory_util_pct.max()),
        memory_used_max_mib=int(signals.memory_used_mib.max()),
        gpu_temp_max_c=int(signals.gpu_temp_c.max()),
    )


def join(parts: Iterable[GpuTruth]) -> GpuTruth:
    """Return what several slices of one GPU's samples say together; the slices come in order of time."""
    pieces = list(parts)
    first, last = pieces[0], pieces[-1]
    seams_j = sum(
        (after.first_time_us - before.last_time_us) / US_PER_S * (after.first_power_w + before.last_power_w) / 2.0
        for before, after in pairwise(pieces)
    )
    return GpuTruth(
        node=first.node,
        gpu_index=first.gpu_index,
        rows=sum(piece.rows for piece in pieces),
        first_time_us=first.first_time_us,
        last_time_us=last.last_time_us,
        first_power_w=first.first_power_w,
        last_power_w=last.last_power_w,
        energy_j=sum(piece.energy_j for piece in pieces) + seams_j,
        power_min_w=min(piece.power_min_w for piece in pieces),
        power_max_w=max(piece.power_max_w for piece in pieces),
        gpu_util_sum_pct=sum(piece.gpu_util_sum_pct for piece in pieces),
        gpu_util_min_pct=min(piece.gpu_util_min_pct for piece in pieces),
        gpu_util_max_pct=max(piece.gpu_util_max_pct for piece in pieces),
        memory_util_sum_pct=sum(piece.memory_util_sum_pct for piece in pieces),
        memory_util_min_pct=min(piece.memory_util_min_pct for piece in pieces),
        memory_util_max_pct=max(piece.memory_util_max_pct for piece in pieces),
        memory_used_max_mib=max(piece.memory_used_max_mib for piece in pieces),
        gpu_temp_max_c=max(piece.gpu_temp_max_c for piece in pieces),
    )
