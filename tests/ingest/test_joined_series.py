"""One series out of several pieces: unsorted and large files, two files, extended files, one interleaved file."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from ingest import assembly, plan, rewrite, tasks
from ingest.head import read_head
from ingest.pipeline import Progress, ingest
from ingest.runner import SerialRunner
from ingest.synthetic_hpca import make_hpca_archive
from tests.gpu_files import HEADER
from tests.small_sources import (
    EXTENDED_HEADER,
    GPU_FILE,
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

OTHER_FILE = "gpu/0002/101-n1.csv"
EXTENDED_FILE = "gpu_extended/0001/101-n1.csv"


@pytest.fixture
def small_pieces(monkeypatch):
    """Large files are those of over a kilobyte, read in pieces of a few lines."""
    read_in_pieces(monkeypatch, piece=300, batch=900)
    monkeypatch.setattr("ingest.rows.CAREFUL_BYTES", 400)


@pytest.fixture
def small_shares(small_pieces, monkeypatch):
    """And those of over two kilobytes are read by several tasks."""
    read_in_shares(monkeypatch, block=1024)


def extended_row(seconds: float, energy_mj: object = 5000, *, gpu: int = 0) -> str:
    """One extended sample."""
    return f"{START_S + seconds:.6f},{gpu},99.5,{energy_mj},1980,2619"


def extended_file(*rows: str) -> str:
    return lines(EXTENDED_HEADER, *rows)


class Watched(SerialRunner):
    """Runs tasks here, and remembers which."""

    workers = 2

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int]] = []

    def map(self, task, specs):
        """Run each."""
        self.tasks.append((task.__name__, len(specs)))
        return super().map(task, specs)


# -- one file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", ["small_pieces", "small_shares"])
def test_a_large_file_is_the_same_in_pieces_as_at_once(tmp_path, request, sizes):
    rows = [gpu_row(i / 10, 100 + i, gpu=i % 2) for i in range(100)]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*rows))
    whole = take(tmp_path / "in", tmp_path / "whole")
    request.getfixturevalue(sizes)
    pieces = take_twice(tmp_path / "in", tmp_path / "lake")
    assert len(pieces.lake.paths("gpu_samples")) > 3
    assert pieces.powers() == whole.powers()
    assert pieces.rows("gpu_minutes", "gpu_index", "n", "power_max_w") == whole.rows(
        "gpu_minutes", "gpu_index", "n", "power_max_w"
    )
    for name in ("energy_j", "covered_gpu_s", "power_mean_w"):
        assert pieces.rows("job_stats", name)[0][0] == pytest.approx(whole.rows("job_stats", name)[0][0], rel=1e-9)
    assert not pieces.report.partial


def test_in_a_large_file_every_bad_line_is_found_at_its_number(tmp_path, small_shares):
    rows = [gpu_row(i, 100) for i in range(200)]
    bad = {7: "prose", 58: gpu_row(500, "x"), 59: gpu_row(501) + ",", 120: gpu_row(502, -1), 199: "\xff"}
    for i, row in bad.items():
        rows[i] = row
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*rows[:100], "", *rows[100:]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert [(line, raw) for _, line, _, raw in taken.rejected()] == [
        (i + 2 + (i >= 100), row) for i, row in sorted(bad.items())
    ]
    assert (taken.report.rows_in, taken.report.rows_out) == (200, 195)
    assert taken.series() == [(float(i), 100.0) for i in range(200) if i not in bad]


def test_a_large_file_out_of_order_across_its_pieces_is_sorted(tmp_path, small_shares):
    order = list(range(150))
    random.Random(3).shuffle(order)
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[gpu_row(i, 100 + i) for i in order]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.series() == [(float(i), 100.0 + i) for i in range(150)]
    assert taken.rows("job_stats", "samples", "energy_j") == [
        (150, pytest.approx(sum(100 + i + 0.5 for i in range(149))))
    ]
    assert taken.counted()[("out_of_order", "")] > 0


@pytest.mark.parametrize("sizes", ["small_pieces", "small_shares"])
def test_a_time_repeated_across_the_pieces_of_a_large_file_is_kept_once_and_the_first_wins(tmp_path, request, sizes):
    request.getfixturevalue(sizes)
    rows = [gpu_row(i, 100) for i in range(60)] + [gpu_row(i, 200) for i in range(50, 110)]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*rows))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.series() == [(float(i), 100.0 if i < 60 else 200.0) for i in range(110)]
    reasons = [reason for _, _, reason, _ in taken.rejected()]
    assert reasons == ["repeated_time"] * 10
    assert (taken.report.rows_in, taken.report.rows_out, taken.report.rows_quarantined) == (120, 110, 10)
    assert taken.counted()[("repeated_time", "")] == 10


def test_a_time_repeated_within_a_batch_of_a_large_file_is_found_at_its_line(tmp_path, small_pieces):
    rows = [gpu_row(i, 100) for i in range(40)]
    rows[20:20] = ["", "   ", gpu_row(19, 200)]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*rows))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.rejected() == [(GPU_FILE, 24, "repeated_time", gpu_row(19, 200))]


def test_a_large_file_without_a_column_that_it_needs_is_refused_with_the_number_of_its_rows(tmp_path, small_shares):
    rows = [gpu_row(i).split(",", 1)[1] for i in range(200)]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*rows, header=HEADER.split(",", 1)[1]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [(GPU_FILE, "missing_column", 200)]


@pytest.mark.parametrize("extra", [0, 7, 20])
def test_shares_that_end_anywhere_in_a_line_lose_no_row(tmp_path, small_shares, extra):
    rows = [gpu_row(i, f"{100 + i}." + "0" * (i * extra % 17)) for i in range(120)]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file("x" * extra, *rows))
    taken = take(tmp_path / "in", tmp_path / "lake")
    assert [watts for _, watts in taken.series()] == [100.0 + i for i in range(120)]
    assert [(line, reason) for _, line, reason, _ in taken.rejected()] == ([(2, "too_few_fields")] if extra else [])


def test_a_line_longer_than_a_share_is_one_row(tmp_path, small_shares):
    header = f"{HEADER},remark"
    rows = [gpu_row(i, 100) + "," + "r" * (3000 if i == 10 else 1) for i in range(40)]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*rows, header=header))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.series() == [(float(i), 100.0) for i in range(40)]


class Unlinking(SerialRunner):
    """Takes a file away as soon as the first share of it was read."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def map(self, task, specs):
        for spec in specs:
            result = task(spec)
            if task is tasks.scan and spec.files[0].stop is not None:
                self._file.unlink(missing_ok=True)
            yield result


