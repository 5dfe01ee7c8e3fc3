"""Why rows of a lake were refused, or remarked upon: file by file, out of ``quality`` and ``quarantine``."""

from __future__ import annotations

import polars as pl

from ingest.quality import DEFECT, REASONS

_KEY = ["cluster", "file", "reason", "detail"]


def list_reasons(
    quality: pl.LazyFrame, quarantine: pl.LazyFrame, *, reason: str | None = None, notices: bool = False
) -> pl.DataFrame:
    """Return one row for each file, reason code and detail: how often, and the first line that was refused for it.

    Parameters
    ----------
    quality, quarantine : tables of a lake; ``quality`` counts the rows in quarantine too
    reason : only this one
    notices : what is only worth a remark too; a notice that is asked for by ``reason`` is there anyway

    Returns
    -------
    frame with cluster, reason, file, count, rows_quarantined, line, detail, raw, meaning
        ``line`` and ``raw`` are null where no row was refused, or the whole file was.
    """
    wanted = pl.col("reason").is_in([code for code, (weight, _) in REASONS.items() if notices or weight == DEFECT])
    if reason is not None:
        wanted = pl.col("reason") == reason
    counted = quality.filter(wanted).group_by(_KEY).agg(pl.col("count").sum()).collect()
    first = pl.struct("line", "raw", "detail").sort_by("line", nulls_last=True).first()
    refused = (
        _with_counted_detail(quarantine.filter(wanted), counted.lazy())
        .group_by(*_KEY[:3], "counted")
        .agg(pl.col("rows").sum(), first.alias("first"))
        .with_columns(pl.col("first").struct.field("line", "raw"), pl.col("first").struct.field("detail").alias("said"))
        .collect()
    )
    joined = counted.join(
        refused, left_on=_KEY, right_on=[*_KEY[:3], "counted"], how="full", coalesce=True, nulls_equal=True
    )
    meanings = {code: meaning for code, (_, meaning) in REASONS.items()}
    return (
        joined.with_columns(
            pl.coalesce("count", "rows").alias("count"),
            pl.col("rows").fill_null(0).alias("rows_quarantined"),
            pl.coalesce("said", "detail").alias("detail"),
            pl.col("reason").replace_strict(meanings, default=None, return_dtype=pl.String).alias("meaning"),
        )
        .select("cluster", "reason", "file", "count", "rows_quarantined", "line", "detail", "raw", "meaning")
        .sort("rows_quarantined", "count", "cluster", "file", "reason", "detail", descending=[True, True, *[False] * 4])
    )


def _with_counted_detail(refused: pl.LazyFrame, counted: pl.LazyFrame) -> pl.LazyFrame:
    """Return refused rows with ``counted``, the detail under which they were counted: their own, or none."""
    own = counted.select(_KEY).with_columns(counted=pl.col("detail"))
    return refused.join(own, on=_KEY, how="left").with_columns(pl.col("counted").fill_null(""))
