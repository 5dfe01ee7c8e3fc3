"""Rows of GPU samples with something wrong in them: each is stored, or in quarantine with its raw line and a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.gpu_files import HEADER
from tests.small_sources import GPU_FILE, Taken, gpu_file, gpu_row, lines, take_twice, write

GOOD = [gpu_row(0, 100), gpu_row(1, 101), gpu_row(3, 103)]


def take_rows(tmp_path, *bad: str | bytes):
    """Ingest a file of three sound rows with some others as its lines 4 and on, then the same again."""
    middle = b"".join((row.encode() if isinstance(row, str) else row) + b"\n" for row in bad)
    content = gpu_file(*GOOD[:2]).encode() + middle + (GOOD[2] + "\n").encode()
    write(tmp_path, f"in/{GPU_FILE}", content)
    return take_twice(tmp_path / "in", tmp_path / "lake")


BAD_ROWS = [
    (gpu_row(2)[:-3], "too_few_fields"),
    (gpu_row(2) + ",7", "too_many_fields"),
    (gpu_row(2, "x"), "wrong_type"),
    (gpu_row(2, "12 W"), "wrong_type"),
    (gpu_row(2, "0x10"), "wrong_type"),
    (gpu_row(2, "1,5"), "too_many_fields"),
    (gpu_row(2, util="49.5"), "wrong_type"),
    (gpu_row(2, gpu=""), "missing_key"),
    (gpu_row(2, gpu="nan"), "missing_key"),
    (gpu_row(2, gpu="a"), "wrong_type"),
    (gpu_row(2, gpu=-1), "out_of_range"),
    (gpu_row(2, gpu=70_000), "out_of_range"),
    ("," + gpu_row(2).split(",", 1)[1], "missing_key"),
    ("N/A," + gpu_row(2).split(",", 1)[1], "missing_key"),
    ("soon," + gpu_row(2).split(",", 1)[1], "wrong_type"),
    ("-5," + gpu_row(2).split(",", 1)[1], "out_of_range"),
    ("1600000002000," + gpu_row(2).split(",", 1)[1], "out_of_range"),
    ("9223372036854775807," + gpu_row(2).split(",", 1)[1], "missing_key"),
    (gpu_row(2, 2000.5), "out_of_range"),
    (gpu_row(2, "1e300"), "out_of_range"),
    (gpu_row(2, "inf"), "out_of_range"),
    (gpu_row(2, "-inf"), "out_of_range"),
    (gpu_row(2, -1), "out_of_range"),
    (gpu_row(2, util=101), "out_of_range"),
    (gpu_row(2, util=-1), "out_of_range"),
    (gpu_row(2, util=256), "out_of_range"),
    (gpu_row(2, memory=5_000_000), "out_of_range"),
    (gpu_row(2, memory=-2000), "out_of_range"),
    (gpu_row(2, memory=2**40), "out_of_range"),
    (gpu_row(1, 999), "repeated_time"),
    (gpu_row(1, 101), "repeated_time"),
    ('"' + gpu_row(2), "too_few_fields"),
    ("a line of prose", "too_few_fields"),
    (HEADER, "wrong_type"),
    ("0", "too_few_fields"),
    (",,,,,,,,,", "missing_key"),
    ("\x00\x00\x00", "too_few_fields"),
]

MISSING_CELLS = ["N/A", "[N/A]", "[Not Supported]", "[Unknown Error]", "nan", "NaN", "", " ", "null"]
SPELLINGS = ["+1.01e2", "101.0", "1.01E2", " 101 ", '"101"', "0101", "101."]
SENTINELS = [2**63, 2**63 - 1, 2**64 - 1, 2**32 - 1, 2**31 - 1, -(2**63)]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Callable[[str], OneFile]:
    """Many files, each of three sound rows with another one as its line 4, in one ingest; found by that row."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [row for row, _ in BAD_ROWS] + [gpu_row(2, cell) for cell in [*MISSING_CELLS, *SPELLINGS]]
    rows += [gpu_row(2, memory=number) for number in SENTINELS]
    jobs = {row: 101 + i for i, row in enumerate(rows)}
    for row, job in jobs.items():
        write(folder, f"in/gpu/0001/{job}-n1.csv", gpu_file(*GOOD[:2], row, GOOD[2]))
    taken = take_twice(folder / "in", folder / "lake")
    return lambda row: OneFile(taken, jobs[row])


