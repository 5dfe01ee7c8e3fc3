"""Energy twice: by the GPU's own counter and by integrating its power; pure, and without numpy."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_GAP_S: Final = 10.0
"""Power is not integrated between two samples further apart than this; as in the lake (`ingest.quality`)."""


@dataclass(frozen=True, slots=True)
class EnergyTwice:
    """Both energies of one GPU over the same covered time.

    ``gap_ratio`` is integral / counter - 1; None where the counter did not move.
    """

    gpu_index: int
    counter_j: float
    integral_j: float
    covered_s: float
    gap_ratio: float | None


def energy_twice(
    gpu_index: int, samples: Iterable[tuple[float, float | None, float | None]], max_gap_s: float = MAX_GAP_S
) -> EnergyTwice:
    """Return both energies of one GPU's samples in order of time.

    Power is integrated over all samples from one reading of the counter to the next, so that the two are energies of
    the same time. What lies between two readings counts only if no step between samples with power is longer than
    ``max_gap_s`` there, and not if the counter fell (the driver was loaded anew). A reading without power is none.

    Parameters
    ----------
    samples
        (time in s, power in W or None, energy counter in mJ or None).

    Examples
    --------
    >>> energy_twice(0, [(0.0, 100.0, 0), (0.5, 100.0, None), (1.0, 100.0, 80_000)]).gap_ratio
    0.25
    """
    counter_j = integral_j = covered_s = 0.0
    before: tuple[float, float] | None = None
    read: tuple[float, float] | None = None
    since_j = 0.0
    for time_s, power_w, energy_mj in samples:
        if power_w is None:
            continue
        if before is not None and 0 <= time_s - before[0] <= max_gap_s:
            since_j += (time_s - before[0]) * (power_w + before[1]) / 2
        else:
            read = None
        before = (time_s, power_w)
        if energy_mj is None:
            continue
        if read is not None and time_s > read[0] and energy_mj >= read[1]:
            covered_s += time_s - read[0]
            integral_j += since_j
            counter_j += (energy_mj - read[1]) / 1000
        read, since_j = (time_s, energy_mj), 0.0
    gap = integral_j / counter_j - 1 if counter_j > 0 else None
    return EnergyTwice(gpu_index, counter_j, integral_j, covered_s, gap)


def read_energy_twice(root: Path, job_id: int, *, since_s: float = 0.0) -> list[EnergyTwice]:
    """Return both energies of each GPU of one job, from those segments of a spool that were written since a time."""
    series: dict[int, list[tuple[float, float | None, float | None]]] = {}
    for path in [*root.glob("gpu/*.csv"), *root.glob("gpu/*.csv.open")]:
        try:
            if path.stat().st_mtime < since_s:
                continue
            with path.open(encoding="utf-8", newline="") as file:
                for sample in csv.DictReader(file):
                    if sample["job_id"] == str(job_id):
                        power_w, energy_mj = _number(sample, "power_draw_W"), _number(sample, "energy_mJ")
                        row = (float(sample["timestamp"]), power_w, energy_mj)
                        series.setdefault(int(sample["gpu_index"]), []).append(row)
        except FileNotFoundError:  # a follower that keeps the spool small has taken it
            continue
    return [energy_twice(index, sorted(rows, key=lambda row: row[0])) for index, rows in sorted(series.items())]


def _number(sample: Mapping[str, str], name: str) -> float | None:
    return float(sample[name]) if sample[name] else None