@pytest.mark.parametrize("is_known", [False, True])
def test_a_large_file_of_which_a_share_cannot_be_opened_is_refused_whole(tmp_path, small_shares, is_known):
    file = write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[gpu_row(i, 100) for i in range(100)]))
    write(tmp_path, "in/gpu/0001/102-n1.csv", gpu_file(gpu_row(0, 7)))
    if is_known:
        take(tmp_path / "in", tmp_path / "lake")
        with file.open("a") as more:
            more.write(lines(*[gpu_row(i, 100) for i in range(100, 200)]))
    taken = take(tmp_path / "in", tmp_path / "lake", runner=Unlinking(file))
    assert taken.report.partial
    assert [(r.name, r.reason) for r in taken.report.records if r.status == "refused"] == [(GPU_FILE, "unreadable")]
    assert taken.refused() == [(GPU_FILE, "unreadable", 0)]
    assert taken.series() == [(float(i), 100.0) for i in range(100 if is_known else 0)]
    assert taken.series(102) == [(0.0, 7.0)]


def test_a_line_without_an_end_refuses_a_file_in_shares_as_it_does_a_whole_one(tmp_path, small_shares, monkeypatch):
    monkeypatch.setattr("ingest.reading.MAX_LINE_BYTES", 900)
    rows = [gpu_row(i, 100) for i in range(100)]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*rows, "x" * 5000, *rows))
    write(tmp_path, "in/gpu/0001/102-n1.csv", gpu_file(gpu_row(0, 7)))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [(GPU_FILE, "too_large", 0)]
    assert taken.powers() == [(0.0, 7.0)]


