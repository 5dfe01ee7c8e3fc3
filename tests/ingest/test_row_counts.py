"""The rows of a file are counted from its bytes, so that a row that a parser loses is missed."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import rows, scan
from ingest.errors import JobwattError
from ingest.reading import LineCount, Share, Source, count_content, count_rows
from ingest.records import ScanFile
from ingest.sources import delimited, quick
from ingest.sources.archive import Member
from ingest.sources.delimited import Parsed
from tests.small_sources import GPU_FILE, gpu_file, gpu_row, read_in_pieces, read_in_shares, take, take_twice, write

SAMPLES = [gpu_row(i, 100 + i) for i in range(100)]


@pytest.fixture(params=["at once", "in pieces", "in shares"])
def reading(request, monkeypatch):
    """The ways to read a file: several at once, a large one piece by piece, a large one by several tasks."""
    if request.param == "at once":
        return
    read_in_pieces(monkeypatch, piece=700, batch=2000)
    if request.param == "in shares":
        read_in_shares(monkeypatch, block=1500)


def lose_in_compiled_parser(monkeypatch):
    whole = quick.parse

    def parse(*args):
        found = whole(*args)
        if found is None:
            return None
        frame, counts = found
        return frame[:-1], [*counts[:-1], counts[-1] - 1]

    monkeypatch.setattr(quick, "parse", parse)


def lose_in_clean_parser(monkeypatch):
    whole = delimited.parse_clean
    monkeypatch.setattr(quick, "parse", lambda *_: None)
    monkeypatch.setattr(delimited, "parse_clean", lambda *args: whole(*args)[:-1])


def lose_in_careful_parser(monkeypatch):
    whole = delimited.parse_careful

    def parse(*args, **options):
        parsed = whole(*args, **options)
        return Parsed(parsed.frame[:-1], rejected=parsed.rejected, sentinels=parsed.sentinels)

    monkeypatch.setattr(quick, "parse", lambda *_: None)
    monkeypatch.setattr(delimited, "parse_clean", lambda *_: None)
    monkeypatch.setattr(delimited, "parse_careful", parse)


def lose_in_order(monkeypatch):
    whole = rows.batches.order

    def order(frame, table):
        return whole(frame[1:], table)

    monkeypatch.setattr(rows.batches, "order", order)


def lose_a_chunk(monkeypatch):
    whole = delimited.iter_chunks

    def chunks(stream, size, head=b""):
        found = list(whole(stream, size, head))
        yield from found[1:]

    monkeypatch.setattr(delimited, "iter_chunks", chunks)


LOSSES = [lose_in_compiled_parser, lose_in_clean_parser, lose_in_careful_parser, lose_in_order]


@pytest.mark.parametrize("lose", LOSSES)
def test_a_row_that_is_lost_ends_the_run_with_the_name_of_the_file_and_nothing_committed(
    tmp_path, monkeypatch, reading, lose
):
    if lose is lose_in_compiled_parser and not quick.is_available():
        pytest.skip("no compiled parser")
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*SAMPLES))
    lose(monkeypatch)
    with pytest.raises(JobwattError, match=rf"{GPU_FILE} has \d+ rows.*please report this"):
        take(tmp_path / "in", tmp_path / "lake")
    monkeypatch.undo()
    assert not list((tmp_path / "lake").rglob("*.parquet"))
    assert take(tmp_path / "in", tmp_path / "lake").report.rows_out == 100


def test_a_chunk_of_a_large_file_that_is_lost_ends_the_run(tmp_path, monkeypatch):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*SAMPLES))
    monkeypatch.setattr(scan, "CHUNK_BYTES", 1000)
    lose_a_chunk(monkeypatch)
    with pytest.raises(JobwattError, match=f"{GPU_FILE} has 100 rows, but 0 were read and 0 rejected"):
        take(tmp_path / "in", tmp_path / "lake")


def test_blank_lines_are_no_rows_however_a_file_is_read(tmp_path, reading):
    sound = [line for i, row in enumerate(SAMPLES) for line in (row, *["", " ", "\t\r"][: i % 4])]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*sound, "x,y", "\x1c", "\u2003 "))
    write(tmp_path, "in/gpu/0001/102-n1.csv", gpu_file())
    write(tmp_path, "in/gpu/0001/103-n1.csv", gpu_file("", " "))
    write(tmp_path, "in/gpu/0001/104-n1.csv", gpu_file().rstrip("\n"))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert (taken.report.rows_in, taken.report.rows_out, taken.report.rows_quarantined) == (101, 100, 1)


def test_a_file_has_as_many_rows_whichever_way_it_is_refused(tmp_path, reading):
    body = "".join(f"{i},{i}\n" + "\n" * (i % 3) for i in range(400))
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(gpu_row(0)))
    write(tmp_path, "in/gpu/0001/no-job.csv", "a,b\n" + body)  # by its name
    write(tmp_path, "in/gpu/0001/102-n1.csv", "a,b\n" + body)  # by its header
    write(tmp_path, "in/else.csv", "a,b\n" + body + " ")
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [
        ("else.csv", "unknown_file", 400),
        ("gpu/0001/102-n1.csv", "missing_column", 400),
        ("gpu/0001/no-job.csv", "bad_file_name", 400),
    ]


def test_a_large_file_without_a_line_end_is_refused_for_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "CHUNK_BYTES", 1000)
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(gpu_row(0)))
    write(tmp_path, "in/gpu/0001/102-n1.csv", ",".join(SAMPLES))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [("gpu/0001/102-n1.csv", "too_large", 0)]


# -- counting ----------------------------------------------------------------------------------------------------------

texts = st.lists(st.sampled_from([b"a", b"b,c", b"\n", b"\n\n", b" ", b"\r\n", b"\xff", "\u2003".encode()])).map(
    b"".join
)


@given(texts, st.data())
def test_the_lines_of_a_text_do_not_depend_on_how_it_is_cut(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    count = LineCount()
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        count.update(text[start:stop])
    assert count.lines == len(text.split(b"\n")) - (text.endswith(b"\n") or not text)


@given(texts, st.integers(1, 9))
def test_the_shares_of_a_file_have_its_lines_each_once(text, size):
    text = b"h\n" + text
    member = Member("gpu/0001/1-n.csv", "", len(text))
    lines, content = 0, 0
    for start in range(0, len(text), size):
        source = Source(io.BytesIO(text[max(start - 1, 0) :]))
        share = Share(source, ScanFile(member, "gpu", start=start, stop=min(start + size, len(text))), 2)
        content += sum(count_content(chunk) for chunk in share.chunks())
        lines += share.lines
    assert lines == len(text.split(b"\n")) - text.endswith(b"\n")
    assert content == count_rows(io.BytesIO(text), with_header=True)


@given(texts)
def test_a_line_has_content_where_the_careful_parser_sees_a_row(text):
    header = delimited.map_header(["x"], {"x": "node"}, {}, frozenset())
    parsed = delimited.parse_careful(
        text, header, {"node": scan.KINDS["node"].types["node"]}, first_line=2, required=frozenset()
    )
    assert count_content(text) == parsed.frame.height + len(parsed.rejected)
