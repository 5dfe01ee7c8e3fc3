"""What the lake will hold: new pieces against those that are there. Pure: index frames in, a plan out.

A series must end up once. Where several files, an extended file, or overlapping pieces tell of one series, it is
merged; the parts that it touches are rewritten without it and with the result. A part that loses pieces of a replaced
file is rewritten too. Everything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from ingest.schemas import SERIES_KEY

SEPARATOR = "\n"
"""Between the names of several input files of one piece."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One part to be written anew from kept pieces and merged series (frames of pieces).

    ``old`` is the part that it replaces ('' where there is none). ``kept`` is copied; ``base`` and ``extended`` are
    merged series by series. ``is_live`` marks the pieces that the lake has already.
    """

    table: str
    old: str
    kept: pl.DataFrame
    base: pl.DataFrame
    extended: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of the parts: rewrites, parts that go without replacement, and series whose minutes are void."""

    rewrites: tuple[Rewrite, ...]
    gone_parts: frozenset[str]
    touched_parts: frozenset[str]
    void_series: pl.DataFrame
    merged_series: pl.DataFrame


def companions(live: pl.DataFrame) -> list[set[str]]:
    """Return the sets of inputs that share series, directly or through one another."""
    found: list[set[str]] = []
    for entry in live.filter(pl.col("input").str.contains(SEPARATOR, literal=True))["input"].unique().sort():
        names = set(entry.split(SEPARATOR))
        apart = [group for group in found if names.isdisjoint(group)]
        found = [*apart, names.union(*(group for group in found if not names.isdisjoint(group)))]
    return found


def reconcile(live: pl.DataFrame, new: pl.DataFrame, replaced: Iterable[str]) -> Plan:
    """Return the plan for one cluster.

    Parameters
    ----------
    live, new : pieces (`ingest.staging.PIECES_SCHEMA`), ``part`` a path that tells them apart
    replaced : names of the input files whose old rows go
    """
    live, new = (pieces.with_columns(is_live=pl.lit(flag)) for pieces, flag in ((live, True), (new, False)))
    gone = _has_any(live, set(replaced))
    stays, leaves = live.filter(~gone), live.filter(gone)
    key = list(SERIES_KEY)
    is_gpu = pl.col("table") == "gpu_samples"
    new_gpu = new.filter(is_gpu)
    base = pl.concat([stays.filter(is_gpu), new_gpu.filter(~pl.col("extended"))])
    extended = new_gpu.filter(pl.col("extended"))
    conflicts = _conflicting(base, extended)
    merged = base.join(conflicts, on=key, how="semi", nulls_equal=True)
    others = pl.concat([stays, new]).filter(~is_gpu)
    kept = pl.concat([others, base.join(conflicts, on=key, how="anti", nulls_equal=True)])
    touched = set(leaves["part"]) | set(merged["part"])
    owner = (
        merged.sort([*key, "first_time"]).group_by(key, maintain_order=True).agg(pl.col("part").first().alias("owner"))
    )
    merged = merged.join(owner, on=key, how="left", nulls_equal=True)
    extended = extended.join(owner, on=key, how="left", nulls_equal=True)
    tables = dict(pl.concat([leaves, merged.drop("owner")]).select("part", "table").unique().iter_rows())
    rewrites, gone_parts = [], set()
    for part in sorted(touched):
        rewrite = Rewrite(
            tables[part],
            part,
            kept.filter(pl.col("part") == part),
            merged.filter(pl.col("owner") == part).drop("owner"),
            extended.filter(pl.col("owner") == part).drop("owner"),
        )
        if rewrite.kept.height or rewrite.base.height:
            rewrites.append(rewrite)
        else:
            gone_parts.add(part)
    orphans = extended.filter(pl.col("owner").is_null()).drop("owner")
    if orphans.height:
        rewrites.append(Rewrite("gpu_samples", "", kept.clear(), base.clear(), orphans))
    return Plan(
        tuple(rewrites),
        frozenset(gone_parts | set(extended["part"])),
        frozenset(touched),
        pl.concat([leaves.filter(is_gpu).select(key), conflicts.select(key)]).unique(),
        conflicts.select(key),
    )


def _has_any(pieces: pl.DataFrame, names: set[str]) -> pl.Series:
    """Return which pieces have one of the named inputs."""
    if not names or not pieces.height:
        return pl.Series([False] * pieces.height, dtype=pl.Boolean)
    inputs = pieces["input"].unique().to_list()
    hit = [value for value in inputs if not names.isdisjoint(value.split(SEPARATOR))]
    return pieces["input"].is_in(hit)


def _conflicting(base: pl.DataFrame, extended: pl.DataFrame) -> pl.DataFrame:
    """Return the keys of the series that must be merged."""
    key = list(SERIES_KEY)
    in_order = base.select(*key, "input", "first_time", "last_time").sort([*key, "first_time"])
    overlap = (pl.col("first_time") <= pl.col("last_time").shift().cum_max().over(key)).fill_null(False)
    found = (
        in_order.with_columns(overlap.alias("overlap"))
        .group_by(key)
        .agg((pl.col("overlap").any() | (pl.col("input").n_unique() > 1)).alias("conflict"))
        .filter("conflict")
    )
    return pl.concat([found.select(key), extended.select(key)]).unique()