# -- two files ---------------------------------------------------------------------------------------------------------


def test_two_files_of_one_series_that_follow_each_other_are_joined(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[gpu_row(i, 100) for i in range(5)]))
    write(tmp_path, f"in/{OTHER_FILE}", gpu_file(*[gpu_row(i, 200) for i in range(5, 10)]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.series() == [(float(i), 100.0 if i < 5 else 200.0) for i in range(10)]
    assert taken.counted() == {("two_files_for_series", ""): 2}
    assert taken.rows("job_stats", "samples", "energy_j") == [(10, 4 * 100.0 + 150.0 + 4 * 200.0)]
    assert taken.report.partial


@pytest.mark.parametrize("separately", [False, True])
def test_of_two_files_that_overlap_each_time_is_kept_once_and_the_second_file_s_goes_to_quarantine(
    tmp_path, separately
):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[gpu_row(i, 100) for i in range(6)]))
    if separately:
        take_twice(tmp_path / "in", tmp_path / "lake")
    write(tmp_path, f"in/{OTHER_FILE}", gpu_file(*[gpu_row(i, 200) for i in range(4, 9)], gpu_row(0, 7, gpu=1)))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert [watts for _, watts in taken.series()] == [100.0] * 6 + [200.0] * 3 + [7.0]
    rejected = taken.rejected()
    assert [(file, reason) for file, _, reason, _ in rejected] == [(OTHER_FILE, "repeated_time")] * 2
    assert all("power_w=200.0" in str(raw) for *_, raw in rejected)
    record = next(r for r in taken.report.records if r.name == OTHER_FILE)
    assert (record.rows_in, record.rows_out, record.rows_quarantined) == (6, 4, 2)
    assert taken.counted() == {("two_files_for_series", ""): 2, ("repeated_time", ""): 2}


def test_what_the_lake_has_already_stays_when_a_file_of_an_earlier_name_repeats_it(tmp_path):
    write(tmp_path, f"in/{OTHER_FILE}", gpu_file(*[gpu_row(i, 200) for i in range(5)]))
    take_twice(tmp_path / "in", tmp_path / "lake")
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[gpu_row(i, 100) for i in range(8)]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert [watts for _, watts in taken.series()] == [200.0] * 5 + [100.0] * 3
    inputs = {
        name: (out, lost)
        for name, out, lost in taken.lake.inputs().select("name", "rows_out", "rows_quarantined").iter_rows()
    }
    assert inputs == {GPU_FILE: (3, 5), OTHER_FILE: (5, 0)}


def test_a_second_file_of_the_same_content_adds_nothing(tmp_path):
    content = gpu_file(*[gpu_row(i, 100) for i in range(5)])
    write(tmp_path, f"in/{GPU_FILE}", content)
    write(tmp_path, f"in/{OTHER_FILE}", content)
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.series() == [(float(i), 100.0) for i in range(5)]
    assert len(taken.rejected()) == 5


