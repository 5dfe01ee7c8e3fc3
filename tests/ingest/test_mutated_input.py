"""Whatever is done to a file, no row is lost, nothing but a `JobwattError` comes out, and the parsers agree."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ingest import checksum, plan
from ingest.errors import JobwattError
from ingest.reading import count_content
from ingest.sources import delimited, kinds, quick
from ingest.sources.file_kind import Context, FileKind
from tests.gpu_files import HEADER
from tests.small_sources import GPU_FILE, LOG_HEADER, gpu_file, gpu_row, lines, log_row, take, take_twice, write

ROWS = [gpu_row(i / 10, f"{100 + i}.25", gpu=i % 2) for i in range(12)]
CELLS = [
    *(b"", b" ", b"N/A", b"[Not Supported]", b"nan", b"-", b"inf", b"-1", b"+5", b"05", b"7.", b".5", b"1e3", b"5.0"),
    *(b"101", b"2001", b"2147483647", b"18446744073709551615", b"99999999999999999999", b"1600000000.1234565"),
    *(b'"5"', b'"', b'""', b"'", b"\xff", b"\xc3\xa9", b"\x00", b"\t5", b"\r", b"x", b"5,5", b"5\n5"),
]


@st.composite
def mutations(draw: st.DrawFn, content: bytes) -> bytes:
    """A text after a few changes to its bytes, cells, lines or columns."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        rows = content.split(b"\n")
        row = draw(st.integers(0, len(rows) - 1))
        match draw(st.sampled_from(["flip", "insert", "delete", "cell", "repeat", "drop", "blank", "swap", "cut"])):
            case "flip":
                content = content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
            case "insert":
                content = content[:at] + draw(st.sampled_from(CELLS)) + content[at:]
            case "delete":
                content = content[:at] + content[at + draw(st.integers(1, 80)) :]
            case "cell":
                cells = rows[row].split(b",")
                cells[draw(st.integers(0, len(cells) - 1))] = draw(st.sampled_from(CELLS))
                content = b"\n".join([*rows[:row], b",".join(cells), *rows[row + 1 :]])
            case "repeat":
                content = b"\n".join([*rows[: row + 1], *rows[row:]])
            case "drop":
                content = b"\n".join([*rows[:row], *rows[row + 1 :]])
            case "blank":
                content = b"\n".join([*rows[:row], draw(st.sampled_from([b"", b" ", b"\r"])), *rows[row:]])
            case "swap":
                i, j = draw(st.integers(0, 9)), draw(st.integers(0, 9))
                content = b"\n".join(swapped(each, i, j) for each in rows)
            case "cut":
                content = content[:at]
    return content


def swapped(row: bytes, i: int, j: int) -> bytes:
    """A line with two of its cells exchanged, where it has them."""
    cells = row.split(b",")
    if max(i, j) < len(cells):
        cells[i], cells[j] = cells[j], cells[i]
    return b",".join(cells)


def assert_nothing_is_lost(folder, content: bytes) -> None:
    """Ingest a mutated file beside a sound one, twice."""
    write(folder, f"in/{GPU_FILE}", content)
    write(folder, "in/gpu/0001/102-n1.csv", gpu_file(gpu_row(0, 7)))
    try:
        taken = take_twice(folder / "in", folder / "lake")
    except JobwattError as error:
        pytest.fail(f"one bad file stopped the ingest: {error}")
    assert taken.series(102) == [(0.0, 7.0)]
    record = next(record for record in taken.report.records if record.name == GPU_FILE)
    body = content.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[2]
    if record.reason != "bad_line_ends":
        assert record.rows_in == sum(1 for line in body.split(b"\n") if line.decode("utf-8", "replace").strip())
    times = taken.lake.read_series(101).select("node", "gpu_index", "time")
    assert not times.is_duplicated().any()
    assert times.equals(times.sort("node", "gpu_index", "time"))


