from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import click
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from app.output import FORMATS, Show, iso, render, with_format

NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Reading:
    job_id: int
    node: str | None
    power_w: float | None
    seen: datetime | None
    capped: bool


@dataclass(frozen=True, slots=True)
class Report:
    files: int
    rows: dict[str, int]
    problems: tuple[str, ...]
    readings: tuple[Reading, ...]


READINGS = [Reading(48893816434300, "n1", 1234.5678, NOON, True), Reading(7, None, math.nan, None, False)]


def test_the_table_is_aligned_with_numbers_to_the_right_and_missing_values_as_a_dash():
    assert render(READINGS, "table").decode() == (
        "        job_id  node  power_w  seen                  capped\n"
        "--------------  ----  -------  --------------------  ------\n"
        "48893816434300  n1      1,235  2026-11-23 12:00:00Z  yes\n"
        "             7  –           –  –                     no\n"
    )


def test_the_largest_number_of_a_column_shows_four_digits():
    def column(*values: float) -> list[str]:
        return render(pl.DataFrame({"x_w": values}), "table").decode().split()[2:]

    assert column(0.01234, 0.5) == ["0.0123", "0.5000"]
    assert column(12.345, 1.0) == ["12.35", "1.00"]
    assert column(123456.7) == ["123,457"]
    assert column(0.0) == ["0"]


def test_the_table_of_one_dataclass_stands_upright():
    report = Report(2, {"jobs": 1000, "gpu_samples": 31944}, ("first", "second"), tuple(READINGS[:1]))
    assert render(report, "table").decode() == (
        "files     2\n"
        "rows      jobs         1,000\n"
        "          gpu_samples  31,944\n"
        "problems  first\n"
        "          second\n"
        "\n"
        "readings\n"
        "        job_id  node  power_w  seen                  capped\n"
        "--------------  ----  -------  --------------------  ------\n"
        "48893816434300  n1      1,235  2026-11-23 12:00:00Z  yes\n"
    )


def test_long_text_is_wrapped_to_the_terminal_and_numbers_never_are():
    frame = pl.DataFrame({"what": ["a long text that goes on and on and on"], "energy_j": [123_456_789]})
    lines = render(frame, "table", room=40).decode().splitlines()
    assert max(len(line) for line in lines) <= 40
    assert " ".join(line[:27].strip() for line in lines[2:]) == "a long text that goes on and on and on"
    assert lines[2].endswith("123,456,789")


def test_long_text_of_one_dataclass_is_wrapped_beside_its_name():
    report = Report(2, {"jobs": 3}, ("a problem that takes many words to tell", "b"), ())
    lines = render(report, "table", room=40).decode().splitlines()
    assert lines[2:5] == ["problems  a problem that takes many", "          words to tell", "          b"]


def test_json_has_times_in_utc_with_z_and_null_for_missing_and_for_not_a_number():
    assert json.loads(render(READINGS, "json")) == [
        {
            "job_id": 48893816434300,
            "node": "n1",
            "power_w": 1234.5678,
            "seen": "2026-11-23T12:00:00Z",
            "capped": True,
        },
        {"job_id": 7, "node": None, "power_w": None, "seen": None, "capped": False},
    ]


def test_json_of_one_dataclass_is_an_object_that_keeps_its_shape():
    report = json.loads(render(Report(2, {"jobs": 3}, (), tuple(READINGS[1:])), "json"))
    assert report["rows"] == {"jobs": 3}
    assert report["problems"] == []
    assert [reading["job_id"] for reading in report["readings"]] == [7]


def test_csv_has_a_header_even_without_rows_and_nested_values_as_json():
    assert render(pl.DataFrame(schema={"a": pl.Int64, "b_w": pl.Float64}), "csv") == b"a,b_w\n"
    rows = list(csv.DictReader(io.StringIO(render(Report(2, {"jobs": 3}, ("x",), ()), "csv").decode())))
    assert rows == [{"files": "2", "rows": '{"jobs": 3}', "problems": '["x"]', "readings": "[]"}]


def test_parquet_can_be_read_back_with_its_types():
    back = pl.read_parquet(io.BytesIO(render(READINGS, "parquet")))
    assert back["job_id"].to_list() == [48893816434300, 7]
    assert back["power_w"].to_list() == [1234.5678, None]
    assert back["seen"].to_list() == [NOON, None]


def test_a_time_of_another_zone_is_shown_in_utc():
    assert iso(datetime(2026, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))) == "2025-12-31T23:30:00Z"