def test_files_of_two_nodes_are_never_joined(tmp_path):
    write(tmp_path, "in/gpu/0001/101-n1.csv", gpu_file(*[gpu_row(i, 100) for i in range(5)]))
    write(tmp_path, "in/gpu/0001/101-n2.csv", gpu_file(*[gpu_row(i, 200) for i in range(5)]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.lake.read_series(101, node="n2")["power_w"].to_list() == [200.0] * 5
    assert len(taken.series()) == 10
    assert not taken.report.partial


def test_one_of_two_joined_files_that_grows_brings_its_rows_and_the_other_keeps_its_own(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[gpu_row(i, 100) for i in range(4)]))
    write(tmp_path, f"in/{OTHER_FILE}", gpu_file(*[gpu_row(i, 200) for i in range(2, 6)]))
    take_twice(tmp_path / "in", tmp_path / "lake")
    write(tmp_path, f"in/{OTHER_FILE}", gpu_file(*[gpu_row(i, 300) for i in range(2, 9)]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert [watts for _, watts in taken.series()] == [100.0] * 4 + [300.0] * 5
    assert len(taken.rejected()) == 2
    assert (taken.report.rows_in, taken.report.rows_out, taken.report.rows_quarantined) == (11, 9, 2)


# -- extended files ----------------------------------------------------------------------------------------------------


def both(tmp_path, base: range, extended: range, *, energy: int = 0) -> None:
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[gpu_row(i, 100 + i) for i in base]))
    write(tmp_path, f"in/{EXTENDED_FILE}", extended_file(*[extended_row(i, 1000 * i + energy) for i in extended]))


def energies(taken) -> list[float | None]:
    return taken.lake.read_series(101)["energy_counter_j"].to_list()


def test_an_extended_file_completes_the_samples_of_its_twin(tmp_path):
    both(tmp_path, range(5), range(5))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.series() == [(float(i), 100.0 + i) for i in range(5)]
    assert energies(taken) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert taken.rows("gpu_samples", "power_avg_w", "sm_clock_mhz", "mem_clock_mhz") == [(99.5, 1980, 2619)] * 5
    assert (taken.report.rows_in, taken.report.rows_out, taken.report.rows_merged) == (10, 5, 5)
    assert taken.rows("job_stats", "energy_counter_j") == [(4.0,)]
    assert not taken.report.partial


def test_an_extended_sample_without_its_base_is_quarantined_and_a_base_without_it_is_kept(tmp_path):
    both(tmp_path, range(5), range(3, 7))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert energies(taken) == [None, None, None, 3.0, 4.0]
    assert [(file, reason) for file, _, reason, _ in taken.rejected()] == [(EXTENDED_FILE, "no_base_sample")] * 2
    assert (taken.report.rows_out, taken.report.rows_merged, taken.report.rows_quarantined) == (5, 2, 2)


def test_a_missing_cell_of_an_extended_file_is_counted_among_those_that_have_one(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[gpu_row(i) for i in range(3)]))
    write(
        tmp_path, f"in/{EXTENDED_FILE}", extended_file(*[extended_row(i, "N/A" if i == 1 else 7000) for i in range(3)])
    )
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert energies(taken) == [7.0, None, 7.0]
    assert taken.counted() == {("missing_value", "energy_counter_j"): 1}


@pytest.mark.parametrize("first", ["base", "extended"])
def test_a_twin_that_comes_in_a_later_ingest_is_joined_all_the_same(tmp_path, first):
    both(tmp_path, range(5), range(5))
    held = tmp_path / "in" / (EXTENDED_FILE if first == "base" else GPU_FILE)
    content = held.read_bytes()
    held.unlink()
    earlier = take_twice(tmp_path / "in", tmp_path / "lake", cluster="c")
    assert earlier.report.rows_quarantined == (0 if first == "base" else 5)
    held.write_bytes(content)
    taken = take_twice(tmp_path / "in", tmp_path / "lake", cluster="c")
    assert energies(taken) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert taken.rejected() == []
    assert taken.counted() == {}


@pytest.mark.parametrize(
    ("base", "extended", "energy"),
    [(range(8), range(5), 0), (range(5), range(8), 0), (range(8), range(8), 0), (range(5), range(5), 9)],
)
def test_a_grown_or_changed_twin_is_joined_anew_with_the_one_that_stayed(tmp_path, base, extended, energy):
    both(tmp_path, range(5), range(5))
    take_twice(tmp_path / "in", tmp_path / "lake")
    both(tmp_path, base, extended, energy=energy)
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    fresh = take(tmp_path / "in", tmp_path / "fresh")
    assert taken.series() == fresh.series()
    assert energies(taken) == energies(fresh)
    assert [row[0] for row in taken.rejected()] == [row[0] for row in fresh.rejected()]
    assert taken.counted() == fresh.counted()
    for table in ("gpu_minutes", "job_stats"):
        columns = taken.lake.scan(table).collect_schema().names()
        assert taken.rows(table, *columns) == fresh.rows(table, *columns)