@settings(max_examples=8)
@given(mutations(gpu_file(*ROWS).encode()))
def test_a_mutated_file_loses_no_row_and_stops_nothing(tmp_path_factory, content):
    assert_nothing_is_lost(tmp_path_factory.mktemp("mutated"), content)


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=mutations(gpu_file(*ROWS, *[gpu_row(i, 9) for i in range(2, 50)]).encode()))
def test_a_mutated_file_loses_no_row_in_pieces_and_shares(tmp_path_factory, content):
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("scan.CHUNK", 900), ("scan.PIECE", 400), ("rows.BATCH", 900), ("rows.CAREFUL", 200)):
            patch.setattr(f"ingest.{name}_BYTES", size)
        patch.setattr(plan, "BLOCK_BYTES", 1024)
        patch.setattr(checksum, "BLOCK_BYTES", 1024)
        assert_nothing_is_lost(tmp_path_factory.mktemp("mutated"), content)


@pytest.mark.slow
@settings(max_examples=300)
@given(mutations(gpu_file(*ROWS).encode()))
def test_a_mutated_file_loses_no_row_and_stops_nothing_at_length(tmp_path_factory, content):
    assert_nothing_is_lost(tmp_path_factory.mktemp("mutated"), content)


@settings(max_examples=4)
@given(mutations(lines(LOG_HEADER, *[log_row(100 + i) for i in range(6)], log_row(103, state=7)).encode()))
def test_a_mutated_log_loses_no_row_and_stops_nothing(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("mutated")
    write(folder, "in/slurm-log.csv", content)
    write(folder, f"in/{GPU_FILE}", gpu_file(gpu_row(0, 7)))
    taken = take(folder / "in", folder / "lake")
    assert taken.series() == [(0.0, 7.0)]
    keys = taken.lake.scan("jobs").select("job_id", "attempt").collect()
    assert not keys.is_duplicated().any()


# -- the parsers -------------------------------------------------------------------------------------------------------


def rows_of(frame: pl.DataFrame, kind: FileKind) -> pl.DataFrame:
    """What a parsed frame becomes in the lake."""
    done = kind.finish(frame.drop("line", "raw", strict=False), Context()).frame
    return done.with_columns(pl.col(pl.Categorical).cast(pl.String)).select(sorted(done.columns))


def assert_parsers_agree(name: str, header_line: str, body: bytes) -> None:
    kind = kinds.KINDS[name]
    names, _ = delimited.split_header(header_line.encode() + b"\n")
    header = delimited.map_header(names, kind.column_map, kind.optional, kind.ignored)
    careful = delimited.parse_careful(body, header, kind.types, first_line=2, required=kind.required, exact=kind.exact)
    assert count_content(body) == careful.frame.height + len(careful.rejected)
    found = [delimited.parse_clean(body, header, kind.types, kind.required)]
    if kind.table == "gpu_samples" and body.endswith(b"\n"):
        parsed = quick.parse([body], header, kind.types)
        found.append(parsed[0] if parsed is not None else None)
    for clean in found:
        if clean is not None:
            assert careful.rejected == []
            assert careful.sentinels == {}
            assert_frame_equal(rows_of(clean, kind), rows_of(careful.frame, kind), check_exact=True)


@settings(max_examples=60)
@given(mutations(lines(*ROWS).encode()))
def test_what_a_quick_parser_accepts_of_gpu_samples_is_what_the_careful_one_reads(body):
    assert_parsers_agree("gpu", HEADER, body)


@settings(max_examples=20)
@given(mutations(lines(*[log_row(100 + i) for i in range(4)]).encode()))
def test_what_the_quick_parser_accepts_of_a_log_is_what_the_careful_one_reads(body):
    assert_parsers_agree("jobs", LOG_HEADER, body)


@settings(max_examples=20)
@given(st.lists(st.tuples(*[st.sampled_from([*CELLS, b"5", b"5", b"5"])] * 3), min_size=1, max_size=4))
def test_cells_of_every_spelling_are_read_alike(cells):
    body = b"".join(b"%d.5,0,%s,10,%s,2000,40,41,%s,16\n" % (1_600_000_000 + i, *row) for i, row in enumerate(cells))
    assert_parsers_agree("gpu", HEADER, body)


def test_sound_text_is_accepted_by_the_quick_parsers():
    kind = kinds.KINDS["gpu"]
    header = delimited.map_header(HEADER.split(","), kind.column_map, kind.optional, kind.ignored)
    body = lines(*ROWS).encode()
    assert delimited.parse_clean(body, header, kind.types, kind.required) is not None
    assert not quick.is_available() or quick.parse([body], header, kind.types) is not None