def test_what_cannot_be_rendered_is_named():
    with pytest.raises(TypeError, match="complex"):
        render([complex(1, 2)], "json")
    with pytest.raises(ValueError, match="'xml'; give one of table, json, csv, parquet"):
        render(READINGS, "xml")


names = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20)
cells = st.one_of(
    st.none(),
    st.integers(-(2**53), 2**53),
    st.floats(),
    names,
    st.booleans(),
    st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_every_format_has_one_row_for_each_record(pairs):
    @dataclass(frozen=True)
    class Pair:
        left: object
        right: object

    records = [Pair(*pair) for pair in pairs]
    assert len(json.loads(render(records, "json"))) == len(records)
    assert len(list(csv.reader(io.StringIO(render(records, "csv").decode())))) == len(records) + 1
    assert len(render(records, "table").decode().removesuffix("\n").split("\n")) == len(records) + 2


@given(st.lists(st.fixed_dictionaries({"a_w": st.none() | st.floats(width=32), "b": st.none() | names}), max_size=5))
def test_a_frame_and_the_same_records_render_alike(rows):
    frame = pl.DataFrame(rows, schema={"a_w": pl.Float64, "b": pl.String})

    @dataclass(frozen=True)
    class Row:
        a_w: float | None
        b: str | None

    records = [Row(**row) for row in rows]
    assert json.loads(render(frame, "json")) == json.loads(render(records, "json"))
    if rows:
        assert render(frame, "table") == render(records, "table")
        ours = [list(csv.reader(io.StringIO(render(each, "csv").decode()))) for each in (frame, records)]
        assert ours[0][0] == ours[1][0]
        for left, right in zip(*(each[1:] for each in ours), strict=True):
            assert left[1] == right[1]
            assert [float(cell) if cell else None for cell in left[:1]] == [float(x) if x else None for x in right[:1]]


def test_times_of_a_frame_are_in_utc_with_z_as_those_of_a_dataclass():
    times = [NOON, NOON + timedelta(microseconds=100_000), NOON + timedelta(microseconds=1), None]
    frame = pl.DataFrame({"time": times}, schema={"time": pl.Datetime("us", "UTC")})
    assert [row["time"] for row in json.loads(render(frame, "json"))] == [
        "2026-11-23T12:00:00Z",
        "2026-11-23T12:00:00.100000Z",
        "2026-11-23T12:00:00.000001Z",
        None,
    ]
    assert render(frame.head(1), "csv") == b"time\n2026-11-23T12:00:00Z\n"
    milliseconds = frame.select(pl.col("time").dt.cast_time_unit("ms").dt.convert_time_zone("Asia/Tokyo"))
    assert json.loads(render(milliseconds, "json"))[0] == {"time": "2026-11-23T12:00:00Z"}


# -- the options -------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--count", default=2)
@with_format
def readings(show: Show, *, count: int) -> None:
    """Readings."""
    show(READINGS[:count], table_rows=1)


def test_every_format_can_be_chosen_and_another_is_refused():
    for output_format in FORMATS:
        result = CliRunner().invoke(readings, ["--format", output_format])
        assert result.exit_code == 0
        assert result.stdout_bytes
    assert CliRunner().invoke(readings, ["--format", "xml"]).exit_code == 2


def test_a_long_table_is_cut_and_says_so_while_the_other_formats_are_whole():
    table = CliRunner().invoke(readings)
    assert len(table.stdout.splitlines()) == 3
    assert table.stderr == "the first 1 of 2; --limit 0 shows all\n"
    assert len(json.loads(CliRunner().invoke(readings, ["--format", "json"]).stdout)) == 2
    assert CliRunner().invoke(readings, ["--count", "1"]).stderr == ""


def test_output_is_written_to_a_file_whole_and_nothing_else_is_left(tmp_path):
    target = tmp_path / "readings.parquet"
    result = CliRunner().invoke(readings, ["--format", "parquet", "--output", str(target)])
    assert (result.exit_code, result.stdout) == (0, "")
    assert pl.read_parquet(target).height == 2
    assert list(tmp_path.iterdir()) == [target]


def test_an_output_folder_that_does_not_exist_is_a_usage_error_before_the_work(tmp_path):
    result = CliRunner().invoke(readings, ["--output", str(tmp_path / "no" / "x.csv")])
    assert result.exit_code == 2
    assert "does not exist" in result.stderr