def test_a_base_that_grew_without_its_twin_at_hand_loses_what_the_twin_had_completed_and_says_so(tmp_path):
    both(tmp_path, range(5), range(5))
    take_twice(tmp_path / "in", tmp_path / "lake")
    content = (tmp_path / "in" / EXTENDED_FILE).read_bytes()
    (tmp_path / "in" / EXTENDED_FILE).unlink()
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[gpu_row(i, 100 + i) for i in range(8)]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake", cluster="recording")
    assert energies(taken) == [None] * 8
    assert taken.counted() == {("extended_lost", ""): 5}
    assert taken.report.partial
    write(tmp_path, f"in/{EXTENDED_FILE}", content)
    again = take_twice(tmp_path / "in", tmp_path / "lake")
    assert energies(again) == [0.0, 1.0, 2.0, 3.0, 4.0, None, None, None]
    assert again.counted() == {}


def test_parts_are_written_anew_by_tasks_of_the_runner_and_shown_as_progress(tmp_path, small_pieces, monkeypatch):
    monkeypatch.setattr(plan, "LEAST_TASK_BYTES", 1000)
    for job in (101, 102, 103, 104):
        write(tmp_path, f"in/gpu/0001/{job}-n1.csv", gpu_file(*[gpu_row(i, 100) for i in range(30)]))
        write(tmp_path, f"in/gpu_extended/0001/{job}-n1.csv", extended_file(*[extended_row(i) for i in range(30)]))
    runner, seen = Watched(), list[Progress]()
    ingest(str(tmp_path / "in"), tmp_path / "lake", runner=runner, progress=seen.append)
    rewrites = [n for name, n in runner.tasks if name == "rewrite"]
    assert rewrites
    assert rewrites[0] >= 4
    joined = [progress.bytes_done for progress in seen if progress.phase == "joining"]
    assert joined == sorted(set(joined))
    assert len(joined) == rewrites[0] + 1  # before the first, and after each
    runner.tasks.clear()
    ingest(str(tmp_path / "in"), tmp_path / "lake", runner=runner)
    assert not any(name == "rewrite" for name, _ in runner.tasks)


def test_a_long_series_is_joined_a_few_rows_at_a_time(tmp_path, small_shares, monkeypatch):
    """Its row groups, and so what is in memory at once, are no longer than a batch; the rows are the same."""
    monkeypatch.setattr(rewrite, "BATCH_ROWS", 40)
    monkeypatch.setattr("ingest.parts.FRAME_ROWS", 10)
    monkeypatch.setattr("ingest.timemerge.FRAME_ROWS", 10)
    stored: list[int] = []
    store = rewrite.Staging.store

    def watched(self, table, frame, *arguments, **named):
        stored.append(frame.height)
        store(self, table, frame, *arguments, **named)

    both(tmp_path, range(400), range(380))
    write(tmp_path, f"in/{OTHER_FILE}", gpu_file(*[gpu_row(i, 100 + i) for i in range(390, 500)]))
    monkeypatch.setattr(rewrite.Staging, "store", watched)
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert max(stored) < 100
    assert taken.series() == [(float(i), 100.0 + i) for i in range(500)]
    assert energies(taken) == [float(i) for i in range(380)] + [None] * 120
    assert taken.rows("job_stats", "samples", "energy_j") == [(500, pytest.approx(sum(100.5 + i for i in range(499))))]
    assert sum(n for (n,) in taken.rows("gpu_minutes", "n")) == 500
    assert len(taken.rejected()) == 10


