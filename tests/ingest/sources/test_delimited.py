"""The two parsers of delimited text: what each accepts, what it says of the rest."""

from __future__ import annotations

import io

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ingest.sources import delimited

TYPES = {"time_epoch_s": pl.Float64(), "gpu_index": pl.Int16(), "power_w": pl.Float32(), "job_id": pl.Int64()}
COLUMN_MAP = {"timestamp": "time_epoch_s", "gpu": "gpu_index", "power": "power_w"}
REQUIRED = frozenset({"time_epoch_s", "gpu_index"})


def header(line: str) -> delimited.Header:
    names, _ = delimited.split_header(line.encode())
    return delimited.map_header(names, COLUMN_MAP, {"id": "job_id"}, frozenset({""}))


def careful(body: str | bytes, names: str = "timestamp,gpu,power") -> delimited.Parsed:
    data = body.encode() if isinstance(body, str) else body
    exact = frozenset({"job_id"})
    return delimited.parse_careful(data, header(names), TYPES, first_line=2, required=REQUIRED, exact=exact)


def test_columns_are_found_by_name_wherever_they_stand() -> None:
    found = header("\ufeffpower,extra,Timestamp,power,gpu")
    assert found.columns == ("power_w", None, "time_epoch_s", None, "gpu_index")
    assert (found.unknown, found.repeated, found.missing) == (("extra",), ("power",), ())


def test_an_optional_column_is_not_missed() -> None:
    assert header("timestamp,power").missing == ("gpu",)


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ("1.5,0", "too_few_fields", "2 of 3"),
        ("1.5,0,1,2", "too_many_fields", "4 of 3"),
        ("1.5,x,1", "wrong_type", "gpu_index x"),
        ("1.5,0.5,1", "wrong_type", "gpu_index 0.5"),
        ("1.5,0,-1", "out_of_range", "power_w -1"),
        ("1.5,0,2000.5", "out_of_range", "power_w 2000.5"),
        ("1.5,0,inf", "out_of_range", "power_w inf"),
        ("1.5,,1", "missing_key", "gpu_index "),
        ("N/A,0,1", "missing_key", "time_epoch_s N/A"),
    ],
)
def test_a_bad_line_is_rejected_by_name_with_its_number_and_text(line: str, reason: str, detail: str) -> None:
    parsed = careful(f"1.0,0,10\n{line}\n2.0,0,20\n")
    assert parsed.rejected == [(3, reason, detail, line)]
    assert parsed.frame["line"].to_list() == [2, 4]


def test_bytes_that_are_not_utf8_are_rejected_with_the_byte_written_out() -> None:
    parsed = careful(b"1.0,0,10\n1.5,0,\xff1\n")
    assert parsed.rejected == [(3, "not_utf8", "byte 7 of the line", "1.5,0,\\xff1")]


@pytest.mark.parametrize("token", ["", "N/A", "[Not Supported]", "nan", "NaN", "NULL", "\\N"])
def test_a_cell_that_says_it_is_missing_is_null(token: str) -> None:
    assert careful(f"1.0,0,{token}\n").frame["power_w"].to_list() == [None]


@pytest.mark.parametrize("value", [2**63, 2**63 - 1, 2**64 - 1, 2**32 - 1])
def test_a_sentinel_is_null_and_counted(value: int) -> None:
    parsed = careful(f"1.0,0,{value}\n")
    assert parsed.frame["power_w"].to_list() == [None]
    assert parsed.sentinels == {"power_w": 1}


def test_an_id_in_exponent_form_has_lost_its_digits() -> None:
    parsed = careful("1.0,0,1,1.2E+13\n1.0,0,1,12345678901234\n", "timestamp,gpu,power,id")
    assert [(line, reason) for line, reason, _, _ in parsed.rejected] == [(2, "id_not_exact")]
    assert parsed.frame["job_id"].to_list() == [12_345_678_901_234]


def test_blank_lines_are_no_rows() -> None:
    parsed = careful("1.0,0,10\n\n   \r\n2.0,0,20")
    assert parsed.frame["line"].to_list() == [2, 5]


@pytest.mark.parametrize("body", ["1,0\n", "1,0,1,1\n", "1,x,1\n", "1,0,-1\n", "\n1,0,1\n", ",0,1\n", "1,0,2001\n"])
def test_the_quick_way_gives_up_on_any_doubt(body: str) -> None:
    assert delimited.parse_clean(b"1,0,1\n" + body.encode(), header("timestamp,gpu,power"), TYPES, REQUIRED) is None


def test_the_quick_way_takes_a_blank_last_cell_for_missing_and_not_for_a_short_line() -> None:
    frame = delimited.parse_clean(b"1,0,\n2,0,5\n", header("timestamp,gpu,power"), TYPES, REQUIRED)
    assert frame is not None
    assert frame["power_w"].to_list() == [None, 5.0]


cell = st.sampled_from(["0", "1", "2.5", "", "x", "N/A", "-1", "1e3", "3000", '"4"', " 5", "nan"])


@given(st.lists(st.lists(cell, min_size=2, max_size=4), min_size=1, max_size=6))
def test_what_the_quick_way_takes_the_careful_way_takes_with_equal_values(rows: list[list[str]]) -> None:
    body = "".join(",".join(row) + "\n" for row in rows)
    quick = delimited.parse_clean(body.encode(), header("timestamp,gpu,power"), TYPES, REQUIRED)
    if quick is not None:
        parsed = careful(body)
        assert not parsed.rejected
        assert_frame_equal(quick, parsed.frame.drop("line", "raw"))


@given(st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=8), st.integers(1, 20))
def test_chunks_put_together_are_the_file_and_end_with_lines(lines: list[bytes], size: int) -> None:
    data = b"\n".join(lines)
    chunks = list(delimited.iter_chunks(io.BytesIO(data), size))
    assert b"".join(chunks) == data
    assert all(chunk.endswith(b"\n") for chunk in chunks[:-1])
