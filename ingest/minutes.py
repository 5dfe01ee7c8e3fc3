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


def void_spans(left: pl.DataFrame) -> pl.DataFrame:
    """Return the spans of minutes in which pieces lie that go: the series key, ``first`` and ``last``, apart.

    A piece may be as long as its clock was wrong; its minutes are never listed.

    Parameters
    ----------
    left : pieces with the series key, first_time and last_time
    """
    first, last = (pl.col(name).dt.truncate("1m") for name in ("first_time", "last_time"))
    ordered = left.select(*SERIES_KEY, first=first, last=last).drop_nulls("first").sort(*SERIES_KEY, "first")
    reached = pl.col("last").cum_max().shift().over(SERIES_KEY)
    begins = (pl.col("first") > reached).fill_null(True)
    spans = ordered.with_columns(begins.cum_sum().alias("span")).group_by(*SERIES_KEY, "span", maintain_order=True)
    return spans.agg(pl.col("first").min(), pl.col("last").max()).drop("span")


def meet_spans(rows: pl.DataFrame, spans: pl.DataFrame, first: pl.Expr, last: pl.Expr) -> pl.Series:
    """Return which rows meet a span of their series.

    Parameters
    ----------
    rows : with the series key
    spans : as from `void_spans`
    first, last : of ``rows``, their first and last minute
    """
    series = spans.select(SERIES_KEY).unique(maintain_order=True).with_row_index("series")
    numbered = rows.select(*SERIES_KEY, begin=first, end=last).with_row_index("at")
    numbered = numbered.join(series, on=SERIES_KEY, how="left", nulls_equal=True).select("at", "series", "begin", "end")
    theirs = spans.join(series, on=SERIES_KEY, nulls_equal=True).select("series", "first", "last").sort("first")
    placed = numbered.sort("end").join_asof(
        theirs, left_on="end", right_on="first", by="series", check_sortedness=False
    )
    return placed.sort("at").select((pl.col("last") >= pl.col("begin")).fill_null(False)).to_series()


def minutes_of_pieces(pieces: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """Return rows of ``gpu_minutes`` made anew from pieces of GPU samples, of the minutes in some spans alone.

    Parameters
    ----------
    pieces : ``part`` a path
    spans : as from `void_spans`
    """
    first, last = (pl.col(name).dt.truncate("1m") for name in ("first_time", "last_time"))
    near = pieces.filter(meet_spans(pieces, spans, first, last))
    reader, found = PartReader(), [GPU_MINUTES.empty()]
    for part, start, rows in near.sort("part", "row_start").select("part", "row_start", "rows").iter_rows():
        for frame in reader.frames(part, start, rows):
            minute = frame.select(_MINUTE).to_series()
            mine = frame.head(1).select(SERIES_KEY).join(minute.unique().to_frame(), how="cross")
            mine = mine.filter(meet_spans(mine, spans, pl.col("minute"), pl.col("minute")))
            inside = frame.filter(minute.is_in(mine["minute"].implode()))
            if inside.height:
                found.append(minutes_frame([summarise(inside, np.zeros(1, np.int64))]))
    return join_minutes(pl.concat(found))
