"""One GPU told of twice, by the collector of its node and by Prometheus: the collector's rows go before.

Snapshots of Prometheus give way for the time that the collector covers, whatever job either of them names, and fill the
time in which there was no collector. Otherwise a GPU's energy would be there twice: once with its job, and once without
where the exporter knew none. Rows that give way are counted as merged, and stay in their snapshot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import polars as pl

from ingest.manifest import NO_PART
from ingest.memory import give_back_heap
from ingest.parts import PartReader, read_part, write_frame
from ingest.quality import MAX_GAP_S
from ingest.reconcile import FORGOTTEN, SEPARATOR, companions, has_any
from ingest.records import CommitSpec, CountKey, FileRecord, ScanResult
from ingest.schemas import DEVICE_KEY
from ingest.sources.spool_files import classify_spool, is_segment
from ingest.staging import Staging, conform_pieces

REASON: Final = "collector_has_them"
DOUBLED: Final = "two_collectors"

CUT_ROWS: Final = 32_768
"""Rows are looked at, and stored again, when so many are at hand."""

_DEVICE: Final = list(DEVICE_KEY)
_GAP: Final = pl.duration(microseconds=round(MAX_GAP_S * 1e6))


@dataclass(frozen=True, slots=True)
class Yielded:
    """What was staged, without the rows that give way.

    ``renewed``: records of snapshots that the lake has already and whose rows were staged anew; their old pieces go.
    """

    spec: CommitSpec
    fresh: pl.DataFrame
    renewed: Mapping[str, FileRecord] = field(default_factory=dict)
    doubled: Mapping[CountKey, int] = field(default_factory=dict)

    @property
    def counts(self) -> dict[CountKey, int]:
        """How many rows of each snapshot gave way, and of which two collectors tell, as observations."""
        records = (*(r for r in self.spec.records if r.is_taken and _is_yielding(r.name)), *self.renewed.values())
        return {**{(r.name, None, REASON, ""): r.rows_merged for r in records if r.rows_merged}, **self.doubled}


def give_way(spec: CommitSpec, inputs: pl.DataFrame, live: pl.DataFrame, fresh: pl.DataFrame) -> Yielded:
    """Return what was staged, and what the lake has, without snapshots' rows of times that a collector covers.

    Parameters
    ----------
    inputs : what the lake remembers of the cluster's input files
    live, fresh : pieces of the lake's parts, and of what was staged
    """
    gone = {r.name for r in spec.records if r.status == "replaced"}
    stays = live.filter(~has_any(live, gone) & (pl.col("table") == "gpu_samples"))
    new = fresh.filter(pl.col("table") == "gpu_samples")
    collected, come = _of(new, _is_collected), _of(new, _is_yielding)
    old = _near(_of(stays, _is_yielding), collected)
    twice = find_doubled(collected, _near(_of(stays, _is_collected), collected))
    if not (come.height or old.height):
        return Yielded(spec, fresh, doubled=twice)
    around = _near(_of(stays, _is_collected), pl.concat([come, old]))
    covered = cover(_without_gaps(pl.concat([around, collected])))
    touched = set(_overlapping(come, covered)["part"])
    names = _with_companions(_overlapping(old, covered), stays)
    if not (touched or names):
        return Yielded(spec, fresh, doubled=twice)
    results, lost = [], Counter[str]()
    for result in spec.results:
        kept, dropped = _cut_staged(result, covered, touched, spec.staging)
        results.append(kept)
        lost.update(dropped)
    records, renewed = _settle(spec.records, lost), dict[str, FileRecord]()
    if names:
        cut, dropped = _cut(stays.filter(has_any(stays, names)), covered, spec.staging, "yielded")
        results.append(cut)
        renewed = _records(inputs.filter(pl.col("name").is_in(sorted(names))), dropped)
    pieces = [conform_pieces(read_part(r.pieces)) for r in results if r.pieces]
    spec = replace(spec, results=tuple(results), records=records)
    return Yielded(spec, pl.concat([fresh.clear(), *pieces]), renewed, twice)


def find_doubled(collected: pl.DataFrame, known: pl.DataFrame) -> dict[CountKey, int]:
    """Return the rows of collectors' pieces that meet the time of another run of a collector on their GPU, by file.

    Of segments that the lake has forgotten nobody knows of which run they are. They count as a run of their own: the
    segments of one run follow each other in time (unless its clock was set back), so what meets a forgotten one is
    another run's.

    Parameters
    ----------
    collected, known : pieces of segments that come, and of those that the lake has
    """
    if not collected.height:
        return {}
    runs = {entry: _run(entry) for entry in (*collected["input"].unique(), *known["input"].unique())}
    run = pl.col("input").replace_strict(runs, return_dtype=pl.String)
    columns = ["part", "row_start", "rows", "input", "gaps", "run", *_DEVICE, "first_time", "last_time"]
    come, there = (frame.with_columns(run=run).select(columns) for frame in (collected, known))
    twice = [come.clear()]
    for device, here in pl.concat([come, there]).partition_by(_DEVICE, as_dict=True).items():
        if here["run"].n_unique() > 1:
            mine = come.filter(*(pl.col(name) == value for name, value in zip(_DEVICE, device, strict=True)))
            twice.append(_meeting(mine, here))
    found = Counter[CountKey]()
    for entry, rows in pl.concat(twice).select("input", "rows").sort("input").iter_rows():
        found[entry.split(SEPARATOR)[0], None, DOUBLED, ""] += rows
    return dict(found)


def _meeting(pieces: pl.DataFrame, here: pl.DataFrame) -> pl.DataFrame:
    """Return the pieces of one GPU that meet what another of its runs covers, by more than a second."""
    second = pl.duration(seconds=1)
    covered = pl.concat(
        cover(_without_gaps(of_run)).select(other=pl.lit(run, pl.String), after=pl.col("first") + second, last="last")
        for (run,), of_run in here.group_by("run", maintain_order=True)
    )
    stretches = _without_gaps(pieces, ["part", "row_start", "run"])
    long = stretches.filter(pl.col("last_time") - pl.col("first_time") > second)
    met = long.with_columns(until=pl.col("first_time") + second).join_where(
        covered.filter(pl.col("last") > pl.col("after")),
        pl.col("last_time") > pl.col("after"),
        pl.col("until") < pl.col("last"),
        pl.col("run") != pl.col("other"),
    )
    return pieces.join(met, on=["part", "row_start"], how="semi")


def _run(entry: str) -> str:
    """Return which run of a collector wrote a piece's segments; those of forgotten ones count as one run's."""
    names = entry.split(SEPARATOR)
    if FORGOTTEN in names:
        return FORGOTTEN
    return ",".join(sorted({name.rpartition("-")[0].rpartition("/")[2] for name in names}))


def cover(pieces: pl.DataFrame) -> pl.DataFrame:
    """Return the times that pieces cover: node, gpu_index, ``first`` and ``last``; steps up to MAX_GAP_S are covered.

    >>> from datetime import datetime as at
    >>> times = [at(2026, 1, 1, 0, 0, 0), at(2026, 1, 1, 0, 0, 9), at(2026, 1, 1, 0, 1, 0)]
    >>> on = {"node": ["n"] * 3, "gpu_index": [0] * 3}
    >>> cover(pl.DataFrame({**on, "first_time": times, "last_time": times}))["last"].dt.second().to_list()
    [9, 0]
    """
    ordered = pieces.sort(*_DEVICE, "first_time")
    reached = pl.col("last_time").cum_max().shift().over(_DEVICE)
    begins = (pl.col("first_time") > reached + _GAP).fill_null(True)
    spans = ordered.with_columns(begins.cum_sum().alias("span")).group_by(*_DEVICE, "span", maintain_order=True)
    return spans.agg(pl.col("first_time").min().alias("first"), pl.col("last_time").max().alias("last")).drop("span")


def _without_gaps(pieces: pl.DataFrame, also: Sequence[str] = ()) -> pl.DataFrame:
    """Return the times of pieces, those with steps over `MAX_GAP_S` cut there, but for rows that are gone.

    Parameters
    ----------
    also : further columns that each stretch has as its piece has them
    """
    columns = [*_DEVICE, *also, "first_time", "last_time"]
    gapped = (pl.col("gaps") > 0) & (pl.col("part") != NO_PART)
    stretches = [pieces.filter(~gapped.fill_null(False)).select(columns)]
    reader = PartReader(keep=1)
    for piece in pieces.filter(gapped).sort("part", "row_start").iter_rows(named=True):
        frames = reader.frames(piece["part"], piece["row_start"], piece["rows"], ["time"])
        times = pl.concat(list(frames)).sort("time")
        number = (pl.col("time").diff() > _GAP).fill_null(False).cum_sum()
        of_each = times.group_by(number.alias("stretch"), maintain_order=True).agg(
            pl.col("time").min().alias("first_time"), pl.col("time").max().alias("last_time")
        )
        told = [pl.lit(piece[name], pieces.schema[name]).alias(name) for name in (*_DEVICE, *also)]
        stretches.append(of_each.with_columns(told).select(columns))
    return pl.concat(stretches)


def _is_collected(entry: str) -> bool:
    """Return whether a piece's rows are a collector's, by the names of its inputs."""
    return all(name == FORGOTTEN or is_segment(name) for name in entry.split(SEPARATOR))


def _is_yielding(entry: str) -> bool:
    """Return whether a piece's rows are snapshots', by the names of its inputs."""
    names = entry.split(SEPARATOR)
    return all(classify_spool(name) == "spool_gpu" and not is_segment(name) for name in names)


def _of(pieces: pl.DataFrame, is_one: Callable[[str], bool]) -> pl.DataFrame:
    """Return the pieces of a kind, told by the names of their inputs."""
    return pieces.filter(pl.col("input").is_in([entry for entry in pieces["input"].unique() if is_one(entry)]))


def _near(pieces: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """Return the pieces of the devices of some others, and of about their time."""
    around = others.group_by(_DEVICE).agg(
        pl.col("first_time").min().alias("from"), pl.col("last_time").max().alias("to")
    )
    both = pieces.join(around, on=_DEVICE, how="inner")
    is_near = (pl.col("first_time") <= pl.col("to") + _GAP) & (pl.col("last_time") >= pl.col("from") - _GAP)
    return both.filter(is_near).drop("from", "to")


def _overlapping(pieces: pl.DataFrame, covered: pl.DataFrame) -> pl.DataFrame:
    both = pieces.join(covered, on=_DEVICE, how="inner")
    overlap = both.filter((pl.col("first_time") <= pl.col("last")) & (pl.col("last_time") >= pl.col("first")))
    return overlap.drop("first", "last").unique(["part", "row_start"])


def _with_companions(pieces: pl.DataFrame, live: pl.DataFrame) -> set[str]:
    """Return the snapshots of some pieces, with those that share series with them."""
    names = {name for entry in pieces["input"] for name in entry.split(SEPARATOR)}
    for group in companions(live) if names else ():
        if not group.isdisjoint(names):
            names = names | group if all(map(_is_yielding, group)) else names - group
    return names


def _cut_staged(
    result: ScanResult, covered: pl.DataFrame, touched: set[str], folder: str
) -> tuple[ScanResult, Counter[str]]:
    """Return one task's result without the rows that give way, and how many these are, by input."""
    if touched.isdisjoint(part.path for part in result.parts):
        return result, Counter()
    every = read_part(result.pieces)
    samples = every.filter(pl.col("table") == "gpu_samples")
    cut, dropped = _cut(samples, covered, folder, f"{result.part}-yielded")
    others = tuple(part for part in result.parts if part.table not in ("gpu_samples", "gpu_minutes"))
    rest = every.filter(pl.col("table") != "gpu_samples")
    pieces = pl.concat([rest, *([conform_pieces(read_part(cut.pieces))] if cut.pieces else [])])
    again = Path(folder) / f"{result.part}-yielded.kept.parquet"  # the commit may come this way again
    write_frame(again, pieces, durable=False)
    return replace(result, parts=(*others, *cut.parts), pieces=str(again)), dropped


