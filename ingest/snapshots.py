"""Accounting files that overlap: a job (or label) of two files is kept once.

sacct shows what was active in a window, so that files of two windows share the jobs across their border.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import polars as pl

from ingest.parts import read_part, write_frame
from ingest.records import CommitSpec, ScanResult
from ingest.schemas import TABLES
from ingest.sources.kinds import GIVING_WAY
from ingest.staging import Staging, conform_pieces

_KEYS: Final = {table: list(TABLES[table].key) for table in GIVING_WAY}


def _keys(table: str, pieces: pl.DataFrame, inputs: Iterable[str] | None = None) -> pl.DataFrame:
    """Return the key, input and part of the rows of a table in some pieces."""
    key = _KEYS[table]
    mine = pieces.filter(pl.col("table") == table)
    if inputs is not None:
        mine = mine.filter(pl.col("input").is_in(list(inputs)))
    types = {name: TABLES[table].columns[name] for name in key}
    frames = [pl.DataFrame(schema={**types, "input": pl.String(), "part": pl.String()})]
    for part, group in mine.group_by("part"):
        keys = read_part(str(part[0]), columns=key)
        for piece in group.iter_rows(named=True):
            rows = keys.slice(piece["row_start"], piece["rows"])
            frames.append(rows.with_columns(input=pl.lit(piece["input"]), part=pl.lit(piece["part"])))
    return pl.concat(frames)


def without_known_rows(spec: CommitSpec, live: pl.DataFrame, fresh: pl.DataFrame) -> tuple[CommitSpec, pl.DataFrame]:
    """Return what was staged without the rows, of kinds that give way, whose key another file has: quarantined."""
    for table in GIVING_WAY:
        spec, fresh = _without_known(table, spec, live, fresh)
    return spec, fresh


def _without_known(
    table: str, spec: CommitSpec, live: pl.DataFrame, fresh: pl.DataFrame
) -> tuple[CommitSpec, pl.DataFrame]:
    key = _KEYS[table]
    yielding = {r.name for r in spec.records if r.kind in GIVING_WAY[table] and r.is_taken}
    if not yielding:
        return spec, fresh
    replaced = {r.name for r in spec.records if r.status == "replaced"}
    stays = live.filter((pl.col("table") == table) & ~pl.col("input").is_in(sorted(replaced)))
    others = pl.concat([stays, fresh.filter(~pl.col("input").is_in(sorted(yielding)))])
    taken = pl.concat([_keys(table, others), _keys(table, fresh, yielding).sort("input", maintain_order=True)])
    repeated = taken.filter(~pl.struct(key).is_first_distinct()).join(
        fresh.select("part").unique(), on="part", how="semi"
    )
    if not repeated.height:
        return spec, fresh
    names = taken.unique(key, keep="first", maintain_order=True).select(*key, owner="input")
    repeated = repeated.join(names, on=key, how="left")
    results = [_without(table, result, repeated, spec.staging, i) for i, result in enumerate(spec.results)]
    lost: Mapping[str, int] = dict(repeated.group_by("input").len().iter_rows())
    records = tuple(
        replace(r, rows_out=r.rows_out - lost.get(r.name, 0), rows_quarantined=r.rows_quarantined + lost.get(r.name, 0))
        for r in spec.records
    )
    new = [read_part(r.pieces) for r in results if r.pieces]
    return (
        replace(spec, results=tuple(results), records=records),
        pl.concat(new) if new else conform_pieces(fresh.clear()),
    )


def _without(table: str, result: ScanResult, repeated: pl.DataFrame, folder: str, number: int) -> ScanResult:
    """Return one task's result with the parts written anew that have repeated rows."""
    touched = {p.path for p in result.parts} & set(repeated["part"])
    if not touched:
        return result
    key, stem = _KEYS[table], f"{result.part}-{table}-once-{number:05d}"
    staging = Staging(folder, stem)
    pieces = read_part(result.pieces)
    for piece in pieces.filter(pl.col("part").is_in(sorted(touched))).iter_rows(named=True):
        name = piece["input"]
        known = repeated.filter((pl.col("input") == name) & (pl.col("part") == piece["part"])).select(*key, "owner")
        rows = read_part(piece["part"], piece["row_start"], piece["rows"])
        kept = rows.join(known, on=key, how="anti", maintain_order="left")
        staging.store(table, kept.with_columns(file=pl.lit(0, pl.Int32)), [name])
        staging.close_parts()
        for row in rows.join(known, on=key, how="inner", maintain_order="left").iter_rows(named=True):
            owner = row.pop("owner")
            raw = ",".join(f"{column}={value}" for column, value in row.items() if value is not None)
            staging.reject([(name, None, 1, table, "repeated_row", f"in {owner}", raw)])
            staging.counts[name, row["job_id"], "repeated_row", f"in {owner}"] += 1
    parts, path = staging.finish()
    again = [read_part(path)] if path else []
    kept_pieces = pl.concat([pieces.filter(~pl.col("part").is_in(sorted(touched))), *again])
    kept_path = Path(folder) / f"{stem}.kept.parquet"  # the commit may come this way again
    write_frame(kept_path, kept_pieces, durable=False)
    return replace(
        result,
        pieces=str(kept_path),
        parts=(*(p for p in result.parts if p.path not in touched), *parts),
        counts={**result.counts, **staging.counts},
    )
