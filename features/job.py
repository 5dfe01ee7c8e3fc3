"""What a job does in a window, in an operator's words: at work or idle, in which phases, with how much memory.

And what is around it: processors, reading and writing, the node. That *context* is no channel of the window; it comes
from the lake's CPU and node samples, and is missing where the lake has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from features.windows import FloatArray
from ingest.feature_schemas import CONTEXT_MARGIN_S
from ingest.units import US_PER_S

IDLE_BELOW_PCT = 5
"""A GPU is idle in a reading whose utilisation is below this."""

BUSY_FROM_PCT = 50
"""The duty cycle is the share of readings with this utilisation, or more."""

PHASE_STEP = {"gpu_util_pct": 20, "memory_util_pct": 20, "power_w": 50}
"""By how much the level of a channel has to change for a new phase, in its unit."""

PHASE_BLOCK_S = 1.0
"""The level of a channel is its median over so many seconds."""

MEMORY_STEP_MIB = 256
"""A change of memory from one reading to the next is a step from here on."""

CPU_MARGIN_S = 10.0
"""CPU samples that end so far before or after the window count too; Slurm takes one every 10 s."""

NODE_MARGIN_S = CONTEXT_MARGIN_S
"""So do node samples, which are taken every 5 minutes."""

CONTEXT_NAMES = (
    "cpu_util_pct__mean",
    "cpu_util_pct__maximum",
    "rss_kib__maximum",
    "read_mib__rate_mib_per_s",
    "write_mib__rate_mib_per_s",
    "load__mean",
    "process_count__mean",
    "mem_free_kib__minimum",
    "fs_latency_s__maximum",
    "node_power_w__mean",
)
"""The columns of ``context``: five of the job's processes on the window's node, five of the node."""

CPU_COLUMNS = ("job_id", "node", "step", "task", "time", "cpu_util_pct", "rss_kib", "read_mib", "write_mib")
NODE_COLUMNS = ("node", "time", "load", "process_count", "mem_free_kib", "fs_latency_s", "node_power_w")

_Values = npt.NDArray[np.float64]


def job_names(channels: Sequence[str]) -> list[str]:
    """Return the names of the columns of ``job``, for these channels; a channel that it knows nothing of has none.

    Examples
    --------
    >>> job_names(["memory_used_mib", "gpu_temp_c"])[0]
    'memory_used_mib__steps_up__from_256'
    """
    return [f"{channel}__{name}" for channel in channels for name in _FEATURES.get(channel, ((), None))[0]]


def job(values: FloatArray, channels: Sequence[str], samples_per_s: float | _Values) -> _Values:
    """Features of the job from each window's channels; a missing reading counts for nothing.

    Of utilisation: the share of readings at `BUSY_FROM_PCT` or more, and below `IDLE_BELOW_PCT`; the longest stretch of
    idle readings, and the number of such stretches. Of utilisation and power: phases. A phase ends where the median of
    a second is farther from the mean of the phase so far than `PHASE_STEP`; the least number is 1. With them come the
    longest phase, and the difference of the last phase's level to the first's. Of memory: steps of `MEMORY_STEP_MIB` or
    more between neighbouring readings, up and down, the largest of either sign, and last reading less first.

    Parameters
    ----------
    values : array of shape (n_windows, n_channels, n_samples), missing readings NaN
    samples_per_s : how many samples a second holds, one for all or one for each window

    Returns
    -------
    array of shape (n_windows, n_columns), its columns named by ``job_names``; NaN where a channel has no reading
    """
    if values.ndim != 3 or values.shape[1] != len(channels):
        raise ValueError(f"values have shape {values.shape}; give (n_windows, {len(channels)} channels, n_samples)")
    rates = np.broadcast_to(np.asarray(samples_per_s, np.float64), len(values))
    columns = [np.empty((len(values), 0))]
    for index, channel in enumerate(channels):
        names, compute = _FEATURES.get(channel, ((), None))
        if compute is not None:
            found = np.full((len(values), len(names)), np.nan)
            known = ~np.isnan(values[:, index]).all(axis=1)
            found[known] = compute(values[known, index].astype(np.float64), channel, rates[known])
            columns.append(found)
    return np.hstack(columns)


# -- one channel, array of shape (n_windows, n_samples), in which every window has a reading ---------------------------


def _of_utilisation(values: _Values, channel: str, samples_per_s: _Values) -> _Values:
    count = (~np.isnan(values)).sum(axis=1)
    busy, idle = values >= BUSY_FROM_PCT, values < IDLE_BELOW_PCT  # a missing reading is neither
    begins = idle & ~np.hstack([np.zeros((len(idle), 1), np.bool_), idle[:, :-1]])
    activity = [busy.sum(axis=1) / count, idle.sum(axis=1) / count, _longest(idle) / samples_per_s, begins.sum(axis=1)]
    return np.hstack([np.stack(activity, axis=1), _phases(values, channel, samples_per_s)])


def _longest(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The longest run of true values in each row."""
    longest = np.zeros(len(flags), np.int64)
    run = np.zeros(len(flags), np.int64)
    for column in flags.T:
        run = np.where(column, run + 1, 0)
        np.maximum(longest, run, out=longest)
    return longest