def _cut(pieces: pl.DataFrame, covered: pl.DataFrame, folder: str, name: str) -> tuple[ScanResult, Counter[str]]:
    """Stage the rows of pieces but for those of snapshots that are covered; return also how many these are, by input.

    A snapshot's rows before and after a covered time become pieces of their own, so that no two pieces overlap.
    """
    staging, dropped = Staging(folder, name), Counter[str]()
    for _, mine in pieces.sort("part", "row_start").group_by("part", maintain_order=True):
        entries = mine["input"].to_list()
        yields = pl.Series([_is_yielding(entry) for entry in entries], dtype=pl.Boolean)
        for rows in _batches(mine):
            placed = _place(rows, covered)
            goes = placed["covered"] & yields[placed["piece"]]
            for i, n in placed.filter(goes).group_by("piece").len().iter_rows():
                dropped[entries[i]] += n
            kept = placed.filter(~goes)
            runs = kept.select(pl.struct("piece", "stretch").rle_id().cast(pl.Int32).alias("file")).to_series()
            kept = kept.with_columns(runs)
            inputs = [entries[i] for i in kept.unique("file", keep="first", maintain_order=True)["piece"]]
            staging.store("gpu_samples", kept.drop("piece", "stretch", "covered"), inputs)
        staging.close_parts()
    parts, path = staging.finish()
    return ScanResult((), parts, path, {}, 0, name), dropped


