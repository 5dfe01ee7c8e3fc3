"""Each key of a table occurs once, however far apart in a file its rows stand, or a check says that it does not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import keys
from ingest.batches import order
from ingest.head import read_head
from ingest.keys import HashRuns, TakenKeys
from ingest.lake import Lake
from ingest.part_writer import write_part
from ingest.pipeline import ingest
from ingest.runner import SerialRunner
from ingest.schemas import TIME
from tests.small_sources import (
    CPU_HEADER,
    GPU_FILE,
    NODE_HEADER,
    START_S,
    gpu_file,
    gpu_row,
    lines,
    read_in_pieces,
    read_in_shares,
    take,
    take_twice,
    write,
)


@pytest.fixture(params=["in pieces", "in shares"])
def reading(request, monkeypatch):
    """Large files are those of over a kilobyte; GPU samples may be read by several tasks."""
    read_in_pieces(monkeypatch, piece=300, batch=900)
    if request.param == "in shares":
        read_in_shares(monkeypatch, block=1024)


def node_row(i: int, load: float = 1.0) -> str:
    return f"{i},n{i % 3},{START_S + 300 * (i // 3)}.5,u:1|,0.01,{load},371,5"


def cpu_row(i: int, load: float = 1.0) -> str:
    return f"{i % 2},n1,Task_0,10,{START_S + 10 * (i // 2)},2400,1.5,{load},100,200,0,0,0"


def label_row(i: int, label: str = "U3-32") -> str:
    return f"{1000 + i},{label}"


def parameters_row(i: int, precision: str = "fp16") -> str:
    return f"{1000 + i},matmul,True,0,{precision},12.5"


def dcgm_row(i: int, watts: float = 100.0) -> str:
    return f"{1000 + i // 2},n1,{i % 2},{watts},5000"


DCGM_HEADER = "id_job,nodename,gpu_id,powerusage_watts_avg,energyconsumed_joules"
PARAMETERS_HEADER = "id_job,workload,challenge_class,gpu_index,precision,run_seconds"
FILES = {
    "node-data.csv": (NODE_HEADER, node_row, "node_samples", "repeated_time"),
    "cpu/0001/101-timeseries.csv": (CPU_HEADER, cpu_row, "cpu_samples", "repeated_time"),
    "labelled_jobids.csv": ("id_job,model", label_row, "labels", "repeated_row"),
    "dcgm.csv": (DCGM_HEADER, dcgm_row, "gpu_job_summary", "repeated_row"),
    "job-parameters.csv": (PARAMETERS_HEADER, parameters_row, "job_parameters", "repeated_row"),
}
ORDERS = {
    "in order": lambda n: list(range(n)),
    "back to front": lambda n: list(range(n))[::-1],
    "by turns": lambda n: [i for k in range(7) for i in range(k, n, 7)],
}


@pytest.mark.parametrize("in_what_order", ORDERS)
@pytest.mark.parametrize("name", FILES)
def test_of_rows_of_one_key_far_apart_in_a_large_file_the_first_is_kept(tmp_path, reading, name, in_what_order):
    header, row, table, reason = FILES[name]
    places = ORDERS[in_what_order](200)
    repeats = [places[0], places[1], places[120]]
    rows = [row(i) for i in places] + [row(i, "9") for i in repeats]
    write(tmp_path, f"in/{name}", lines(header, *rows))
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(gpu_row(0)))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.report.reasons[reason] == 3
    assert taken.rejected() == [(name, 202 + i, reason, row(at, "9")) for i, at in enumerate(repeats)]
    assert taken.lake.scan(table).collect().height == 200


def test_repeats_within_a_batch_and_of_an_earlier_one_are_told_apart_from_what_is_new(tmp_path, reading):
    rows = [node_row(i) for i in range(100)]
    rows += [node_row(3, 9), node_row(100), node_row(100, 9), node_row(101)]
    write(tmp_path, "in/node-data.csv", lines(NODE_HEADER, *rows))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert [(line, raw) for _, line, _, raw in taken.rejected()] == [(102, node_row(3, 9)), (104, node_row(100, 9))]
    assert taken.rows("node_samples", "load") == [(1.0,)] * 102


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 12)), max_size=40), st.data())
def test_batch_by_batch_the_same_rows_are_set_apart_as_at_once(tmp_path_factory, rows, data):
    folder = tmp_path_factory.mktemp("parts")
    frame = pl.DataFrame(rows, schema={"node": pl.String, "time": TIME}, orient="row").with_columns(
        file=pl.lit(0, pl.Int32), load=pl.int_range(pl.len()).cast(pl.Float64)
    )
    taken, kept = TakenKeys("node_samples"), [frame.clear()]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    for i, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
        found = taken.set_apart(order(frame[start:stop], "node_samples"))
        assert found.frame.height + found.repeated.height == stop - start
        if found.frame.height:
            taken.add(found.frame, write_part(folder / f"{i}.parquet", "node_samples", found.frame).path)
        kept.append(found.frame)
    assert sorted(pl.concat(kept)["load"]) == sorted(order(frame, "node_samples").frame["load"])


def test_a_file_in_no_order_reads_each_of_its_parts_once(tmp_path, monkeypatch):
    """Looked up part by part, a file of n parts would cost n * n / 2 of them."""
    opened: Counter[str] = Counter()
    read = TakenKeys._read_key

    def count(self: TakenKeys, part: str, key: list[str]) -> pl.DataFrame:
        opened[part] += 1
        return read(self, part, key)

    monkeypatch.setattr(TakenKeys, "_read_key", count)
    for name, size in (("scan.CHUNK", 1000), ("scan.PIECE", 300), ("reading.PIECE", 300), ("rows.BATCH", 900)):
        monkeypatch.setattr(f"ingest.{name}_BYTES", size)
    places = [i for k in range(7) for i in range(k, 2000, 7)]
    write(tmp_path, "in/node-data.csv", lines(NODE_HEADER, *map(node_row, places)))
    ingest(str(tmp_path / "in"), tmp_path / "lake", runner=SerialRunner())
    assert len(opened) > 50
    assert set(opened.values()) == {1}
    assert Lake(tmp_path / "lake").scan("node_samples").collect().height == 2000


@given(st.lists(st.lists(st.integers(0, 60), max_size=20), max_size=8))
def test_hashes_in_runs_are_a_set_wherever_the_runs_lie(tmp_path_factory, batches_of_keys):
    folder = tmp_path_factory.mktemp("runs")
    runs, known = HashRuns(), set()
    every = np.array([(i % 50, i) for i in range(0, 61)], keys.HASH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "MOST_HELD", 10)
        patch.setattr(keys, "MOST_IN_RUN", 30)
        for batch in batches_of_keys:
            new = [i for i in dict.fromkeys(batch) if i % 50 not in {at % 50 for at in known}]
            new = list({i % 50: i for i in new}.values())
            runs.add(every[new], beside=folder / "part")
            known.update(new)
            assert runs.contains(every).tolist() == [i in known for i in range(61)]
    assert list(folder.iterdir()) == []


# -- the check of a lake -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_check_finds_keys_that_two_rows_of_one_part_have(tmp_path, name):
    header, row, table, _ = FILES[name]
    write(tmp_path, f"in/{name}", lines(header, *[row(i) for i in range(10)]))
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(gpu_row(0)))
    take(tmp_path / "in", tmp_path / "lake")
    (path,) = Lake(tmp_path / "lake").paths(table)
    rows = pq.read_table(path, partitioning=None)
    pq.write_table(rows.take([0, 0, *range(2, rows.num_rows)]), path)
    problems = Lake(tmp_path / "lake").check().problems
    assert any(f"{table}/cluster=" in p and p.endswith(": 1 rows have the key of another row") for p in problems)


def test_check_finds_keys_that_rows_of_two_parts_have(tmp_path, reading, monkeypatch):
    write(tmp_path, "in/node-data.csv", lines(NODE_HEADER, *map(node_row, range(100)), node_row(0), node_row(1)))
    monkeypatch.setattr(keys.TakenKeys, "set_apart", lambda _, ordered: ordered)
    ingest(str(tmp_path / "in"), tmp_path / "lake", runner=SerialRunner())
    problem = "node_samples/cluster=supercloud: 2 rows have the key of another row"
    assert Lake(tmp_path / "lake").check().problems == (problem,)


def test_check_finds_pieces_of_one_series_that_overlap(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[gpu_row(i) for i in range(10)]))
    take(tmp_path / "in", tmp_path / "lake")
    path = tmp_path / "lake" / "_manifest" / read_head(tmp_path / "lake").pieces
    pieces = pl.read_parquet(path)
    pl.concat([pieces, pieces.filter(pl.col("table") == "gpu_samples")]).write_parquet(path)
    problems = Lake(tmp_path / "lake").check().problems
    assert "gpu_samples/cluster=supercloud: 1 pieces overlap another of their series" in problems
