"""Slow twins: the same answers by plain loops, to compare the quick ones with."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ingest.quality import CLOCK_JUMP_S, MAX_GAP_S

Row = dict[str, Any]


def energy_j(times: Sequence[datetime], power_w: Sequence[float | None]) -> tuple[float, float]:
    """Return joules and covered seconds of one series by trapezoids between present values, none across a gap."""
    present = [(t, p) for t, p in zip(times, power_w, strict=True) if p is not None]
    energy = covered = 0.0
    for (t0, p0), (t1, p1) in itertools.pairwise(present):
        step_s = (t1 - t0).total_seconds()
        if step_s <= MAX_GAP_S:
            energy += step_s * (p0 + p1) / 2
            covered += step_s
    return energy, covered


def energy_twice_j(rows: Sequence[Row]) -> tuple[float, float]:
    """Return joules of one series by integral and by counter, each pair of successive counter readings on its own."""
    powered = [row for row in rows if row["power_w"] is not None]
    places = [place for place, row in enumerate(powered) if row["energy_counter_j"] is not None]
    integral = counter = 0.0
    for a, b in itertools.pairwise(places):
        times = [row["time"] for row in powered[a : b + 1]]
        energy, covered = energy_j(times, [row["power_w"] for row in powered[a : b + 1]])
        rise = powered[b]["energy_counter_j"] - powered[a]["energy_counter_j"]
        if abs(covered - (times[-1] - times[0]).total_seconds()) < 1e-9 and rise >= 0:
            integral, counter = integral + energy, counter + rise
    return integral, counter


def by_series(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Return the rows of each series (job, node, GPU), by time."""
    series: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        series[row["job_id"], row["node"], row["gpu_index"]].append(row)
    return {key: sorted(found, key=lambda row: row["time"]) for key, found in series.items()}


def present(rows: Sequence[Row], name: str) -> list[Any]:
    """Return the values of a column that are there."""
    return [row[name] for row in rows if row[name] is not None]


def summarise_series(rows: Sequence[Row]) -> Row:
    """Return what `ingest.rollup.join_pieces` says of one series."""
    times = [row["time"] for row in rows]
    energy, covered = energy_j(times, [row["power_w"] for row in rows])
    steps = [(b - a).total_seconds() for a, b in itertools.pairwise(times)]
    power, used = present(rows, "power_w"), present(rows, "memory_used_mib")
    integral, counter = energy_twice_j(rows)
    return {
        "rows": len(rows),
        "energy_j": energy,
        "both_energy_j": integral,
        "both_counter_j": counter,
        "covered_s": covered,
        "gaps": sum(step > MAX_GAP_S for step in steps),
        "clock_jumps": sum(step > CLOCK_JUMP_S for step in steps),
        "longest_gap_s": max([step for step in steps if step > MAX_GAP_S], default=0.0),
        "power_max_w": max(power, default=None),
        "memory_used_max_mib": max(used, default=None),
        "gpu_util_sum": float(sum(present(rows, "gpu_util_pct"))),
        "gpu_util_n": len(present(rows, "gpu_util_pct")),
    }


def counter_gain_j(rows: Sequence[Row]) -> float | None:
    """Return what an energy counter gained over one series; a step back, a driver's new start, is none."""
    values = present(rows, "energy_counter_j")
    return float(sum(max(b - a, 0.0) for a, b in itertools.pairwise(values))) if values else None


def summarise_job(series: Sequence[Sequence[Row]], run_s: float | None) -> Row:
    """Return what ``job_stats`` says of one job, out of its series by time and the scheduler's run time."""
    rows = [row for one in series for row in one]
    parts = [summarise_series(one) for one in series]
    gains = [counter_gain_j(one) for one in series]
    power, util = present(rows, "power_w"), present(rows, "gpu_util_pct")
    first, last = min(row["time"] for row in rows), max(row["time"] for row in rows)
    energy, covered = sum(part["energy_j"] for part in parts), sum(part["covered_s"] for part in parts)
    integral, counter = (sum(part[f"both_{name}_j"] for part in parts) for name in ("energy", "counter"))
    due_s = (run_s or (last - first).total_seconds()) * len(series)
    return {
        "nodes": len({row["node"] for row in rows}),
        "gpus": len(series),
        "samples": len(rows),
        "first_time": first,
        "last_time": last,
        "covered_gpu_s": covered,
        "coverage": min(covered / due_s, 1.0) if due_s > 0 else None,
        "gaps": sum(part["gaps"] for part in parts),
        "longest_gap_s": max(part["longest_gap_s"] for part in parts),
        "energy_j": energy if power else None,
        "energy_counter_j": None if None in gains else sum(gain for gain in gains if gain is not None),
        "energy_gap_pct": 100 * (integral / counter - 1) if counter > 0 else None,
        "power_mean_w": energy / covered if covered > 0 else None,
        "power_max_w": max(power, default=None),
        "gpu_util_mean_pct": sum(util) / len(util) if util else None,
        "memory_used_max_mib": max(present(rows, "memory_used_mib"), default=None),
        "gpu_temp_max_c": max(present(rows, "gpu_temp_c"), default=None),
    }


def summarise_minute(rows: Sequence[Row]) -> Row:
    """Return what ``gpu_minutes`` says of one minute of one series."""
    power, util = present(rows, "power_w"), present(rows, "gpu_util_pct")
    return {
        "n": len(rows),
        "n_power": len(power),
        "power_mean_w": sum(power) / len(power) if power else None,
        "power_min_w": min(power, default=None),
        "power_max_w": max(power, default=None),
        "gpu_util_mean_pct": sum(util) / len(util) if util else None,
        "memory_used_max_mib": max(present(rows, "memory_used_mib"), default=None),
        "gpu_temp_max_c": max(present(rows, "gpu_temp_c"), default=None),
    }