def _batches(pieces: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield the rows of pieces with ``piece``, the number of theirs; not many more than `CUT_ROWS` at a time."""
    reader, waiting, height = PartReader(keep=1), list[pl.DataFrame](), 0
    for number, (part, start, rows) in enumerate(pieces.select("part", "row_start", "rows").iter_rows()):
        for frame in reader.frames(part, start, rows):
            waiting.append(frame.with_columns(piece=pl.lit(number, pl.Int32)))
            height += frame.height
            if height >= CUT_ROWS:
                yield pl.concat(waiting)
                waiting, height = [], 0
                give_back_heap()
    if waiting:
        yield pl.concat(waiting)


def _place(rows: pl.DataFrame, covered: pl.DataFrame) -> pl.DataFrame:
    """Return rows with ``covered``, and ``stretch``: the number of the covered time that last began before them."""
    spans = covered.sort("first").with_columns(stretch=pl.int_range(pl.len(), dtype=pl.Int32))
    numbered = rows.with_columns(at=pl.int_range(pl.len()), node=pl.col("node").cast(pl.String)).sort("time")
    placed = numbered.join_asof(spans, left_on="time", right_on="first", by=_DEVICE, check_sortedness=False).sort("at")
    is_covered = (pl.col("time") <= pl.col("last")).fill_null(False)
    return placed.with_columns(covered=is_covered, stretch=pl.col("stretch").fill_null(-1)).drop("at", "first", "last")


def _settle(records: Iterable[FileRecord], lost: Mapping[str, int]) -> tuple[FileRecord, ...]:
    """Return the records with the rows that gave way as merged."""
    return tuple(
        replace(r, rows_out=r.rows_out - lost.get(r.name, 0), rows_merged=r.rows_merged + lost.get(r.name, 0))
        for r in records
    )


def _records(inputs: pl.DataFrame, dropped: Mapping[str, int]) -> dict[str, FileRecord]:
    """Return records of snapshots as the lake knows them, less the rows that gave way."""
    found: dict[str, FileRecord] = {}
    left = Counter(dropped)
    names = [name for name in FileRecord.__dataclass_fields__ if name in inputs.columns]
    for row in inputs.select(names).iter_rows(named=True):
        record = FileRecord(**row, status="replaced")
        for entry in [entry for entry, n in left.items() if n and record.name in entry.split(SEPARATOR)]:
            n = min(left[entry], record.rows_out)
            left[entry] -= n
            (record,) = _settle([record], {record.name: n})
        found[record.name] = record
    return found
