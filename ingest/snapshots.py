"""Accounting files that overlap: rewritten snapshots may lose no job, and a job of two files is kept once.

sacct shows what was active in a window, so that files of two windows share the jobs across their border; and a snapshot
of a day is rewritten until its last job has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import polars as pl

from ingest.parts import read_part, write_frame
from ingest.records import CommitSpec, Held, ScanResult
from ingest.staging import Staging, conform_pieces

_KEY: Final = ["job_id", "attempt"]


def find_lost_jobs(spec: CommitSpec, live: pl.DataFrame, fresh: pl.DataFrame) -> tuple[Held, ...]:
    """Return why accounting files cannot be taken that no longer have a job that the lake has of them."""
    replaced = [r.name for r in spec.records if r.kind == "sacct" and r.status == "replaced"]
    if spec.force or not replaced:
        return ()
    lost: list[Held] = []
    before, after = _keys(live, replaced), _keys(fresh, replaced)
    gone = before.select("input", "job_id").unique().join(after, on=["input", "job_id"], how="anti")
    for name, job_id, n in gone.group_by("input").agg(pl.col("job_id").min(), pl.len()).iter_rows():
        lost.append(Held("shrunken", f"{n} of its jobs are gone, as {job_id}", name, name))
    return tuple(lost)


def _keys(pieces: pl.DataFrame, inputs: Iterable[str] | None = None) -> pl.DataFrame:
    """Return job_id, attempt, input, part, and row in the part, of the rows of ``jobs`` in some pieces."""
    mine = pieces.filter(pl.col("table") == "jobs")
    if inputs is not None:
        mine = mine.filter(pl.col("input").is_in(list(inputs)))
    frames = [pl.DataFrame(schema={"job_id": pl.Int64, "attempt": pl.Int32, "input": pl.String, "part": pl.String})]
    for part, group in mine.group_by("part"):
        keys = read_part(str(part[0]), columns=_KEY)
        for piece in group.iter_rows(named=True):
            rows = keys.slice(piece["row_start"], piece["rows"])
            frames.append(rows.with_columns(input=pl.lit(piece["input"]), part=pl.lit(piece["part"])))
    return pl.concat(frames)


def without_known_jobs(spec: CommitSpec, live: pl.DataFrame, fresh: pl.DataFrame) -> tuple[CommitSpec, pl.DataFrame]:
    """Return what was staged without the rows of accounting files whose job another file has; they are quarantined."""
    accounting = {r.name for r in spec.records if r.kind == "sacct" and r.is_taken}
    if not accounting:
        return spec, fresh
    replaced = {r.name for r in spec.records if r.status == "replaced"}
    stays = live.filter((pl.col("table") == "jobs") & ~pl.col("input").is_in(sorted(replaced)))
    others = pl.concat([stays, fresh.filter(~pl.col("input").is_in(sorted(accounting)))])
    taken = pl.concat([_keys(others), _keys(fresh, accounting).sort("input", maintain_order=True)])
    repeated = taken.filter(~pl.struct(_KEY).is_first_distinct()).join(
        fresh.select("part").unique(), on="part", how="semi"
    )
    if not repeated.height:
        return spec, fresh
    names = taken.unique(_KEY, keep="first", maintain_order=True).select(*_KEY, owner="input")
    repeated = repeated.join(names, on=_KEY, how="left")
    results = [_without(result, repeated, spec.staging, i) for i, result in enumerate(spec.results)]
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


def _without(result: ScanResult, repeated: pl.DataFrame, folder: str, number: int) -> ScanResult:
    """Return one task's result with the parts written anew that have repeated rows."""
    touched = {p.path for p in result.parts} & set(repeated["part"])
    if not touched:
        return result
    staging = Staging(folder, f"{result.part}-once-{number:05d}")
    pieces = read_part(result.pieces)
    for piece in pieces.filter(pl.col("part").is_in(sorted(touched))).iter_rows(named=True):
        name = piece["input"]
        known = repeated.filter((pl.col("input") == name) & (pl.col("part") == piece["part"])).select(*_KEY, "owner")
        rows = read_part(piece["part"], piece["row_start"], piece["rows"])
        kept = rows.join(known, on=_KEY, how="anti", maintain_order="left")
        staging.store("jobs", kept.with_columns(file=pl.lit(0, pl.Int32)), [name])
        staging.close_parts()
        for row in rows.join(known, on=_KEY, how="inner", maintain_order="left").iter_rows(named=True):
            owner = row.pop("owner")
            raw = ",".join(f"{column}={value}" for column, value in row.items() if value is not None)
            staging.reject([(name, None, 1, "jobs", "repeated_row", f"in {owner}", raw)])
            staging.counts[name, row["job_id"], "repeated_row", f"in {owner}"] += 1
    parts, path = staging.finish()
    again = [read_part(path)] if path else []
    kept_pieces = pl.concat([pieces.filter(~pl.col("part").is_in(sorted(touched))), *again])
    kept_path = Path(folder) / f"{result.part}-once-{number:05d}.kept.parquet"  # the commit may come this way again
    write_frame(kept_path, kept_pieces, durable=False)
    return replace(
        result,
        pieces=str(kept_path),
        parts=(*(p for p in result.parts if p.path not in touched), *parts),
        counts={**result.counts, **staging.counts},
    )
