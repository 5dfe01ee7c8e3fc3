"""Energy twice: by the GPU's own counter and by integrating its power; pure, and without numpy."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_GAP_S: Final = 1.0


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

    Only steps between two samples that both have both values count, so that the two are energies of the same time; none
    longer than ``max_gap_s``, and none in which the counter fell (the driver was loaded anew).

    Parameters
    ----------
    samples
        (time in s, power in W or None, energy counter in mJ or None).

    Examples
    --------
    >>> energy_twice(0, [(0.0, 100.0, 0), (0.5, 100.0, 40_000), (1.0, 100.0, 80_000)]).gap_ratio
    0.25
    """
    counter_j = integral_j = covered_s = 0.0
    before: tuple[float, float, float] | None = None
    for time_s, power_w, energy_mj in samples:
        if power_w is None or energy_mj is None:
            before = None
            continue
        if before is not None and 0 < time_s - before[0] <= max_gap_s and energy_mj >= before[2]:
            step_s = time_s - before[0]
            covered_s += step_s
            integral_j += step_s * (power_w + before[1]) / 2
            counter_j += (energy_mj - before[2]) / 1000
        before = (time_s, power_w, energy_mj)
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
