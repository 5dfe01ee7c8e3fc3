"""Small sources in the Supercloud layouts, and an ingest of them that checks all that must hold of every input."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pytest

from ingest.lake import Lake
from ingest.pipeline import IngestReport, ingest
from ingest.runner import SerialRunner
from ingest.sources.kinds import KINDS
from tests.gpu_files import HEADER

START_S = 1_600_000_000
"""Sample 0 of every made-up series is at this second."""

GPU_FILE = "gpu/0001/101-n1.csv"
EXTENDED_HEADER = "timestamp,gpu_index,power_average_W,energy_mJ,clock_sm_MHz,clock_memory_MHz"
CPU_HEADER = (
    "Step,Node,Series,ElapsedTime,EpochTime,CPUFrequency,CPUTime,CPUUtilization,RSS,VMSize,Pages,ReadMB,WriteMB"
)
NODE_HEADER = ",Node,Time,UserPIDCount,FSlatency,LoadAvg,MemoryFreeInactiveKB,LustreRPCTotals"
LOG_HEADER = (
    "id_job,id_array_job,id_array_task,id_user,kill_requid,nodes_alloc,nodelist,cpus_req,derived_ec,exit_code,gres_used,"
    "array_max_tasks,array_task_pending,constraints,flags,mem_req,partition,priority,state,timelimit,time_submit,"
    "time_eligible,time_start,time_end,time_suspended,track_steps,tres_alloc,tres_req,job_type"
)


@dataclass(frozen=True, slots=True)
class Taken:
    """A report, and the lake as it is after it."""

    report: IngestReport
    lake: Lake

    def rows(self, table: str, *columns: str) -> list[tuple[Any, ...]]:
        """All rows of a table, sorted."""
        return self.lake.scan(table).select(columns).collect().sort(*columns, nulls_last=False).rows()

    def powers(self) -> list[tuple[float, float | None]]:
        """Seconds since the start, and watts, of all GPU samples."""
        return seconds_and_watts(self.lake.scan("gpu_samples").collect().sort("time", "power_w"))

    def series(self, job_id: int = 101) -> list[tuple[float, float | None]]:
        """The same of one job, as the index finds it, in the order in which it is stored."""
        return seconds_and_watts(self.lake.read_series(job_id))

    def contents(self, *tables: str) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of some tables, but for the names of cluster and files."""
        found = {}
        for table in tables:
            names = self.lake.scan(table).collect_schema().names()
            found[table] = self.rows(table, *(name for name in names if name not in ("cluster", "file")))
        return found

    def rejected(self) -> list[tuple[str, int | None, str, str | None]]:
        """File, line, reason and raw line of all that is in quarantine."""
        return self.rows("quarantine", "file", "line", "reason", "raw")

    def refused(self) -> list[tuple[str, str, int]]:
        """File, reason and rows of the files that were refused whole."""
        found = self.lake.scan("quarantine").filter(pl.col("line").is_null() & pl.col("raw").is_null())
        return found.select("file", "reason", "rows").collect().sort("file", "reason").rows()

    def counted(self) -> dict[tuple[str, str], int]:
        """How often each reason and detail was counted, over all files and jobs."""
        found = self.lake.scan("quality").group_by("reason", "detail").agg(pl.col("count").sum()).collect()
        return {(reason, detail): n for reason, detail, n in found.iter_rows()}


def seconds_and_watts(samples: pl.DataFrame) -> list[tuple[float, float | None]]:
    """Seconds since the start, and watts."""
    micros = samples["time"].dt.timestamp("us").to_list()
    return [((us - START_S * 10**6) / 10**6, watts) for us, watts in zip(micros, samples["power_w"], strict=True)]


def take(source: Path, lake: Path, **options: Any) -> Taken:
    """Ingest, and check that no row is lost, in the report and in the lake, and that the lake is sound."""
    with mock.patch.object(os, "fsync"):  # what survives a crash is tested elsewhere
        report = ingest(str(source), lake, **{"runner": SerialRunner(), **options})
    taken = Taken(report, Lake(lake))
    for record in report.records:
        assert record.is_conserved, record
        assert min(record.rows_out, record.rows_quarantined, record.rows_merged, record.rows_unchanged) >= 0, record
    for name in ("rows_in", "rows_out", "rows_quarantined", "rows_merged", "rows_unchanged"):
        assert getattr(report, name) == sum(getattr(record, name) for record in report.records)
    assert taken.lake.check().problems == ()
    assert taken.lake.scan("quality").filter(pl.col("count") <= 0).collect().is_empty()
    _check_inputs(taken)
    return taken