def _phases(values: _Values, channel: str, samples_per_s: _Values) -> _Values:
    """Number of phases, seconds of the longest, and the last one's level less the first one's."""
    sizes = np.maximum(1, np.rint(np.nan_to_num(samples_per_s) * PHASE_BLOCK_S)).astype(np.int64)
    found = np.empty((len(values), 3))
    for size in np.unique(sizes).tolist():
        alike = sizes == size
        found[alike] = _phases_of_blocks(values[alike], PHASE_STEP[channel], samples_per_s[alike], size)
    return found


def _phases_of_blocks(values: _Values, step: float, samples_per_s: _Values, size: int) -> _Values:
    """The same of windows whose seconds hold ``size`` samples."""
    n_samples = values.shape[1]
    total = np.zeros(len(values))
    blocks, run_s, longest_s = np.zeros(len(values)), np.zeros(len(values)), np.zeros(len(values))
    first = np.full(len(values), np.nan)
    phases = np.ones(len(values))
    for start in range(0, n_samples, size):
        level = _median(values[:, start : start + size])
        has = ~np.isnan(level)
        mean = total / np.maximum(blocks, 1)
        is_new = has & (blocks > 0) & (np.abs(level - mean) > step)
        first = np.where(is_new & (phases == 1), mean, first)
        phases += is_new
        total = np.where(is_new, 0.0, total) + np.where(has, level, 0.0)
        blocks = np.where(is_new, 0.0, blocks) + has
        run_s = np.where(is_new, 0.0, run_s) + min(size, n_samples - start) / samples_per_s
        longest_s = np.maximum(longest_s, run_s)
    last = total / np.maximum(blocks, 1)
    return np.stack([phases, longest_s, np.where(phases > 1, last - first, 0.0)], axis=1)


def _median(block: _Values) -> _Values:
    """The median of what each row has; NaN where it has nothing."""
    rising = np.sort(block, axis=1)  # NaN goes last
    count = (~np.isnan(block)).sum(axis=1)
    rows = np.arange(len(block))
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, block.shape[1] - 1)
    return np.where(count > 0, (rising[rows, low] + rising[rows, high]) / 2, np.nan)


def _of_memory(values: _Values, channel: str, samples_per_s: _Values) -> _Values:
    step = np.diff(values, axis=1)
    known = ~np.isnan(step)
    rows = np.arange(len(values))
    has = ~np.isnan(values)
    first, last = has.argmax(axis=1), values.shape[1] - 1 - has[:, ::-1].argmax(axis=1)
    size = np.where(known, np.abs(step), -1.0)
    largest = np.full(len(values), np.nan)
    if step.shape[1]:
        at = size.argmax(axis=1)
        largest = np.where(known.any(axis=1), step[rows, at], np.nan)
    steps = [np.where(known.any(axis=1), (sign * step >= MEMORY_STEP_MIB).sum(axis=1), np.nan) for sign in (1, -1)]
    return np.stack([*steps, largest, values[rows, last] - values[rows, first]], axis=1)


_UNIT = {"gpu_util_pct": "pct", "memory_util_pct": "pct", "power_w": "w"}


def _phase_names(channel: str) -> tuple[str, ...]:
    return (f"phases__step_{PHASE_STEP[channel]}", "longest_phase_s", f"phase_change_{_UNIT[channel]}")


_FEATURES: dict[str, tuple[tuple[str, ...], Callable[[_Values, str, _Values], _Values] | None]] = {
    "gpu_util_pct": (
        (
            f"duty_cycle__from_{BUSY_FROM_PCT}",
            f"idle_share__below_{IDLE_BELOW_PCT}",
            "longest_idle_s",
            "idle_stretches",
            *_phase_names("gpu_util_pct"),
        ),
        _of_utilisation,
    ),
    "memory_util_pct": (_phase_names("memory_util_pct"), _phases),
    "power_w": (_phase_names("power_w"), _phases),
    "memory_used_mib": (
        (
            f"steps_up__from_{MEMORY_STEP_MIB}",
            f"steps_down__from_{MEMORY_STEP_MIB}",
            "largest_step_mib",
            "net_change_mib",
        ),
        _of_memory,
    ),
}


