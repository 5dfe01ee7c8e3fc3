"""The minutes of series that lose a file and keep others: which are void, and what the files that stay have of them."""

from __future__ import annotations

import numpy as np
import polars as pl

from ingest.parts import PartReader
from ingest.rollup import join_minutes
from ingest.schemas import GPU_MINUTES, SERIES_KEY
from ingest.summaries import minutes_frame, summarise

MINUTE_KEY = [*SERIES_KEY, "minute"]

_MINUTE = pl.col("time").dt.truncate("1m").alias("minute")


def left_minutes(left: pl.DataFrame) -> pl.DataFrame:
    """Return the keys of the minutes in which pieces lie that go.

    Parameters
    ----------
    left : pieces with the series key, first_time and last_time
    """
    first, last = (pl.col(name).dt.truncate("1m") for name in ("first_time", "last_time"))
    spans = left.select(*SERIES_KEY, minute=pl.datetime_ranges(first, last, "1m"))
    return spans.explode("minute").drop_nulls("minute").unique()


def minutes_of_pieces(pieces: pl.DataFrame, wanted: pl.DataFrame) -> pl.DataFrame:
    """Return rows of ``gpu_minutes`` made anew from pieces of GPU samples, of some minutes alone.

    Parameters
    ----------
    pieces : ``part`` a path
    wanted : keys of minutes
    """
    around = wanted.group_by(SERIES_KEY).agg(
        pl.col("minute").min().alias("from"), (pl.col("minute").max() + pl.duration(minutes=1)).alias("until")
    )
    near = pieces.join(around, on=SERIES_KEY, how="inner", nulls_equal=True)
    near = near.filter((pl.col("first_time") < pl.col("until")) & (pl.col("last_time") >= pl.col("from")))
    reader, found = PartReader(), [GPU_MINUTES.empty()]
    for part, start, rows in near.sort("part", "row_start").select("part", "row_start", "rows").iter_rows():
        for frame in reader.frames(part, start, rows):
            key = frame.head(1).select(SERIES_KEY)
            mine = wanted.join(key, on=SERIES_KEY, how="semi", nulls_equal=True)
            inside = frame.filter(frame.select(_MINUTE).to_series().is_in(mine["minute"].implode()))
            if inside.height:
                found.append(minutes_frame([summarise(inside, np.zeros(1, np.int64))]))
    return join_minutes(pl.concat(found))
