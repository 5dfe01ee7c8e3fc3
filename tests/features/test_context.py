"""What is read around windows: all that is near one, nothing else, however long the jobs are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.context import near, read_cpu_samples, read_node_parts, read_node_samples, time_parts
from features.job import CONTEXT_NAMES, CPU_COLUMNS, CPU_MARGIN_S, NODE_COLUMNS, context
from features.planning import plan
from ingest.errors import LakeError
from ingest.lake import Lake
from ingest.part_writer import PartWriter
from ingest.parts import PartReader, read_part
from ingest.schemas import CPU_SAMPLES, NODE_SAMPLES, TIME
from tests.features.lakes import variant
from tests.small_sources import take
from tests.spool_files import gpu_cells, make_spool, node_cells, write_segment

BEGIN = datetime(2021, 1, 1, tzinfo=UTC)
BEGIN_US = round(BEGIN.timestamp()) * 10**6


class Counting(PartReader):
    """A reader that counts the rows it gives."""

    rows = 0

    def frames(self, *arguments: Any, **options: Any) -> Iterator[pl.DataFrame]:
        for frame in super().frames(*arguments, **options):
            self.rows += frame.height
            yield frame


def windows_of(*rows: tuple[int, str, float, float]) -> pl.DataFrame:
    """Windows by job, node, and seconds since the beginning."""
    frame = pl.DataFrame(rows, schema=["job_id", "node", "start_s", "end_s"], orient="row")
    edges = [(BEGIN_US + pl.col(f"{name}_s") * 10**6).cast(pl.Int64).alias(f"{name}_us") for name in ("start", "end")]
    return frame.select("job_id", "node", *edges)


def write_cpu(path: Path, jobs: int, rows: int) -> pl.DataFrame:
    """Write jobs of two tasks each, a sample every 10 s, in row groups of 100 rows; return their pieces."""
    pieces = []
    with PartWriter(path, CPU_SAMPLES, stretches=True) as writer:
        for job_id in range(jobs):
            for task in ("0", "1"):
                fixed = {"job_id": [job_id] * rows, "node": "n1", "step": "batch", "task": task, "cpu_util_pct": 1.0}
                frame = CPU_SAMPLES.conform(
                    pl.DataFrame({**fixed, "time": [BEGIN + timedelta(seconds=10 * i) for i in range(rows)]})
                )
                first = writer.write(frame, range(0, rows, 100))
                pieces.append({"job_id": job_id, "part": str(path), "row_start": first, "rows": rows})
    return pl.DataFrame(pieces).with_columns(first_time=pl.lit(None, TIME), last_time=pl.lit(None, TIME))


def write_nodes(path: Path, nodes: list[str], rows: int) -> Path:
    """Write a sample every 300 s of some nodes, in row groups of 10 rows."""
    with PartWriter(path, NODE_SAMPLES, stretches=True) as writer:
        for node in nodes:
            times = [BEGIN + timedelta(seconds=300 * i) for i in range(rows)]
            frame = NODE_SAMPLES.conform(pl.DataFrame({"node": [node] * rows, "time": times, "load": 1.0}))
            writer.write(frame, range(0, rows, 10))
    return path


@pytest.mark.parametrize("rows", [500, 2_000])
def test_the_cpu_samples_read_and_kept_do_not_grow_with_the_length_of_the_jobs(tmp_path, rows):
    """Jobs that run at the same time, the window of each far from those of the others."""
    pieces = write_cpu(tmp_path / "cpu.parquet", 4, rows)
    windows = windows_of(*[(job_id, "n1", 1000.0 * (job_id + 1), 1000.0 * (job_id + 1) + 60) for job_id in range(4)])
    reader = Counting()
    found = read_cpu_samples(reader, pieces, windows)
    assert found.height == 4 * 2 * 9  # from 10 s before to 10 s after 60 s, both included
    assert reader.rows <= 4 * 2 * 200  # two row groups, where a window is at the edge of one
    assert (
        found["time"]
        .dt.epoch("us")
        .is_between(windows["start_us"].min() - 10**7, windows["end_us"].max() + 10**7)
        .all()
    )


def test_pieces_of_other_times_are_not_opened(tmp_path):
    pieces = write_cpu(tmp_path / "cpu.parquet", 1, 100)
    gone = pieces.with_columns(part=pl.lit(str(tmp_path / "absent.parquet")))
    windows = windows_of((0, "n1", 100.0, 160.0))
    with pytest.raises(LakeError, match=r"absent\.parquet cannot be read"):
        read_cpu_samples(PartReader(), pl.concat([pieces, gone]), windows)
    later = pl.lit(BEGIN + timedelta(seconds=171), TIME)
    gone = gone.with_columns(first_time=later, last_time=later)
    assert read_cpu_samples(PartReader(), pl.concat([pieces, gone]), windows).height == 18


@pytest.mark.parametrize("rows", [200, 2_000])
def test_the_node_samples_kept_do_not_grow_with_the_time_that_the_lake_covers(tmp_path, rows):
    paths = [write_nodes(tmp_path / f"{name}.parquet", [name, f"{name}-other"], rows) for name in ("n1", "n2")]
    windows = windows_of((1, "n1", 3000.0, 3060.0), (2, "n1", 6000.0, 6060.0))
    found = read_node_samples(time_parts(paths), windows)
    seconds = [(time - BEGIN).total_seconds() for time in found["time"].sort()]
    assert seconds == [2700.0, 3000.0, 3300.0, 5700.0, 6000.0, 6300.0]
    assert set(found["node"]) == {"n1"}


def test_a_node_part_of_another_time_is_not_opened(tmp_path):
    path = write_nodes(tmp_path / "n1.parquet", ["n1"], 100)
    parts = time_parts([path])
    path.unlink()
    assert read_node_samples(parts, windows_of((1, "n1", 31_000.0, 31_060.0))).height == 0
    with pytest.raises(LakeError, match="cannot be read"):
        read_node_samples(parts, windows_of((1, "n1", 29_990.0, 30_000.0)))


def test_a_part_whose_times_are_not_known_is_read(tmp_path):
    path = tmp_path / "n1.parquet"
    parts = time_parts([path])
    assert parts.rows() == [(str(path), None, None)]
    write_nodes(path, ["n1"], 100)
    assert read_node_samples(parts, windows_of((1, "n1", 3000.0, 3060.0))).height == 3


def test_a_task_needs_only_the_node_parts_near_its_series_and_has_no_list_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("features.planning.LEAST_WINDOWS", 1)
    spool, lake = make_spool(tmp_path / "spool"), tmp_path / "lake"
    for number, second in enumerate((0, 5e5, 1e6, 2e6)):
        if number != 1:
            write_segment(spool, "gpu", number, [gpu_cells(second + i / 2, 7 + number) for i in range(21)])
        write_segment(spool, "node", number, [node_cells(second)])
        take(spool, lake)
    tasks = plan(lake, tmp_path / "plan", variant("job"), Lake(lake).clusters[0], workers=1)
    assert len(tasks) == 3
    assert len({task.node_pieces for task in tasks}) == 1
    for task in tasks:
        pieces = read_part(task.pieces)
        assert set(pieces["table"]) == {"gpu_samples"}
        first, last = (pieces[name].to_physical() for name in ("first_time", "last_time"))
        spans = pl.DataFrame({"start_us": first, "end_us": last})
        (near_us,) = read_node_parts(task.node_pieces, spans)["first_time"].to_physical()
        assert near_us == first.min()


# -- near --------------------------------------------------------------------------------------------------------------

_SECONDS = st.integers(0, 60)
_WINDOWS = st.lists(
    st.tuples(st.integers(1, 2), st.sampled_from(["n1", "n2"]), _SECONDS, st.integers(0, 9)), min_size=1
)
_SAMPLES = st.lists(st.tuples(st.integers(1, 2), st.sampled_from(["n1", "n2"]), _SECONDS), max_size=30)


@settings(max_examples=40)
@given(_WINDOWS, _SAMPLES)
def test_near_are_the_samples_in_a_window_or_within_the_margin(windows, samples):
    schema = {"job_id": pl.Int64, "node": pl.String, "second": pl.Int64}
    frame = pl.DataFrame(samples, schema=schema, orient="row")
    frame = frame.with_columns(time=(BEGIN_US + pl.col("second").cast(pl.Int64) * 10**6).cast(TIME))
    of = windows_of(*[(job_id, node, float(start), float(start + length)) for job_id, node, start, length in windows])
    found = near(frame, of, 3.0, ["job_id", "node"])
    expected = [
        (job_id, node, second)
        for job_id, node, second in samples
        if any((j, n) == (job_id, node) and s - 3 <= second <= s + length + 3 for j, n, s, length in windows)
    ]
    assert sorted(found.select("job_id", "node", "second").rows()) == sorted(expected)


@settings(max_examples=40)
@given(_WINDOWS, st.tuples(st.integers(0, 70), st.integers(0, 9)))
def test_a_stretch_of_time_is_near_a_window_that_it_meets(windows, stretch):
    begin, length = stretch
    edges = {"first_time": [BEGIN_US + begin * 10**6], "last_time": [BEGIN_US + (begin + length) * 10**6]}
    frame = pl.DataFrame(edges).cast(TIME)
    of = windows_of(*[(job_id, node, float(s), float(s + n)) for job_id, node, s, n in windows])
    expected = any(s - 3 <= begin + length and begin <= s + n + 3 for _, _, s, n in windows)
    assert near(frame, of, 3.0).height == expected


@pytest.mark.parametrize("stride_s", [1.0, 60.0, 700.0])
def test_the_context_of_what_is_near_is_that_of_the_whole_series(stride_s):
    rng = np.random.default_rng(4)
    times = [BEGIN + timedelta(seconds=10 * i) for i in range(1000)]
    cells = {name: rng.normal(size=1000) for name in ("cpu_util_pct", "rss_kib", "read_mib", "write_mib")}
    fixed = {"job_id": [1] * 1000, "node": "n1", "step": "batch", "task": "0"}
    cpu = CPU_SAMPLES.conform(pl.DataFrame({**fixed, "time": times, **cells}, strict=False)).select(CPU_COLUMNS)
    cpu = pl.concat([cpu, cpu.with_columns(task=pl.lit("1")), cpu.with_columns(node=pl.lit("n2"))])
    node = NODE_SAMPLES.conform(pl.DataFrame({"node": "n1", "time": times[::30], "load": rng.normal(size=34)}))
    windows = windows_of(*[(1, "n1", 500 + i * stride_s, 560 + i * stride_s) for i in range(10)])
    found = context(windows, near(cpu, windows, CPU_MARGIN_S, ["job_id", "node"]), node.select(NODE_COLUMNS))
    at = CONTEXT_NAMES.index("cpu_util_pct__mean")
    for row, (_, _, start_us, end_us) in zip(found, windows.iter_rows(), strict=True):
        inside = [
            2 * value
            for time, value in zip(times, cells["cpu_util_pct"], strict=True)
            if start_us - 10**7 <= round(time.timestamp()) * 10**6 <= end_us + 10**7
        ]
        assert row[at] == pytest.approx(np.mean(inside))
    assert np.array_equal(found, context(windows, cpu, node.select(NODE_COLUMNS)), equal_nan=True)