def _check_inputs(taken: Taken) -> None:
    """Check that tables and quarantine have exactly the rows that the lake's inputs account for."""
    inputs = taken.lake.inputs().filter(pl.col("cluster") == taken.report.cluster)
    out: dict[str, int] = {}
    for kind, rows in inputs.select("kind", "rows_out").iter_rows():
        table = KINDS[kind].table if kind in KINDS else ""
        out[table] = out.get(table, 0) + rows
    assert out.pop("", 0) == 0
    cluster = taken.report.cluster
    assert out == {table: taken.lake.scan(table, cluster).collect().height for table in out}
    rejected = taken.lake.scan("quarantine", cluster).filter(pl.col("raw").is_not_null())
    by_file = dict(rejected.group_by("file").agg(pl.col("rows").sum()).collect().iter_rows())
    accounted = inputs.filter(pl.col("rows_quarantined") > 0).select("name", "rows_quarantined")
    assert by_file == dict(accounted.iter_rows())


def take_twice(source: Path, lake: Path, **options: Any) -> Taken:
    """Ingest, then ingest the same again, and check that this changes nothing."""
    first = take(source, lake, **options)
    files = snapshot(lake)
    second = take(source, lake, **options)
    assert second.report.generation == first.report.generation
    assert second.report.rows_unchanged == second.report.rows_in
    assert second.report.files_refused == first.report.files_refused
    assert snapshot(lake) == files
    return first


def read_in_pieces(patch: pytest.MonkeyPatch, *, chunk: int = 1000, piece: int, batch: int) -> None:
    """Let files of over ``chunk`` bytes be read like large ones: by the piece, and a batch of some pieces at a time."""
    for name, size in (("scan.CHUNK", chunk), ("scan.PIECE", piece), ("reading.PIECE", piece), ("rows.BATCH", batch)):
        patch.setattr(f"ingest.{name}_BYTES", size)


def read_in_shares(patch: pytest.MonkeyPatch, *, block: int) -> None:
    """Let large files of over two blocks be read by several tasks."""
    for module in ("plan", "checksum"):
        patch.setattr(f"ingest.{module}.BLOCK_BYTES", block)


def snapshot(lake: Path) -> Mapping[str, int]:
    """Every file of a lake with the time of its last change."""
    return {str(p.relative_to(lake)): p.stat().st_mtime_ns for p in lake.rglob("*") if p.is_file() and p.name != "LOCK"}


def write(root: Path, name: str, content: str | bytes) -> Path:
    """Write one file below ``root``."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*content: str) -> str:
    """Lines, each ended."""
    return "".join(line + "\n" for line in content)


def gpu_row(seconds: float, watts: object = 100, *, gpu: object = 0, util: object = 50, memory: object = 2000) -> str:
    """One sample as the release writes it."""
    return f"{START_S + seconds:.6f},{gpu},{util},10,30000,{memory},40,41,{watts},16"


def gpu_file(*rows: str, header: str = HEADER) -> str:
    """A file of GPU samples."""
    return lines(header, *rows)


def log_row(job_id: object = 101, **cells: object) -> str:
    """One row of the scheduler's log; cells by column."""
    usual = {
        "id_job": job_id,
        "id_array_job": 0,
        "id_array_task": 4294967294,
        "id_user": 7,
        "kill_requid": -1,
        "nodes_alloc": 1,
        "nodelist": "['n1']",
        "cpus_req": 40,
        "derived_ec": 0,
        "exit_code": 0,
        "gres_used": "gpu:2",
        "array_max_tasks": 0,
        "array_task_pending": 0,
        "constraints": "xeon-g6",
        "flags": 8,
        "mem_req": 384_000,
        "partition": "normal",
        "priority": 1000,
        "state": 3,
        "timelimit": 60,
        "time_submit": START_S - 100,
        "time_eligible": START_S - 100,
        "time_start": START_S - 10,
        "time_end": START_S + 1000,
        "time_suspended": 0,
        "track_steps": 0,
        "tres_alloc": '"1=40,2=384000,4=1,1002=2"',
        "tres_req": '"1=40,2=384000,4=1,1002=2"',
        "job_type": "BATCH",
    }
    return ",".join(str(value) for value in {**usual, **cells}.values())
