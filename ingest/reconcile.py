"""What the lake will hold: new pieces against those that are there. Pure: index frames in, a plan out.

A series must end up once. Where several files, an extended file, or overlapping pieces tell of one series, it is
merged; the parts that it touches are rewritten without it and with the result. A part that loses pieces of a replaced
file is rewritten too. Everything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

import polars as pl

from ingest.schemas import SERIES_KEY

SEPARATOR = "\n"
"""Between the names of several input files of one piece."""

FORGOTTEN: Final = "a removed segment"
"""Stands for the name of an input file that only the lake has now, and that nobody will bring again."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One part to be written anew.

    ``old`` is the part that it replaces ('' where there is none). ``pieces`` says by ``role`` what becomes of each:
    ``kept`` is copied; ``base`` and ``extended`` are merged series by series. ``is_live`` marks those that the lake has
    already.
    """

    table: str
    old: str
    pieces: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of the parts: rewrites, parts that go without replacement, and series whose minutes are void.

    ``left`` are the pieces of GPU samples that go, of series that are not merged; ``stays`` those of the lake that do
    not.
    """

    rewrites: tuple[Rewrite, ...]
    gone_parts: frozenset[str]
    touched_parts: frozenset[str]
    void_series: pl.DataFrame
    merged_series: pl.DataFrame
    left: pl.DataFrame
    stays: pl.DataFrame


def companions(live: pl.DataFrame) -> list[set[str]]:
    """Return the sets of inputs that share series, directly or through one another."""
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while (higher := above.setdefault(name, name)) != name:
            above[name] = above[higher]  # half the way for whoever comes next
            name = higher
        return name

    for entry in live.filter(pl.col("input").str.contains(SEPARATOR, literal=True))["input"].unique():
        first, *others = entry.split(SEPARATOR)
        for name in others:
            above[top(name)] = top(first)
    found: dict[str, set[str]] = {}
    for name in above:
        found.setdefault(top(name), set()).add(name)
    return list(found.values())


_KEPT, _BASE, _EXTENDED = (pl.lit(role) for role in ("kept", "base", "extended"))


def reconcile(
    live: pl.DataFrame, new: pl.DataFrame, replaced: Iterable[str], appending: Collection[str] = frozenset()
) -> Plan:
    """Return the plan for one cluster; the same for the same pieces.

    Parameters
    ----------
    live, new : pieces (`ingest.staging.PIECES_SCHEMA`), ``part`` a path that tells them apart
    replaced : names of the input files whose old rows go
    appending : names of input files that go on where others of their series ended; only an overlap must be merged
    """
    live, new = (pieces.with_columns(is_live=pl.lit(flag)) for pieces, flag in ((live, True), (new, False)))
    gone = has_any(live, set(replaced))
    stays, leaves = live.filter(~gone), live.filter(gone)
    key = list(SERIES_KEY)
    is_gpu = pl.col("table") == "gpu_samples"
    new_gpu = new.filter(is_gpu)
    base = pl.concat([stays.filter(is_gpu), new_gpu.filter(~pl.col("extended"))])
    extended = new_gpu.filter(pl.col("extended"))
    conflicts = _conflicting(base, extended, appending)
    merged = base.join(conflicts, on=key, how="semi", nulls_equal=True)
    others = pl.concat([stays, new]).filter(~is_gpu)
    kept = pl.concat([others, base.join(conflicts, on=key, how="anti", nulls_equal=True)])
    touched = set(leaves["part"]) | set(merged["part"])
    in_order = merged.sort([*key, "first_time", "part", "row_start"])
    owner = in_order.unique(key, keep="first").select(*key, pl.col("part").alias("owner"))
    tables = dict(pl.concat([leaves, merged]).select("part", "table").unique().iter_rows())
    tasks = pl.concat(
        [
            kept.filter(pl.col("part").is_in(list(touched))).with_columns(pl.col("part").alias("owner"), role=_KEPT),
            merged.join(owner, on=key, how="left", nulls_equal=True).with_columns(role=_BASE),
            extended.join(owner, on=key, how="left", nulls_equal=True).with_columns(role=_EXTENDED),
        ]
    ).with_columns(pl.col("owner").fill_null(""))
    by_owner = {str(part): pieces for (part,), pieces in tasks.partition_by("owner", as_dict=True).items()}
    rewrites = [
        Rewrite(tables.get(part, "gpu_samples"), part, by_owner[part].drop("owner")) for part in sorted(by_owner)
    ]
    gone_parts = touched - by_owner.keys()
    unmerged = [frame.filter(is_gpu).join(conflicts, on=key, how="anti", nulls_equal=True) for frame in (leaves, stays)]
    left, others = (frame.filter(~pl.col("extended")).drop("is_live") for frame in unmerged)
    void = left.join(others, on=key, how="anti", nulls_equal=True)
    return Plan(
        tuple(rewrites),
        frozenset(gone_parts | set(extended["part"])),
        frozenset(touched),
        pl.concat([void.select(key), conflicts.select(key)]).unique(),
        conflicts.select(key),
        left.join(others, on=key, how="semi", nulls_equal=True),
        others,
    )


def has_any(pieces: pl.DataFrame, names: set[str]) -> pl.Series:
    """Return which pieces have one of the named inputs."""
    if not names or not pieces.height:
        return pl.Series([False] * pieces.height, dtype=pl.Boolean)
    inputs = pieces["input"].unique().to_list()
    hit = [value for value in inputs if not names.isdisjoint(value.split(SEPARATOR))]
    return pieces["input"].is_in(hit)


def _conflicting(base: pl.DataFrame, extended: pl.DataFrame, appending: Collection[str]) -> pl.DataFrame:
    """Return the keys of the series that must be merged."""
    key = list(SERIES_KEY)
    names = {FORGOTTEN, *appending}
    entries = base["input"].unique().to_list()
    go_on = [entry for entry in entries if names.issuperset(entry.split(SEPARATOR))]
    origin = pl.when(pl.col("input").is_in(go_on)).then(pl.lit(FORGOTTEN)).otherwise("input").alias("input")
    in_order = base.select(*key, origin, "first_time", "last_time").sort([*key, "first_time"])
    overlap = (pl.col("first_time") <= pl.col("last_time").shift().cum_max().over(key)).fill_null(False)
    found = (
        in_order.with_columns(overlap.alias("overlap"))
        .group_by(key)
        .agg((pl.col("overlap").any() | (pl.col("input").n_unique() > 1)).alias("conflict"))
        .filter("conflict")
    )
    return pl.concat([found.select(key), extended.select(key)]).unique()
