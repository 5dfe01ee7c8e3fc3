"""What nvidia-smi prints becomes rows: columns by name, units off, local time placed, and every line accounted for."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from app.cli import USAGE, run
from ingest.records import SmiOptions
from ingest.sources import nvidia_smi
from ingest.sources.delimited import Header, map_header
from tests.small_sources import Taken, lines, take, take_twice, write

QUERY = (
    "timestamp, index, power.draw [W], utilization.gpu [%], utilization.memory [%], memory.free [MiB], "
    "memory.used [MiB], temperature.gpu, temperature.memory, clocks.current.sm [MHz], clocks.current.memory [MHz], "
    "enforced.power.limit [W], clocks_throttle_reasons.active, pcie.link.width.current"
)
SAMPLE = (
    "2026/11/24 22:42:00.123, 1, 123.45 W, 55 %, 12 %, 141000 MiB, 2048 MiB, 40, 41, 1980 MHz, 3201 MHz, "
    "700.00 W, 0x0000000000000004, 16"
)
PLAIN_SAMPLE = (
    "2026/11/24 22:42:00.123, 1, 123.45, 55, 12, 141000, 2048, 40, 41, 1980, 3201, 700.00, 0x0000000000000004, 16"
)
KNOWN = {
    "job_id": None,
    "node": "n1",
    "gpu_index": 1,
    "time": datetime(2026, 11, 24, 22, 42, 0, 123_000, tzinfo=UTC),
    "gpu_util_pct": 55,
    "memory_util_pct": 12,
    "memory_free_mib": 141_000,
    "memory_used_mib": 2048,
    "gpu_temp_c": 40,
    "memory_temp_c": 41,
    "power_w": pytest.approx(123.45),
    "pcie_link_width": 16,
    "power_avg_w": None,
    "energy_counter_j": None,
    "sm_clock_mhz": 1980,
    "mem_clock_mhz": 3201,
    "power_limit_w": 700.0,
    "throttle": 4,
    "cluster": "nvidia-smi",
}
SHORT = "timestamp, index, power.draw [W]"
DMON = lines(
    "#Date       Time        gpu    pwr  gtemp  mtemp     sm    mem   mclk   pclk     fb ",
    "#YYYYMMDD   HH:MM:SS    Idx      W      C      C      %      %    MHz    MHz     MB ",
    " 20261124   22:42:00      0    123     40      -     55     12   3201   1980   2048 ",
    "",
    " 20261124   22:42:01      0    124      -      -     56     12   3201   1980   2049 ",
)


def samples(taken: Taken) -> list[dict[str, object]]:
    """All GPU samples, in order of time."""
    return taken.lake.scan("gpu_samples").collect().sort("time", "gpu_index").to_dicts()


def take_query(folder: Path, *rows: str, header: str = SHORT, **options: str) -> Taken:
    """Ingest one file of query output."""
    source = write(folder, "nvidia-smi-n1.csv", lines(header, *rows))
    return take(source, folder / "lake", smi=SmiOptions(**options))


@pytest.mark.parametrize("sample", [SAMPLE, PLAIN_SAMPLE], ids=["units", "nounits"])
def test_every_column_of_query_output_is_taken_with_its_unit_off(tmp_path, sample):
    source = write(tmp_path, "nvidia-smi-n1.csv", lines(QUERY, sample))
    assert samples(take_twice(source, tmp_path / "lake", smi=SmiOptions(time_zone="UTC"))) == [KNOWN]


def test_output_without_a_header_is_read_with_the_columns_that_are_told(tmp_path):
    source = write(tmp_path, "nvidia-smi-n1.csv", lines("2026/11/24 22:42:00.000, 0, 5 W", "2026/11/24 x, 0, 5 W"))
    taken = take(source, tmp_path / "lake", smi=SmiOptions(columns=("timestamp", "index", "power.draw")))
    assert [row["power_w"] for row in samples(taken)] == [5.0]
    assert taken.rejected() == [("nvidia-smi-n1.csv", 2, "wrong_type", "2026/11/24 x, 0, 5 W")]


def test_output_without_a_header_and_without_columns_is_refused_with_all_its_rows(tmp_path):
    source = write(tmp_path, "nvidia-smi-n1.csv", lines(SAMPLE, SAMPLE))
    assert take_twice(source, tmp_path / "lake").refused() == [("nvidia-smi-n1.csv", "no_header", 2)]


def test_query_output_without_a_time_is_refused_by_the_name_of_what_it_lacks(tmp_path):
    taken = take_query(tmp_path, "0, 5 W", header="index, power.draw [W]")
    assert taken.refused() == [("nvidia-smi-n1.csv", "missing_column", 1)]
    assert taken.counted() == {("missing_column", "timestamp"): 1}


def test_a_value_that_the_driver_does_not_have_is_null_and_not_zero(tmp_path):
    rows = [
        f"2026/11/24 22:42:0{i}, 0, {word}"
        for i, word in enumerate(["5 W", "[N/A]", "[Not Supported]", "[Unknown Error]", "[GPU is lost]", "N/A", ""])
    ]
    taken = take_query(tmp_path, *rows, time_zone="UTC")
    assert [row["power_w"] for row in samples(taken)] == [5.0, *[None] * 6]
    assert taken.counted() == {("missing_value", "power_w"): 6}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2026/11/24 22:42:00, 0, 99999 W", "out_of_range"),
        ("2026/11/24 22:42:00, 0, 0.1 kW", "wrong_type"),
        ("2026/11/24 22:42:00, 0, much", "wrong_type"),
        ("2026/13/24 22:42:00, 0, 5 W", "wrong_type"),
        ("1960/11/24 22:42:00, 0, 5 W", "out_of_range"),
        (", 0, 5 W", "missing_key"),
        ("2026/11/24 22:42:00, , 5 W", "missing_key"),
        ("2026/11/24 22:42:00, 0", "too_few_fields"),
        ("2026/11/24 22:42:00, 0, 5 W, 6", "too_many_fields"),
        ("Unable to determine the device handle for GPU: Unknown Error", "too_few_fields"),
    ],
)
def test_a_line_that_cannot_be_taken_goes_to_quarantine_as_it_was_written(tmp_path, row, reason):
    taken = take_query(tmp_path, "2026/11/24 22:41:00, 0, 5 W", row)
    assert taken.rejected() == [("nvidia-smi-n1.csv", 3, reason, row)]
    assert len(samples(taken)) == 1


def test_a_header_repeated_by_an_appended_run_is_no_row(tmp_path):
    taken = take_query(tmp_path, "2026/11/24 22:42:00, 0, 5 W", SHORT, "", "2026/11/24 22:42:01, 0, 6 W")
    assert [row["power_w"] for row in samples(taken)] == [5.0, 6.0]
    assert taken.report.rows_in == 2


def test_rows_below_another_header_are_set_apart_since_their_columns_mean_something_else(tmp_path):
    other = "2026/11/24 22:42:01, 0, 60"
    taken = take_query(
        tmp_path,
        "2026/11/24 22:42:00, 0, 5 W",
        "timestamp, index, temperature.gpu",
        other,
        SHORT,
        "2026/11/24 22:42:02, 0, 7",
    )
    assert [row["power_w"] for row in samples(taken)] == [5.0, 7.0]
    assert taken.rejected() == [("nvidia-smi-n1.csv", 4, "header_changed", other)]


def test_a_first_cell_that_looks_like_a_column_is_not_taken_for_a_header(tmp_path):
    header = "name, timestamp, index, power.draw [W]"
    taken = take_query(
        tmp_path, "Model.X, 2026/11/24 22:42:00, 0, 5 W", "index, 2026/11/24 22:42:01, 0, 6 W", header=header
    )
    assert [row["power_w"] for row in samples(taken)] == [5.0, 6.0]


def test_second_names_stand_in_only_where_the_first_name_is_absent(tmp_path):
    taken = take_query(
        tmp_path,
        "2026/11/24 22:42:00, 0, 7 W, 300 W, 900 MHz",
        header="timestamp, index, power.draw.instant [W], power.limit [W], clocks.sm [MHz]",
    )
    assert [(r["power_w"], r["power_limit_w"], r["sm_clock_mhz"]) for r in samples(taken)] == [(7.0, 300.0, 900)]
    both = take_query(
        tmp_path / "both",
        "2026/11/24 22:42:00, 0, 300 W, 250 W",
        header="timestamp, index, power.limit [W], enforced.power.limit [W]",
    )
    assert [row["power_limit_w"] for row in samples(both)] == [250.0]
    assert list(both.report.unknown_columns) == ["power.limit [W]"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_of_three_readings_of_power_the_instantaneous_and_the_averaged_are_taken(tmp_path, order):
    asked = [("power.draw [W]", "100 W"), ("power.draw.average [W]", "101 W"), ("power.draw.instant [W]", "650 W")]
    names, watts = zip(*(asked[i] for i in order), strict=True)
    row, header = ", ".join(["2026/11/24 22:42:00, 0", *watts]), ", ".join(["timestamp, index", *names])
    taken = take_query(tmp_path, row, header=header)
    assert [(r["power_w"], r["power_avg_w"]) for r in samples(taken)] == [(650.0, 101.0)]
    assert list(taken.report.unknown_columns) == ["power.draw [W]"]


@pytest.mark.parametrize(
    ("names", "watts", "power_w", "power_avg_w"),
    [
        (["power.draw [W]"], [100], 100.0, None),
        (["power.draw.instant [W]"], [650], 650.0, None),
        (["power.draw.average [W]"], [101], None, 101.0),
        (["power.draw [W]", "power.draw.average [W]"], [100, 101], 100.0, 101.0),
        (["power.draw [W]", "power.draw.instant [W]"], [100, 650], 650.0, None),
    ],
    ids=["draw", "instant", "average", "draw and average", "draw and instant"],
)
def test_power_draw_stands_in_for_the_instantaneous_reading_alone_and_only_where_that_is_absent(
    tmp_path, names, watts, power_w, power_avg_w
):
    row = ", ".join(["2026/11/24 22:42:00, 0", *(f"{one} W" for one in watts)])
    taken = take_query(tmp_path, row, header=", ".join(["timestamp, index", *names]))
    assert [(r["power_w"], r["power_avg_w"]) for r in samples(taken)] == [(power_w, power_avg_w)]


def test_a_column_in_another_unit_than_expected_is_not_taken(tmp_path):
    taken = take_query(tmp_path, "2026/11/24 22:42:00, 0, 5000 mW", header="timestamp, index, power.draw [mW]")
    assert [row["power_w"] for row in samples(taken)] == [None]
    assert list(taken.report.unknown_columns) == ["power.draw [mW]"]


# -- time --------------------------------------------------------------------------------------------------------------


def test_local_times_are_placed_by_the_zone_that_is_told(tmp_path):
    taken = take_query(tmp_path, "2026/07/01 12:00:00.5, 0, 5 W", time_zone="America/New_York")
    assert [row["time"] for row in samples(taken)] == [datetime(2026, 7, 1, 16, 0, 0, 500_000, tzinfo=UTC)]
    assert taken.counted() == {}


def test_without_a_zone_times_are_taken_as_utc_and_that_is_counted_as_a_remark(tmp_path):
    taken = take_query(tmp_path, "2026/07/01 12:00:00, 0, 5 W", "2026/07/01 12:00:01, 0, 5 W")
    assert samples(taken)[0]["time"] == datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert taken.counted() == {("time_zone_assumed", "UTC"): 2}
    assert not taken.report.partial


def test_hours_that_the_clock_shows_twice_or_never_are_set_apart(tmp_path):
    twice, never = "2026/10/25 02:30:00, 0, 5 W", "2026/03/29 02:30:00, 0, 5 W"
    taken = take_query(tmp_path, twice, never, "2026/10/25 03:30:00, 0, 5 W", time_zone="Europe/Berlin")
    assert [(line, reason, raw) for _, line, reason, raw in taken.rejected()] == [
        (2, "ambiguous_time", twice),
        (3, "ambiguous_time", never),
    ]
    assert [row["time"] for row in samples(taken)] == [datetime(2026, 10, 25, 2, 30, tzinfo=UTC)]


def test_the_same_file_in_another_zone_or_of_another_node_is_read_again(tmp_path):
    row = "2026/07/01 12:00:00, 0, 5 W"
    take_query(tmp_path, row)
    take_query(tmp_path, row, time_zone="Asia/Tokyo")
    taken = take_query(tmp_path, row, time_zone="Asia/Tokyo", node="other")
    assert [(r["node"], r["time"]) for r in samples(taken)] == [("other", datetime(2026, 7, 1, 3, tzinfo=UTC))]
    again = take_query(tmp_path, row, time_zone="Asia/Tokyo", node="other")
    assert again.report.rows_unchanged == 1


# -- dmon --------------------------------------------------------------------------------------------------------------


def test_dmon_text_with_date_and_time_is_taken_and_its_dashes_are_null(tmp_path):
    source = write(tmp_path, "dmon-n1.log", DMON + DMON.splitlines()[0] + "\n")
    taken = take_twice(source, tmp_path / "lake", smi=SmiOptions(time_zone="UTC"))
    assert [
        (r["node"], r["time"].second, r["power_w"], r["gpu_temp_c"], r["memory_temp_c"], r["sm_clock_mhz"])
        for r in samples(taken)
    ] == [("n1", 0, 123.0, 40, None, 1980), ("n1", 1, 124.0, None, None, 1980)]
    assert [(r["gpu_util_pct"], r["mem_clock_mhz"], r["memory_used_mib"]) for r in samples(taken)] == [
        (55, 3201, 2048),
        (56, 3201, 2049),
    ]
    assert taken.report.rows_in == 2


@pytest.mark.parametrize(
    ("header", "lacking"),
    [("# gpu   pwr", ("Date", "Time")), ("#Time        gpu   pwr", ("Date",)), ("#Date       gpu   pwr", ("Time",))],
)
def test_dmon_text_that_does_not_say_when_is_refused(tmp_path, header, lacking):
    source = write(tmp_path, "dmon-n1.txt", lines(header, "# Idx     W", "    0    70"))
    taken = take_twice(source, tmp_path / "lake")
    assert taken.refused() == [("dmon-n1.txt", "missing_column", 2)]
    assert taken.counted() == {("missing_column", ", ".join(lacking)): 2}


def test_dmon_rows_before_a_header_of_other_columns_are_doubtful_in_a_piece_that_begins_with_them():
    header = map_header(
        ["Date", "Time", "gpu", "pwr"], nvidia_smi.DMON_COLUMN_MAP, nvidia_smi.DMON_OPTIONAL_COLUMN_MAP, frozenset()
    )
    piece = lines(" 20261124 22:42:00 0 70", "#Date Time gpu gtemp", " 20261124 22:42:01 0 71")
    parsed = nvidia_smi.parse_dmon(piece.encode(), header, 900, SmiOptions())
    assert [(line, reason) for line, reason, _, _ in parsed.rejected] == [
        (900, "header_changed"),
        (902, "header_changed"),
    ]
    assert parsed.frame.height == 0


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_node_comes_from_the_file_name_or_an_option_and_else_the_file_is_refused(tmp_path):
    source = write(tmp_path, "in/nvidia-smi.csv", lines(SHORT, "2026/11/24 22:42:00, 0, 5 W")).parent
    assert take(source, tmp_path / "lake").refused() == [("nvidia-smi.csv", "bad_file_name", 1)]
    assert [row["node"] for row in samples(take(source, tmp_path / "lake2", smi=SmiOptions(node="n7")))] == ["n7"]


def test_files_of_one_name_stand_beside_each_other_where_an_option_tells_their_nodes(tmp_path):
    row = "2026/11/24 22:42:00, 0, 5 W"
    source = write(tmp_path, "nvidia-smi.csv", lines(SHORT, row))
    take(source, tmp_path / "lake", smi=SmiOptions(node="n1"))
    write(tmp_path, "nvidia-smi.csv", lines(SHORT, row, row.replace("00,", "01,")))
    taken = take_twice(source, tmp_path / "lake", smi=SmiOptions(node="n2"))
    assert [row["node"] for row in samples(taken)] == ["n1", "n2", "n2"]


def test_remarks_of_dmon_in_a_file_of_several_pieces_are_no_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.scan.CHUNK_BYTES", 500)
    monkeypatch.setattr("ingest.scan.PIECE_BYTES", 300)
    monkeypatch.setattr("ingest.reading.PIECE_BYTES", 300)
    names, units = DMON.splitlines()[:2]
    rows = [
        f" 20261124   22:42:{i:02d}      0    123     40      -     55     12   3201   1980   2048" for i in range(20)
    ]
    text = lines(*(line for row in rows for line in (names, units, "", row)), "# cut sho").rstrip("\n")
    taken = take_twice(write(tmp_path, "dmon-n1.log", text), tmp_path / "lake")
    assert (taken.report.rows_in, taken.report.rows_out) == (20, 20)


def test_files_of_several_nodes_and_kinds_in_one_folder_stay_apart(tmp_path):
    write(tmp_path, "in/nvidia-smi-r1.n2.csv", lines(SHORT, "2026/11/24 22:42:00, 0, 5 W"))
    write(tmp_path, "in/dmon-n3.log", DMON)
    write(tmp_path, "in/notes.log", "nothing\n")
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert sorted({row["node"] for row in samples(taken)}) == ["n3", "r1.n2"]
    assert taken.report.ignored_files == ["notes.log"]


def test_logs_of_both_kinds_of_one_node_keep_each_row_and_of_two_at_one_time_one_in_quarantine(tmp_path):
    write(tmp_path, "in/dmon-n1.log", DMON)
    rows = ("2026/11/24 22:42:00.000, 0, 5 W", "2026/11/24 22:42:00.500, 0, 6 W")
    write(tmp_path, "in/nvidia-smi-n1.csv", lines(SHORT, *rows))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert [row["power_w"] for row in samples(taken)] == [123.0, 6.0, 124.0]
    assert [(name, reason) for name, _, reason, _ in taken.rejected()] == [("nvidia-smi-n1.csv", "repeated_time")]
    assert (taken.report.rows_in, taken.report.rows_quarantined, taken.report.partial) == (4, 1, True)


def test_a_folder_above_the_files_and_compression_change_nothing(tmp_path):
    path = write(
        tmp_path, "in/rec/nvidia-smi-n1.csv.gz", gzip.compress(lines(SHORT, "2026/11/24 22:42:00, 0, 5 W").encode())
    )
    assert [row["node"] for row in samples(take_twice(path.parents[1], tmp_path / "lake"))] == ["n1"]


def test_a_file_of_several_batches_keeps_every_row_and_the_right_line_of_a_bad_one(tmp_path):
    start = datetime(2026, 11, 24).timestamp()
    times = [datetime.fromtimestamp(start + i / 10).strftime("%Y/%m/%d %H:%M:%S.%f")[:-3] for i in range(100_000)]
    rows = [f"{t}, 0, {100 + i % 50}.00 W, some words" for i, t in enumerate(times)]
    rows[90_000] = "2026/11/24 02:30:00.000, 0, x W, some words"
    taken = take_query(tmp_path, *rows, header=f"{SHORT}, name")
    assert (taken.report.rows_in, taken.report.rows_out) == (100_000, 99_999)
    assert [(line, reason) for _, line, reason, _ in taken.rejected()] == [(90_002, "wrong_type")]
    watts = taken.lake.scan("gpu_samples").select(pl.col("power_w").sum()).collect().item()
    assert watts == sum(100 + i % 50 for i in range(100_000)) - 100


def test_an_unknown_time_zone_is_wrong_usage(tmp_path, capsys):
    source = write(tmp_path, "nvidia-smi-n1.csv", lines(SHORT))
    assert run(["lake", "ingest", str(source), "--lake", str(tmp_path / "lake"), "--time-zone", "Mars/Base"]) == USAGE
    assert "'Mars/Base' is no time zone" in capsys.readouterr().err


def test_the_command_takes_node_zone_and_columns(tmp_path, capsys):
    source = write(tmp_path, "nvidia-smi.csv", lines("2026/11/24 22:42:00.000, 0, 5 W"))
    options = ["--node", "n9", "--time-zone", "Asia/Tokyo", "--columns", "timestamp,index,power.draw", "--workers", "1"]
    assert run(["lake", "ingest", str(source), "--lake", str(tmp_path / "lake"), *options]) == 0
    found = pl.read_parquet(tmp_path / "lake" / "gpu_samples" / "*" / "*.parquet")
    assert found.select("node", "power_w").rows() == [("n9", 5.0)]
    assert found["time"][0] == datetime(2026, 11, 24, 13, 42, tzinfo=UTC)


def test_header_of_a_query_keeps_unknown_columns_as_they_are_written():
    names, _ = nvidia_smi.read_query_header(b"timestamp, index, fan.speed [%]\n", SmiOptions())
    header: Header = map_header(names, nvidia_smi.QUERY_COLUMN_MAP, nvidia_smi.QUERY_OPTIONAL_COLUMN_MAP, frozenset())
    assert header.unknown == ("fan.speed [%]",)


# -- rotated logs ------------------------------------------------------------------------------------------------------


def query_log(*seconds: int) -> str:
    return lines(SHORT, *(f"2026/11/24 22:42:{s:02d}.000, 0, {100 + s}.00 W" for s in seconds))


def dmon_log(*seconds: int) -> str:
    return lines(
        "#Date Time gpu pwr", "#YYYYMMDD HH:MM:SS Idx W", *(f"20261124 22:42:{s:02d} 0 {100 + s}" for s in seconds)
    )


LOGS = {"nvidia-smi-n1.csv": query_log, "dmon-n1.log": dmon_log}


def watts(taken: Taken) -> list[float]:
    return sorted(power - 100 for (power,) in taken.rows("gpu_samples", "power_w"))


@pytest.mark.parametrize("new", [(10,), tuple(range(10, 30))], ids=["shorter", "longer"])
@pytest.mark.parametrize("name", LOGS)
def test_a_log_that_was_rotated_away_keeps_its_rows(tmp_path, name, new):
    """By copytruncate, or by a rename and a new file: the one of that name has other rows now."""
    folder, lake, log = tmp_path / "in", tmp_path / "lake", LOGS[name]
    write(tmp_path, f"in/{name}", log(*range(5)))
    take_twice(folder, lake)
    write(tmp_path, f"in/{name}", log(*new))
    taken = take_twice(folder, lake)
    assert (taken.report.files_refused, taken.report.files_replaced) == (0, 0)
    assert watts(taken) == [*range(5), *new]
    write(tmp_path, f"in/{name}", log(*new, 40))
    taken = take_twice(folder, lake)
    assert (taken.report.files_refused, taken.report.files_replaced) == (0, 1)
    assert watts(taken) == [*range(5), *new, 40]
    write(tmp_path, f"in/{name}", log(50))
    assert watts(take_twice(folder, lake)) == [*range(5), *new, 40, 50]


@pytest.mark.parametrize("ending", [".1", "-20261124", ".1.gz"])
@pytest.mark.parametrize("name", LOGS)
def test_rows_that_came_before_the_rotation_are_taken_from_the_file_that_was_moved_away(tmp_path, name, ending):
    folder, lake, log = tmp_path / "in", tmp_path / "lake", LOGS[name]
    write(tmp_path, f"in/{name}", log(*range(5)))
    take_twice(folder, lake)
    moved = log(*range(8))
    (folder / f"{name}{ending}").write_bytes(gzip.compress(moved.encode()) if ending.endswith("gz") else moved.encode())
    write(tmp_path, f"in/{name}", log(8, 9))
    taken = take_twice(folder, lake)
    assert taken.report.files_refused == 0
    assert watts(taken) == [*range(10)]
    assert taken.rejected() == []
    (folder / f"{name}{ending}").unlink()
    write(tmp_path, f"in/{name}", log(8, 9, 10))
    assert watts(take_twice(folder, lake)) == [*range(11)]


@pytest.mark.parametrize("name", LOGS)
def test_a_log_that_lost_its_end_is_refused_and_its_rows_stay(tmp_path, name):
    folder, lake, log = tmp_path / "in", tmp_path / "lake", LOGS[name]
    write(tmp_path, f"in/{name}", log(*range(10)))
    take(folder, lake)
    write(tmp_path, f"in/{name}", log(*range(4)))
    taken = take(folder, lake)
    assert taken.report.reasons["shrunken"] >= 1
    assert watts(taken) == [*range(10)]


@pytest.mark.parametrize("name", LOGS)
def test_a_short_log_that_meets_two_of_the_lake_is_refused_and_theirs_stay(tmp_path, name):
    log = LOGS[name]
    for number, seconds in enumerate((range(10), range(10, 20))):
        take(write(tmp_path, f"{number}/{name}", log(*seconds)).parent, tmp_path / "lake")
    bridge = write(tmp_path, f"in/{name}", log(9, 10)).parent
    taken = take_twice(bridge, tmp_path / "lake")
    assert [(file, reason) for file, reason, _ in taken.refused()] == [(name, "shrunken")]
    assert ("2 rows, 20 before",) in taken.rows("quarantine", "detail")
    assert watts(taken) == [*range(20)]
    assert watts(take(bridge, tmp_path / "lake", force=True)) == [9, 10]


@pytest.mark.parametrize("name", LOGS)
def test_a_log_of_all_rows_of_two_rotated_ones_takes_the_place_of_both(tmp_path, name):
    log = LOGS[name]
    for number, seconds in enumerate((range(10), range(10, 20))):
        take(write(tmp_path, f"{number}/{name}", log(*seconds)).parent, tmp_path / "lake")
    taken = take_twice(write(tmp_path, f"in/{name}", log(*range(20))).parent, tmp_path / "lake")
    assert taken.report.files_refused == 0
    assert watts(taken) == [*range(20)]
    assert taken.lake.inputs()["name"].to_list() == [name]


@pytest.mark.parametrize("name", LOGS)
def test_a_larger_log_that_has_only_the_end_of_the_known_one_is_refused(tmp_path, name):
    folder, lake, log = tmp_path / "in", tmp_path / "lake", LOGS[name]
    write(tmp_path, f"in/{name}", log(*range(10)))
    take(folder, lake)
    write(tmp_path, f"in/{name}", log(*range(8, 40)))
    taken = take_twice(folder, lake)
    assert [(file, reason) for file, reason, _ in taken.refused()] == [(name, "keys_lost")]
    why = "1 of 1 GPUs are not in it any more, or not for all of their time, as n1 0"
    assert (f"{why}; --force drops them, another --cluster keeps both",) in taken.rows("quarantine", "detail")
    assert watts(taken) == [*range(10)]


def day_log(day: int, *seconds: int) -> str:
    return lines(SHORT, *(f"2026/11/{day} 22:42:{s:02d}.000, 0, {100 + s}.00 W" for s in seconds))


def test_another_day_s_log_that_is_read_in_another_zone_leaves_the_first_day_as_it_is(tmp_path):
    """Only the content tells that it is another log: both begin at one time of the day."""
    first = write(tmp_path, "1/nvidia-smi-n1.csv", day_log(24, *range(5))).parent
    second = write(tmp_path, "2/nvidia-smi-n1.csv", day_log(25, *range(20, 30))).parent
    take(first, tmp_path / "lake")
    taken = take_twice(second, tmp_path / "lake", smi=SmiOptions(time_zone="Europe/Berlin"))
    assert (taken.report.files_refused, taken.report.files_replaced) == (0, 0)
    assert watts(taken) == [*range(5), *range(20, 30)]
    again = take_twice(first, tmp_path / "lake", smi=SmiOptions(time_zone="Europe/Berlin"))
    assert watts(again) == [*range(5), *range(20, 30)]
    assert {row["time"].hour for row in samples(again)} == {21}


@pytest.mark.parametrize(("seconds", "is_taken"), [(range(12), True), (range(5, 17), False)])
def test_a_log_that_is_read_in_another_zone_may_have_grown_and_may_not_have_lost_its_begin(tmp_path, seconds, is_taken):
    folder = write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*range(10))).parent
    take(folder, tmp_path / "lake")
    write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*seconds))
    taken = take_twice(folder, tmp_path / "lake", smi=SmiOptions(time_zone="Asia/Tokyo"))
    assert taken.report.files_refused == (0 if is_taken else 1)
    assert watts(taken) == [*(seconds if is_taken else range(10))]


def test_where_a_joined_log_was_moved_away_nothing_is_read_in_its_place(tmp_path):
    """Two logs of one GPU at one time are joined; when one grows, the other would have to be read again."""
    folder, lake = tmp_path / "in", tmp_path / "lake"
    write(tmp_path, "in/nvidia-smi-n1.csv", query_log(0, 2, 4))
    write(tmp_path, "in/dmon-n1.log", dmon_log(1, 3))
    take(folder, lake)
    (folder / "nvidia-smi-n1.csv").rename(folder / "nvidia-smi-n1.csv.1")
    write(tmp_path, "in/nvidia-smi-n1.csv", query_log(10, 12))
    write(tmp_path, "in/dmon-n1.log", dmon_log(1, 3, 5))
    taken = take(folder, lake)
    assert taken.report.reasons["companion_missing"] >= 1
    assert watts(taken) == [0, 1, 2, 3, 4, 10, 12]
    write(tmp_path, "in/dmon-n1.log", dmon_log(20, 21))
    assert watts(take(folder, lake)) == [0, 1, 2, 3, 4, 10, 12, 20, 21]


def test_a_node_that_is_corrected_does_not_make_room_for_the_other_node_s_log(tmp_path):
    first = write(tmp_path, "a/nvidia-smi.csv", query_log(*range(10)))
    second = write(tmp_path, "b/nvidia-smi.csv", query_log(*range(20)))
    take(first.parent, tmp_path / "lake", smi=SmiOptions(node="n1"))  # it is n2's
    take(first.parent, tmp_path / "lake", smi=SmiOptions(node="n2"))
    taken = take(second.parent, tmp_path / "lake", smi=SmiOptions(node="n1"))
    nodes = [row["node"] for row in samples(taken)]
    assert (nodes.count("n1"), nodes.count("n2")) == (20, 10)


def test_a_copy_beside_a_log_is_counted_as_what_it_is(tmp_path):
    source = write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*range(10))).parent
    take(source, tmp_path / "lake")
    write(tmp_path, "in/nvidia-smi-n1.csv.1", query_log(*range(10)))
    taken = take_twice(source, tmp_path / "lake", smi=SmiOptions(time_zone="Europe/Berlin"))
    report = taken.report
    assert (report.rows_in, report.rows_out, report.rows_quarantined, report.rows_unchanged) == (20, 10, 10, 0)
    assert watts(taken) == [*range(10)]
    for end in (12, 15, 18, 22, 24, 30):
        write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*range(end)))
        taken = take_twice(source, tmp_path / "lake", smi=SmiOptions(time_zone="Europe/Berlin"))
        assert taken.report.files_refused == 0
        assert watts(taken) == [*range(end)]


def test_a_log_that_grows_beside_its_copy_is_taken_each_time(tmp_path):
    """The rows of the copy are in quarantine, and do not count against the log."""
    source = write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*range(10))).parent
    take(source, tmp_path / "lake")
    write(tmp_path, "in/nvidia-smi-n1.csv.1", query_log(*range(10)))
    for end in (15, 18, 22, 24, 30):
        write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*range(end)))
        taken = take(source, tmp_path / "lake")
        assert taken.report.files_refused == 0
        assert watts(taken) == [*range(end)]


def half_log(*seconds: int) -> str:
    """Rows of another recorder, half a second after the full ones."""
    return query_log(*seconds).replace(".000,", ".500,")


def test_a_log_that_grows_does_not_take_the_place_of_another_recorder_s_that_is_at_hand(tmp_path):
    """It spans all of its time, and has as many rows as both had."""
    source = write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*range(10))).parent
    write(tmp_path, "in/nvidia-smi-n1.csv.1", half_log(*range(10)))
    take_twice(source, tmp_path / "lake")
    write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*range(20)))
    taken = take_twice(source, tmp_path / "lake")
    assert taken.report.files_refused == 0
    assert watts(taken) == sorted([*range(20), *range(10)])
    assert taken.lake.inputs()["name"].to_list() == ["nvidia-smi-n1.csv", "nvidia-smi-n1.csv.1"]
    write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*range(25)))
    write(tmp_path, "in/nvidia-smi-n1.csv.1", half_log(*range(25)))
    assert watts(take_twice(source, tmp_path / "lake")) == sorted([*range(25), *range(25)])


def test_rows_of_another_recorder_s_log_that_is_gone_stay_where_no_other_file_has_them(tmp_path):
    source = write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*range(10))).parent
    other = write(tmp_path, "in/nvidia-smi-n1.csv.1", half_log(*range(10)))
    take(source, tmp_path / "lake")
    other.unlink()
    write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*range(20)))
    taken = take_twice(source, tmp_path / "lake")
    assert [(file, reason) for file, reason, _ in taken.refused()] == [("nvidia-smi-n1.csv", "companion_missing")]
    assert watts(taken) == sorted([*range(10), *range(10)])


def test_a_longer_log_of_another_folder_that_has_not_the_known_one_s_times_is_refused(tmp_path):
    take(write(tmp_path, "a/nvidia-smi-n1.csv", half_log(*range(2, 10))).parent, tmp_path / "lake")
    taken = take_twice(write(tmp_path, "b/nvidia-smi-n1.csv", query_log(*range(20))).parent, tmp_path / "lake")
    assert [(file, reason) for file, reason, _ in taken.refused()] == [("nvidia-smi-n1.csv", "keys_lost")]
    assert watts(taken) == [*range(2, 10)]


def test_a_log_with_a_time_in_common_with_its_neighbour_is_taken_each_time_that_it_grows(tmp_path):
    source = write(tmp_path, "in/nvidia-smi-n1.csv.1", query_log(*range(10))).parent
    for end in (15, 20, 30, 50):
        write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*range(9, end)))
        taken = take_twice(source, tmp_path / "lake")
        assert taken.report.files_refused == 0
        assert watts(taken) == [*range(end)]


def test_of_joined_logs_of_one_size_each_is_read_again_as_itself(tmp_path):
    source = write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*range(0, 30, 3))).parent
    write(tmp_path, "in/nvidia-smi-n1.csv.1", query_log(*range(1, 31, 3)))
    write(tmp_path, "in/nvidia-smi-n1.csv.2", query_log(*range(2, 32, 3)))
    take(source, tmp_path / "lake")
    write(tmp_path, "in/nvidia-smi-n1.csv", query_log(*range(0, 36, 3)))
    taken = take_twice(source, tmp_path / "lake")
    assert taken.report.files_refused == 0
    assert watts(taken) == [*range(31), 33]


def test_a_copy_of_a_joined_log_that_is_read_again_is_not_counted_twice(tmp_path):
    source = write(tmp_path, "in/nvidia-smi-n1.csv", query_log(0, 2, 4)).parent
    write(tmp_path, "in/dmon-n1.log", dmon_log(1, 3))
    take(source, tmp_path / "lake")
    write(tmp_path, "in/nvidia-smi-n1.csv.1", query_log(0, 2, 4))
    write(tmp_path, "in/dmon-n1.log", dmon_log(1, 3, 5))
    taken = take_twice(source, tmp_path / "lake")
    assert taken.report.files_refused == 0
    assert watts(taken) == [*range(6)]
