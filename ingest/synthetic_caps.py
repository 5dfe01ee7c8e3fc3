"""Made-up jobs whose answer to a power cap is known in closed form, and the telemetry that such a cap would give.

The model is the textbook one. A GPU under a cap lowers its clock f until its draw fits. Its draw is a static part
plus a dynamic part that goes with f³ (voltage follows frequency), so that a moment which would draw d watts runs, under
a cap c < d, at the clock f/f₀ = ((c − static) / (d − static))^(1/3). Only a share β of the work waits for the clock,
the rest for memory, so that the moment takes 1 + β (f₀/f − 1) times as long. Under c ≥ d nothing changes.

References
----------
Hsu and Kremer, "The design, implementation, and evaluation of a compiler algorithm for CPU energy reduction", PLDI
2003 (β, the share of time that goes with the clock). Mudge, "Power: a first-class architectural design constraint",
IEEE Computer 34(4), 2001 (dynamic power with the cube of the clock).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ingest.schemas import GPU_SAMPLES
from ingest.synthetic_signals import POWER_LIMIT_W
from ingest.units import US_PER_S

STATIC_POWER_W = 40.0
FULL_CLOCK_MHZ = 1_530
"""A V100's boost clock."""

NOISE_W = 0.4
"""Half the width of the meter's noise; every level lies further than that from any cap a test is likely to choose."""

SAMPLE_S = 0.1


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a job's cycle: its seconds and draw without a cap, and β, its share tied to the clock."""

    seconds: float
    demand_w: float
    clock_share: float


@dataclass(frozen=True, slots=True)
class CapClass:
    """A class of jobs by its cycle of phases; every job of the class repeats it."""

    name: str
    phases: tuple[Phase, ...]


CAP_CLASSES: dict[str, CapClass] = {
    "compute-bound": CapClass("compute-bound", (Phase(26.0, 223.3, 0.95), Phase(4.0, 63.3, 0.2))),
    "memory-bound": CapClass("memory-bound", (Phase(24.0, 173.3, 0.25), Phase(6.0, 93.3, 0.1))),
    "mixed": CapClass("mixed", (Phase(12.0, 213.3, 0.9), Phase(10.0, 133.3, 0.4), Phase(8.0, 53.3, 0.1))),
    "bursty": CapClass("bursty", (Phase(5.0, 238.3, 0.8), Phase(25.0, 58.3, 0.1))),
    "input-bound": CapClass("input-bound", (Phase(6.0, 118.3, 0.6), Phase(24.0, 48.3, 0.0))),
}
"""Five kinds of work, with a V100's watts: from one that a cap hurts at once to one that it never touches."""


@dataclass(frozen=True, slots=True)
class CapJob:
    """One job with a known answer to any cap; ``cycles`` counts how often it goes through its class's phases."""

    job_id: int
    cap_class: CapClass
    scale: float
    cycles: int
    start_us: int

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Its class's phases, with this job's own dynamic power."""
        return tuple(
            Phase(p.seconds, STATIC_POWER_W + (p.demand_w - STATIC_POWER_W) * self.scale, p.clock_share)
            for p in self.cap_class.phases
        )

    @property
    def run_s(self) -> float:
        """Uncapped run time."""
        return self.cycles * sum(phase.seconds for phase in self.phases)

    @property
    def energy_j(self) -> float:
        """Uncapped energy of its GPU."""
        return self.energy_under_j(math.inf)

    def share_above(self, cap_w: float) -> float:
        """Return the share of its uncapped time in which it would draw more than the cap."""
        above = sum(phase.seconds for phase in self.phases if phase.demand_w > cap_w)
        return above / sum(phase.seconds for phase in self.phases)

    def slowdown(self, cap_w: float) -> float:
        """Return run time under the cap over run time without: 1 or more."""
        slowed = sum(phase.seconds * stretch(phase, cap_w) for phase in self.phases)
        return slowed / sum(phase.seconds for phase in self.phases)

    def energy_under_j(self, cap_w: float) -> float:
        """Return its GPU's energy over the run under the cap."""
        return self.cycles * sum(
            min(phase.demand_w, cap_w) * phase.seconds * stretch(phase, cap_w) for phase in self.phases
        )

    def relative_energy(self, cap_w: float) -> float:
        """Return energy under the cap over energy without."""
        return self.energy_under_j(cap_w) / self.energy_j


def stretch(phase: Phase, cap_w: float) -> float:
    """Return how many times as long a phase takes under a cap.

    Examples
    --------
    A cap that leaves an eighth of the dynamic power halves the clock; work wholly bound to it takes twice as long.

    >>> round(stretch(Phase(seconds=10.0, demand_w=200.0, clock_share=1.0), cap_w=60.0), 9)
    2.0
    >>> round(stretch(Phase(seconds=10.0, demand_w=200.0, clock_share=0.5), cap_w=60.0), 9)
    1.5
    """
    return 1.0 + phase.clock_share * (1.0 / relative_clock(phase, cap_w) - 1.0)


