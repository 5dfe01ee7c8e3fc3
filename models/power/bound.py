"""A first bound of what a power cap would touch: how long, and with how much energy, a GPU draws more than the cap.

It looks at averages of one second, so that peaks which no cap would answer to do not count; it is no prediction of a
slowdown: a job that is held to its cap runs longer, and how much longer is another question. A GPU of unknown TDP gets
no figure (null), never one of another GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ingest.schemas import SERIES_KEY
from ingest.units import US_PER_S

FloatArray = npt.NDArray[np.float64]

CAP_SHARES = (0.8, 0.6)
"""Caps as shares of TDP, the deeper one last."""

MAX_STEP_S = 2.0
"""Readings further apart than this make no one-second average of the time between them."""

_BOUND_SCHEMA = pl.Schema(
    {
        "job_id": pl.Int64(),
        "node": pl.String(),
        "gpu_index": pl.Int16(),
        "tdp_w": pl.Float64(),
        "cap_share": pl.Float64(),
        "cap_w": pl.Float64(),
        "covered_s": pl.Float64(),
        "above_s": pl.Float64(),
        "energy_j": pl.Float64(),
        "energy_above_j": pl.Float64(),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class SecondAverages:
    """Average draw of each second of a series that has a reading: of second ``second``, ``covered_s`` at ``power_w``.

    Seconds count from the first reading, which is in second 0.
    """

    second: npt.NDArray[np.int64]
    covered_s: FloatArray
    power_w: FloatArray


def second_averages(time_s: FloatArray, power_w: FloatArray, max_step_s: float = MAX_STEP_S) -> SecondAverages:
    """Return the average draw in each second since the first reading, weighted by time.

    Power runs straight between two readings and is unknown between two that are more than ``max_step_s`` apart, so a
    second may be known in part. A second without a reading of its own is left out: its average would be invented.

    Parameters
    ----------
    time_s, power_w : rising times and the draw at them; readings of NaN watts are ignored

    Examples
    --------
    >>> second_averages(np.array([0.0, 1.0, 1.5]), np.array([100.0, 200.0, 200.0])).power_w
    array([150., 200.])
    """
    if time_s.shape != power_w.shape or time_s.ndim != 1:
        raise ValueError(f"time_s has shape {time_s.shape} and power_w {power_w.shape}; give two rows of one length")
    if not max_step_s > 0:
        raise ValueError(f"max_step_s is {max_step_s}; give a time above 0")
    if np.any(np.diff(time_s) < 0):
        raise ValueError("time_s goes backwards; sort the series by time first")
    known = ~np.isnan(power_w)
    time, power = time_s[known], power_w[known]
    if len(time) < 2:
        return SecondAverages(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))
    time = time - time[0]
    joined = np.diff(time) <= max_step_s

    # Readings and the whole seconds between joined ones cut the curve into pieces, each of one second and one slope.
    first = np.floor(time[:-1][joined]) + 1.0
    how_many = np.maximum(np.ceil(time[1:][joined]) - first, 0.0).astype(np.int64)
    seconds = np.repeat(first - np.cumsum(how_many) + how_many, how_many) + np.arange(how_many.sum())
    edge = np.union1d(time, seconds)
    width, middle = np.diff(edge), (edge[1:] + edge[:-1]) / 2
    inside = joined[np.clip(np.searchsorted(time, middle) - 1, 0, len(joined) - 1)] & (width > 0)
    width, middle = width[inside], middle[inside]

    second, piece = np.unique(np.floor(middle), return_inverse=True)
    covered_s = np.bincount(piece, weights=width, minlength=len(second)).astype(np.float64)
    energy_j = np.bincount(piece, weights=width * np.interp(middle, time, power), minlength=len(second))
    read = np.isin(second, np.floor(time))
    return SecondAverages(second[read].astype(np.int64), covered_s[read], energy_j[read] / covered_s[read])


def bound_caps(
    samples: pl.DataFrame,
    devices: pl.DataFrame,
    cap_shares: Sequence[float] = CAP_SHARES,
    max_step_s: float = MAX_STEP_S,
) -> pl.DataFrame:
    """Return the first bound of each series and cap: the time and energy above the cap, null where TDP is unknown.

    Parameters
    ----------
    samples : frame with job_id, node, gpu_index, time, power_w; rows of no job are left out
    devices : frame with node, gpu_index, valid_from, tdp_w; the row in force at a series' first reading counts

    Returns
    -------
    frame with job_id, node, gpu_index, tdp_w, cap_share, cap_w, covered_s, above_s, energy_j, energy_above_j
        ``covered_s`` is the time for which a one-second average is known, ``energy_j`` the energy in that time.
    """
    for share in cap_shares:
        if not 0 < share <= 1:
            raise ValueError(f"a cap is {share} of TDP; give shares above 0 and up to 1")
    ordered = (
        samples.filter(pl.col("job_id").is_not_null()).select(*SERIES_KEY, "time", "power_w").sort(*SERIES_KEY, "time")
    )
    time_us = ordered["time"].to_physical().to_numpy()
    power_w = ordered["power_w"].cast(pl.Float64).to_numpy()
    rows = []
    for *key, tdp_w, begin, count in _series_with_tdp(ordered, devices).iter_rows():
        part = slice(begin, begin + count)
        seconds = second_averages((time_us[part] - time_us[begin]) / US_PER_S, power_w[part], max_step_s)
        covered_s, energy_j = float(seconds.covered_s.sum()), float(seconds.covered_s @ seconds.power_w)
        for share in cap_shares:
            cap_w = None if tdp_w is None else share * tdp_w
            above_s = energy_above_j = None
            if cap_w is not None:
                over_w = np.maximum(seconds.power_w - cap_w, 0.0)
                above_s = float(seconds.covered_s[over_w > 0].sum())
                energy_above_j = float(seconds.covered_s @ over_w)
            rows.append((*key, tdp_w, share, cap_w, covered_s, above_s, energy_j, energy_above_j))
    return pl.DataFrame(rows, schema=_BOUND_SCHEMA, orient="row")


def sum_bounds(bounds: pl.DataFrame, by: str | Sequence[str]) -> pl.DataFrame:
    """Return the first bound of each group of series and each cap, as time and energy and as shares of the covered.

    One GPU of unknown TDP leaves its whole group without a figure: a share of the rest would pass for that of all.

    Parameters
    ----------
    bounds : what ``bound_caps`` returns, with the columns ``by`` added where they are not its own
    """
    names = [by] if isinstance(by, str) else list(by)
    unknown = pl.col("above_s").is_null().any()
    return (
        bounds.group_by(*names, "cap_share", maintain_order=True)
        .agg(
            pl.col("covered_s", "energy_j").sum(),
            pl.when(~unknown).then(pl.col("above_s").sum()),
            pl.when(~unknown).then(pl.col("energy_above_j").sum()),
        )
        .with_columns(
            above_time_share=pl.when(pl.col("covered_s") > 0).then(pl.col("above_s") / pl.col("covered_s")),
            above_energy_share=pl.when(pl.col("energy_j") > 0).then(pl.col("energy_above_j") / pl.col("energy_j")),
        )
    )


def _series_with_tdp(ordered: pl.DataFrame, devices: pl.DataFrame) -> pl.DataFrame:
    """Key, TDP, first row and number of rows of each series of the ordered samples."""
    series = (
        ordered.with_row_index("begin")
        .group_by(*SERIES_KEY, maintain_order=True)
        .agg(pl.col("time").first(), pl.col("begin").first().cast(pl.Int64), count=pl.len().cast(pl.Int64))
    )
    in_force = devices.select("node", "gpu_index", pl.col("tdp_w").cast(pl.Float64), time="valid_from").sort("time")
    return (
        series.sort("time")
        .join_asof(in_force, on="time", by=["node", "gpu_index"], strategy="backward", check_sortedness=False)
        .sort(*SERIES_KEY)
        .select(*SERIES_KEY, "tdp_w", "begin", "count")
    )