@dataclass(frozen=True, slots=True)
class OneFile:
    """What became of one file among many."""

    taken: Taken
    job: int

    def powers(self) -> list[float | None]:
        return self.taken.lake.read_series(self.job)["power_w"].to_list()

    def rejected(self) -> list[tuple[int | None, str, str | None]]:
        return [row[1:] for row in self.taken.rejected() if row[0] == f"gpu/0001/{self.job}-n1.csv"]

    def counted(self) -> dict[tuple[str, str], int]:
        rows = self.taken.rows("quality", "file", "reason", "detail", "count")
        return {row[1:3]: row[3] for row in rows if row[0] == f"gpu/0001/{self.job}-n1.csv"}


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS)
def test_a_row_that_cannot_be_taken_is_quarantined_with_its_line_and_the_others_are_stored(many, bad, reason):
    file = many(bad)
    assert file.powers() == [100.0, 101.0, 103.0]
    assert file.rejected() == [(4, reason, bad)]
    assert file.counted() == {(reason, ""): 1}
    assert file.taken.report.partial


@pytest.mark.parametrize("cell", MISSING_CELLS)
def test_a_cell_that_says_it_is_missing_is_null_and_counted(many, cell):
    file = many(gpu_row(2, cell))
    assert file.powers() == [100.0, 101.0, None, 103.0]
    assert file.counted() == {("missing_value", "power_w"): 1}
    assert file.rejected() == []


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_number_is_taken_however_it_is_spelled(many, spelling):
    file = many(gpu_row(2, spelling))
    assert file.powers() == [100.0, 101.0, 101.0, 103.0]
    assert file.counted() == {}


@pytest.mark.parametrize("number", SENTINELS)
def test_a_sentinel_is_null_and_counted_once(many, number):
    file = many(gpu_row(2, memory=number))
    assert file.taken.lake.read_series(file.job)["memory_used_mib"].to_list() == [2000, 2000, None, 2000]
    assert file.counted() == {("sentinel", "memory_used_mib"): 1}


def test_a_line_that_is_not_utf8_is_quarantined_with_its_bytes_written_out(tmp_path):
    taken = take_rows(tmp_path, gpu_row(2).encode().replace(b"100", b"1\xff0"))
    assert taken.powers() == [(0.0, 100.0), (1.0, 101.0), (3.0, 103.0)]
    assert taken.rejected() == [(GPU_FILE, 4, "not_utf8", gpu_row(2).replace("100", "1\\xff0"))]


def test_bytes_that_are_not_utf8_are_refused_in_a_column_that_is_not_stored_too(tmp_path):
    rows = [row + ",note" for row in GOOD]
    content = lines(HEADER + ",remark", *rows).encode() + gpu_row(4).encode() + b",caf\xe9\n"
    write(tmp_path, f"in/{GPU_FILE}", content)
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.rejected() == [(GPU_FILE, 5, "not_utf8", gpu_row(4) + ",caf\\xe9")]
    assert taken.powers() == [(0.0, 100.0), (1.0, 101.0), (3.0, 103.0)]