def test_minutes_come_in_parts_of_a_bounded_size_and_each_minute_once(tmp_path, small_shares, monkeypatch):
    monkeypatch.setattr(assembly, "MINUTES_ROWS", 10)
    rows = [f"{gpu_row(i * 7, 100 + i % 50)},{101 + i % 3},n1" for i in range(600)]
    write(tmp_path, "in/nvidia_smi.csv", lines(f"{HEADER},id_job,node", *rows))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    parts = [part for part in read_head(tmp_path / "lake").parts if part.table == "gpu_minutes"]
    assert len(parts) > 5
    assert max(part.rows for part in parts) < 40
    monkeypatch.undo()
    whole = take(tmp_path / "in", tmp_path / "whole")
    columns = ["job_id", "minute", "n", "power_mean_w", "power_min_w", "power_max_w", "gpu_util_mean_pct"]
    found, expected = taken.rows("gpu_minutes", *columns), whole.rows("gpu_minutes", *columns)
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    assert [row[3:] for row in found] == [pytest.approx(row[3:], rel=1e-5) for row in expected]
    for part in parts:
        minutes = pq.read_table(tmp_path / "lake" / part.file, partitioning=None)
        assert pl.DataFrame(minutes).select("job_id", "minute").rows() == sorted(
            pl.DataFrame(minutes).select("job_id", "minute").rows()
        )


def test_large_twins_are_joined_across_their_pieces(tmp_path, small_shares):
    both(tmp_path, range(150), range(150))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert energies(taken) == [float(i) for i in range(150)]
    both(tmp_path, range(200), range(150))
    grown = take_twice(tmp_path / "in", tmp_path / "lake")
    assert energies(grown) == [float(i) for i in range(150)] + [None] * 50
    assert (grown.report.rows_out, grown.report.rows_merged) == (200, 150)


# -- one interleaved file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", ["small_pieces", "small_shares"])
def test_an_interleaved_file_is_the_same_in_pieces_as_at_once(tmp_path, request, sizes, monkeypatch):
    truth = make_hpca_archive(tmp_path / "in", rng=4, n_jobs=3, seconds_per_job=6.0, gpus_per_job=2)
    whole = take(tmp_path / "in", tmp_path / "whole")
    request.getfixturevalue(sizes)
    read_in_pieces(monkeypatch, piece=2000, batch=6000)
    read_in_shares(monkeypatch, block=8192 if sizes == "small_shares" else 2**20)
    pieces = take_twice(tmp_path / "in", tmp_path / "lake")
    assert len(pieces.lake.paths("gpu_samples")) > 3
    assert pieces.report.cluster == "supercloud-hpca22"
    assert pieces.report.tables["gpu_samples"] == truth.rows["gpu_samples"]
    for table in ("gpu_samples", "gpu_minutes", "gpu_job_summary", "jobs"):
        here, there = (t.lake.scan(table).collect() for t in (pieces, whole))
        exact = [name for name in here.columns if "mean" not in name]
        assert here.select(exact).sort(exact).equals(there.select(exact).sort(exact)), table
    for job in truth.jobs:
        assert pieces.lake.read_series(job.job_id).equals(whole.lake.read_series(job.job_id))


def test_idle_samples_without_a_job_are_kept_under_no_job(tmp_path):
    header = f"{HEADER},node,id_job"
    rows = [gpu_row(i, 50) + ",n1," for i in range(3)] + [gpu_row(3, 90) + ",n1,101", gpu_row(4, 1) + ",,101"]
    write(tmp_path, "in/nvidia_smi.csv", gpu_file(*rows, header=header))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.rows("gpu_samples", "job_id", "power_w") == [(None, 50.0)] * 3 + [(101, 90.0)]
    assert taken.rejected() == [("nvidia_smi.csv", 6, "missing_key", rows[4])]
    assert taken.lake.scan("job_stats").select(pl.len()).collect().item() == 1