def relative_clock(phase: Phase, cap_w: float) -> float:
    """Return the clock under a cap over the full clock."""
    if cap_w <= STATIC_POWER_W:
        raise ValueError(f"cap_w is {cap_w}; give more than the static {STATIC_POWER_W} W that no clock can save")
    if phase.demand_w <= cap_w:
        return 1.0
    return float(np.cbrt((cap_w - STATIC_POWER_W) / (phase.demand_w - STATIC_POWER_W)))


def make_cap_response_jobs(
    n_jobs: int,
    *,
    rng: np.random.Generator | int,
    classes: Sequence[str] = tuple(CAP_CLASSES),
    cycles: tuple[int, int] = (3, 8),
    start_us: int = 1_614_556_800_000_000,
) -> tuple[CapJob, ...]:
    """Make jobs of mixed classes, dealt out evenly, whose slowdown and energy under any cap are known.

    Parameters
    ----------
    cycles : least and greatest number of 30-second cycles that a job goes through
    start_us : when the first one starts; the others follow, each after the one before would have ended under 50 W

    Examples
    --------
    >>> jobs = make_cap_response_jobs(5, rng=1)
    >>> {job.cap_class.name: round(job.slowdown(150.0), 2) for job in jobs}["input-bound"]
    1.0
    """
    generator = np.random.default_rng(rng)
    unknown = sorted(set(classes) - set(CAP_CLASSES))
    if unknown or not classes:
        raise ValueError(f"classes has {unknown or 'no name'}; choose among {', '.join(CAP_CLASSES)}")
    if not 1 <= cycles[0] <= cycles[1]:
        raise ValueError(f"cycles is {cycles}; give the least and the greatest number, 1 or more")
    jobs = []
    begin_us = start_us
    for number in range(n_jobs):
        job = CapJob(
            job_id=10**12 + 7_919 * number + int(generator.integers(7_919)),
            cap_class=CAP_CLASSES[classes[number % len(classes)]],
            scale=float(generator.uniform(0.97, 1.03)),
            cycles=int(generator.integers(cycles[0], cycles[1] + 1)),
            start_us=begin_us,
        )
        jobs.append(job)
        begin_us += int(4 * job.run_s) * US_PER_S
    return tuple(jobs)


def cap_samples(
    job: CapJob,
    cap_w: float = POWER_LIMIT_W,
    *,
    rng: np.random.Generator | int,
    node: str = "r1000000-n100000",
    gpu_index: int = 0,
) -> pl.DataFrame:
    """Return what the job's GPU shows under a cap, as rows of ``gpu_samples``: one every 0.1 s until it is done.

    A sample is what the GPU draws at its time, with even noise of 0.4 W that never passes the cap. The last one lies
    at the end of the run, so that trapezoids come to the known energy but for the noise and the steps between phases.
    """
    generator = np.random.default_rng(rng)
    lengths = np.array([phase.seconds * stretch(phase, cap_w) for phase in job.phases])
    ends = np.cumsum(np.tile(lengths, job.cycles))
    n = int(np.ceil(ends[-1] / SAMPLE_S))
    time_s = np.append(np.arange(n) * SAMPLE_S, ends[-1])
    phase = np.minimum(np.searchsorted(ends, time_s, side="right"), ends.size - 1) % lengths.size
    demand_w = np.array([p.demand_w for p in job.phases])[phase]
    clock = np.array([relative_clock(p, cap_w) for p in job.phases])[phase]
    noise_w = generator.uniform(-NOISE_W, NOISE_W, time_s.size)
    power_w = np.minimum(np.minimum(demand_w, cap_w) + noise_w, cap_w)
    busy = (demand_w - STATIC_POWER_W) / (POWER_LIMIT_W - STATIC_POWER_W)
    frame = pl.DataFrame(
        {
            "job_id": np.full(time_s.size, job.job_id),
            "node": [node] * time_s.size,
            "gpu_index": np.full(time_s.size, gpu_index),
            "time": job.start_us + np.rint(time_s * US_PER_S).astype(np.int64),
            "gpu_util_pct": np.clip(np.rint(100.0 * busy**0.8), 0, 100).astype(np.int64),
            "memory_util_pct": np.clip(np.rint(60.0 * busy), 0, 100).astype(np.int64),
            "power_w": power_w,
            "sm_clock_mhz": np.rint(FULL_CLOCK_MHZ * clock).astype(np.int64),
            "power_limit_w": np.full(time_s.size, cap_w),
        }
    )
    return GPU_SAMPLES.conform(frame.with_columns(pl.col("time").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")))