def test_a_column_without_any_value_is_null_and_counted_as_such(tmp_path):
    for job, cell in enumerate(MISSING_CELLS):
        write(tmp_path, f"in/gpu/0001/{job + 1}-n1.csv", gpu_file(*[gpu_row(i, cell) for i in range(5)]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.rows("gpu_samples", "power_w") == [(None,)] * 5 * len(MISSING_CELLS)
    assert taken.counted() == {("column_empty", "power_w"): 5 * len(MISSING_CELLS)}
    assert not taken.report.partial


def test_a_sentinel_in_a_row_that_is_quarantined_is_not_counted_and_hides_no_missing_value(tmp_path):
    taken = take_rows(tmp_path, gpu_row(2, 2**63, util=101), gpu_row(2.5, "N/A"))
    assert taken.powers() == [(0.0, 100.0), (1.0, 101.0), (2.5, None), (3.0, 103.0)]
    assert taken.counted() == {("missing_value", "power_w"): 1, ("out_of_range", ""): 1}


def test_all_that_is_wrong_in_one_file_is_found_at_its_own_line(tmp_path):
    bad = [gpu_row(2, "x"), "", gpu_row(2.5)[:-4], b"\xff", gpu_row(0, 55), "   ", gpu_row(2.6, 3000)]
    taken = take_rows(tmp_path, *bad)
    assert [(line, reason) for _, line, reason, _ in taken.rejected()] == [
        (4, "wrong_type"),
        (6, "too_few_fields"),
        (7, "not_utf8"),
        (8, "repeated_time"),
        (10, "out_of_range"),
    ]
    assert taken.report.rows_in == 8
    assert taken.powers() == [(0.0, 100.0), (1.0, 101.0), (3.0, 103.0)]


def test_values_at_the_limits_are_taken_as_they_are(tmp_path):
    taken = take_rows(tmp_path, gpu_row(2, 2000, util=100), gpu_row(2.5, 0, util=0, memory=0))
    assert taken.powers() == [(0.0, 100.0), (1.0, 101.0), (2.0, 2000.0), (2.5, 0.0), (3.0, 103.0)]
    assert not taken.report.partial


def test_whole_numbers_with_a_decimal_point_are_taken(tmp_path):
    taken = take_rows(tmp_path, gpu_row(2, 102, gpu="0.0", util="50.0", memory="2000.0"))
    assert taken.rows("gpu_samples", "gpu_index", "gpu_util_pct", "memory_used_mib") == [(0, 50, 2000)] * 4


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path):
    plain = take_rows(tmp_path / "plain", gpu_row(2, 102))
    text = "\ufeff" + gpu_file(*GOOD[:2], gpu_row(2, 102), GOOD[2]).replace("\n", "\r\n")
    write(tmp_path, f"windows/{GPU_FILE}", text)
    windows = take_twice(tmp_path / "windows", tmp_path / "lake")
    assert windows.powers() == plain.powers()
    assert (windows.report.rows_in, windows.report.partial) == (4, False)


def test_a_raw_line_with_a_windows_line_end_is_kept_without_it(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(GOOD[0], gpu_row(2, "x")).replace("\n", "\r\n"))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.rejected() == [(GPU_FILE, 3, "wrong_type", gpu_row(2, "x"))]


def test_lines_ended_by_carriage_returns_alone_are_refused_and_not_misread(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*GOOD).replace("\n", "\r"))
    write(tmp_path, "in/gpu/0001/102-n1.csv", gpu_file(*GOOD))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [(GPU_FILE, "bad_line_ends", 0)]
    assert len(taken.powers()) == 3


def test_a_last_line_without_its_end_is_taken(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*GOOD).rstrip("\n"))
    assert len(take_twice(tmp_path / "in", tmp_path / "lake").powers()) == 3


def test_a_job_counts_the_clock_jump_and_the_gap_of_its_samples(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(gpu_row(0), gpu_row(1), gpu_row(20), gpu_row(20 + 3601)))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.counted() == {("gap", ""): 2, ("clock_jump", ""): 1}
    assert taken.rows("job_stats", "covered_gpu_s", "gaps", "longest_gap_s") == [(1.0, 2, 3601.0)]


def test_samples_out_of_order_are_sorted_and_counted(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[gpu_row(s, 100 + s) for s in (2, 0, 3, 1)]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.lake.read_series(101)["power_w"].to_list() == [100.0, 101.0, 102.0, 103.0]
    assert taken.counted() == {("out_of_order", ""): 2}
    assert taken.report.partial


def test_times_are_exact_to_the_microsecond_and_may_start_at_zero(tmp_path):
    row = gpu_row(0).split(",", 1)[1]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[f"{time},{row}" for time in ("0", "0.1", "0.300001", "1e2")]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    times = taken.lake.read_series(101)["time"].dt.timestamp("us").to_list()
    assert times == [0, 100_000, 300_001, 100_000_000]