# -- what is around the window -----------------------------------------------------------------------------------------


def context(windows: pl.DataFrame, cpu: pl.DataFrame, node: pl.DataFrame) -> _Values:
    """What the lake's CPU and node samples say of the time around each window.

    Of a job's steps, which overlap in time, the one with most samples there counts (the first by name, if several);
    its tasks are added up. Reading and writing are what the intervals after the first brought, over the time from the
    first sample to the last. A quantity without a sample is NaN.

    Parameters
    ----------
    windows : job_id, node, start_us and end_us of each window
    cpu, node : `CPU_COLUMNS` of cpu_samples, and `NODE_COLUMNS` of node_samples; more rows than are near do no harm

    Returns
    -------
    array of shape (len(windows), len(CONTEXT_NAMES))
    """
    numbered = windows.select("job_id", "node", "start_us", "end_us").with_row_index("window")
    found = numbered.select("window").join(_of_processes(numbered, cpu), on="window", how="left")
    found = found.join(_of_node(numbered, node), on="window", how="left").sort("window")
    return found.select(pl.col(CONTEXT_NAMES).cast(pl.Float64)).to_numpy()


def _near(windows: pl.DataFrame, samples: pl.DataFrame, on: list[str], margin_s: float) -> pl.DataFrame:
    """The samples of each window: those in it, or no farther from it than a margin.

    They meet by stretches of time as long as a window and its margins; a window touches two or three of them.
    """
    margin_us = round(margin_s * US_PER_S)
    begin_us, end_us = pl.col("start_us") - margin_us, pl.col("end_us") + margin_us
    longest_us = windows.select((end_us - begin_us).max()).item()
    stretch_us = max(1, longest_us or 0)
    stretches = pl.int_ranges(begin_us // stretch_us, end_us // stretch_us + 1)
    time_us = pl.col("time").to_physical()
    met = windows.with_columns(stretch=stretches).explode("stretch")
    met = met.join(
        samples.with_columns(stretch=time_us // stretch_us), on=[*on, "stretch"], maintain_order="left_right"
    )
    return met.filter(time_us.is_between(begin_us, end_us)).drop("stretch")


def _of_processes(windows: pl.DataFrame, cpu: pl.DataFrame) -> pl.DataFrame:
    near = _near(windows, cpu.select(CPU_COLUMNS), ["job_id", "node"], CPU_MARGIN_S)
    step = near.group_by("window", "step").len().sort("len", "step", descending=[True, False])
    chosen = near.join(step.unique("window", keep="first"), on=["window", "step"], how="semi", nulls_equal=True)
    each = ("cpu_util_pct", "rss_kib", "read_mib", "write_mib")
    known = [pl.when(pl.col(name).count() > 0).then(pl.col(name).sum()).alias(name) for name in each]
    at = chosen.group_by("window", "time").agg(known).sort("window", "time")
    span_s = (pl.col("time").last() - pl.col("time").first()).dt.total_microseconds() / US_PER_S

    def rate(name: str) -> pl.Expr:
        later = pl.col(name).slice(1)
        return pl.when((span_s > 0) & (later.count() > 0)).then(later.sum() / span_s)

    return at.group_by("window").agg(
        pl.col("cpu_util_pct").mean().alias("cpu_util_pct__mean"),
        pl.col("cpu_util_pct").max().alias("cpu_util_pct__maximum"),
        pl.col("rss_kib").max().alias("rss_kib__maximum"),
        rate("read_mib").alias("read_mib__rate_mib_per_s"),
        rate("write_mib").alias("write_mib__rate_mib_per_s"),
    )


def _of_node(windows: pl.DataFrame, node: pl.DataFrame) -> pl.DataFrame:
    near = _near(windows, node.select(NODE_COLUMNS), ["node"], NODE_MARGIN_S)
    return near.group_by("window").agg(
        pl.col("load").mean().alias("load__mean"),
        pl.col("process_count").mean().alias("process_count__mean"),
        pl.col("mem_free_kib").min().alias("mem_free_kib__minimum"),
        pl.col("fs_latency_s").max().alias("fs_latency_s__maximum"),
        pl.col("node_power_w").mean().alias("node_power_w__mean"),
    )
