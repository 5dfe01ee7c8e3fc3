"""The compiled parser agrees with the careful one on whatever it accepts, and accepts what is clean."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ingest import compiled
from ingest.sources import delimited, file_kind, kinds, quick, supercloud_columns
from ingest.sources.delimited import Header
from ingest.sources.file_kind import FileKind

KIND = kinds.KINDS["gpu"]
INTERLEAVED = kinds.KINDS["nvidia_smi"]
NAMES = list(supercloud_columns.GPU_COLUMN_MAP)
CLEAN = "1629595473.482184,0,97,41,12345,20165,61,58,214.37,16\n"
AFTER = CLEAN * 3
"""What has so much text behind it is taken the quickest way; near the end of a text care is taken not to read on."""

pytestmark = pytest.mark.skipif(not quick.is_available(), reason="the quick parser was not built (no C compiler)")


def header(names: list[str], kind: FileKind = KIND) -> Header:
    return delimited.map_header(names, kind.column_map, kind.optional, kind.ignored)


def careful(body: bytes, kind: FileKind = KIND, names: list[str] | None = None) -> delimited.Parsed:
    return delimited.parse_careful(
        body, header(names or NAMES, kind), kind.types, first_line=2, required=kind.required, exact=kind.exact
    )


def as_lake(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the columns that both parsers have, the time as the lake keeps it."""
    if "time_epoch_s" in frame.columns:
        frame = frame.with_columns(file_kind.epoch_to_time()).drop("time_epoch_s")
    return frame.drop("line", "raw", strict=False).select(sorted(set(frame.columns) - {"line", "raw"}))


def test_a_clean_line_gives_exactly_its_values() -> None:
    found = quick.parse([CLEAN.encode()], header(NAMES), KIND.types)
    assert found is not None
    frame, rows = found
    assert rows == [1]
    assert frame.drop("time").row(0) == (0, 97, 41, 12345, 20165, 61, 58, pytest.approx(214.37, rel=1e-7), 16)
    assert frame["time"].to_physical()[0] == 1_629_595_473_482_184


def test_lines_of_which_most_columns_are_unknown_and_empty_are_clean() -> None:
    names = [*NAMES, *(f"unknown {i}" for i in range(40))]
    text = (CLEAN.rstrip("\n") + "," * 40 + "\n").encode() * 20
    found = quick.parse([text, text], header(names), KIND.types)
    assert found is not None
    assert found[1] == [20, 20]
    assert found[0]["time"].n_unique() == 1


def test_rows_of_several_texts_are_counted_apart() -> None:
    found = quick.parse([CLEAN.encode() * 3, b"", CLEAN.encode() * 2], header(NAMES), KIND.types)
    assert found is not None
    assert found[1] == [3, 0, 2]
    assert found[0].height == 5


@pytest.mark.parametrize(
    "line",
    [
        "1629595473.482184,0,97,41,12345,20165,61,58,214.37\n",  # too few
        "1629595473.482184,0,97,41,12345,20165,61,58,214.37,16,1\n",  # too many
        "1629595473.482184,0,101,41,12345,20165,61,58,214.37,16\n",  # over 100 %
        "1629595473.482184,0,97,41,12345,20165,61,58,2000.01,16\n",  # over 2 kW
        "1629595473.482184,0,97,41,12345,20165,61,58,-1,16\n",
        "1629595473.482184,0,300,41,12345,20165,61,58,1,16\n",
        "1629595473.482184,0,97,,12345,20165,61,58,214.37,16\n",
        "1629595473.482184,0,97,41,12345,20165,61,58,nan,16\n",
        "1629595473.482184,0,97,41,9223372036854775808,20165,61,58,1,16\n",
        "1e9,0,97,41,12345,20165,61,58,214.37,16\n",
        '1629595473.482184,"0",97,41,12345,20165,61,58,214.37,16\n',
        "1629595473.482184,0,97,41,12345.0,20165,61,58,214.37,16\n",
        "1629595473.,0,97,41,12345,20165,61,58,214.37,16\n",
        "\n",
    ],
)
def test_a_doubtful_line_is_left_to_others(line: str) -> None:
    assert quick.parse([(CLEAN + line + AFTER).encode()], header(NAMES), KIND.types) is None
    assert quick.parse([(CLEAN + line).encode()], header(NAMES), KIND.types) is None


def test_dos_line_ends_are_clean() -> None:
    body = (CLEAN * 4).replace("\n", "\r\n").encode()
    found = quick.parse([body], header(NAMES), KIND.types)
    assert found is not None
    assert_frame_equal(as_lake(found[0]), as_lake(careful(body).frame))


def test_a_negative_temperature_is_a_number() -> None:
    found = quick.parse([(CLEAN.replace(",61,", ",-5,") + AFTER).encode()], header(NAMES), KIND.types)
    assert found is not None
    assert found[0]["gpu_temp_c"].to_list() == [-5, 61, 61, 61]


@settings(max_examples=20)  # the careful parser takes its time for each, however many times it has
@given(micros=st.lists(st.integers(0, 4_000_000_000_000_000), min_size=1, max_size=60), digits=st.integers(0, 9))
def test_times_of_any_resolution_are_those_of_the_careful_parser(micros: list[int], digits: int) -> None:
    texts = [f"{us // 1_000_000}" + (f".{us % 1_000_000:06d}000"[: digits + 1] if digits else "") for us in micros]
    body = "".join(text + CLEAN[CLEAN.index(",") :] for text in texts).encode()
    found = quick.parse([body], header(NAMES), KIND.types)
    assert (found is None) == any(len(text.replace(".", "")) > 18 for text in texts)  # more are left to the other one
    if found is not None:
        assert_frame_equal(as_lake(found[0]), as_lake(careful(body).frame))


number = st.one_of(
    st.integers(0, 120).map(str),
    st.integers(0, 40_000).map(str),
    st.decimals(0, 1999, places=2).map(str),
    st.sampled_from(
        ["", "0", "00012", "-3", "1e3", "nan", "N/A", "1.", ".5", " 7", "7 ", "+1", "x", '"3"', "99999999999"]
    ),
)


@given(
    rows=st.lists(st.lists(number, min_size=8, max_size=11), min_size=1, max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
    after=st.sampled_from(["", AFTER]),
)
def test_what_it_accepts_the_careful_parser_accepts_with_equal_values(
    rows: list[list[str]], end: str, after: str
) -> None:
    body = ("".join(",".join(["1629595473.5", *row[:9]]) + end for row in rows) + after).encode()
    found = quick.parse([body], header(NAMES), KIND.types)
    if found is not None:
        other = careful(body)
        assert not other.rejected
        assert_frame_equal(as_lake(found[0]), as_lake(other.frame))


@given(data=st.binary(max_size=200), after=st.sampled_from(["", AFTER]))
def test_no_bytes_whatever_break_it(data: bytes, after: str) -> None:
    body = CLEAN.encode() + data.replace(b"\x00", b"") + b"\n" + after.encode()
    found = quick.parse([body], header(NAMES), KIND.types)
    if found is not None:
        assert not careful(body).rejected


@settings(max_examples=60)
@given(row=st.data(), place=st.integers(1, 9), cell=number)
def test_one_odd_cell_among_clean_lines_is_seen_or_read_right(row: st.DataObject, place: int, cell: str) -> None:
    cells = CLEAN.rstrip().split(",")
    cells[place] = cell
    lines = [CLEAN, CLEAN, CLEAN, ",".join(cells) + "\n"]
    body = ("".join(row.draw(st.permutations(lines))) + AFTER).encode()
    found = quick.parse([body], header(NAMES), KIND.types)
    other = careful(body)
    if found is not None:
        assert not other.rejected
        assert_frame_equal(as_lake(found[0]), as_lake(other.frame))


def test_words_are_told_apart_and_repeated_ones_are_one() -> None:
    names = ["node", "timestamp", "gpu_index", "power_draw_W", "id_job"]
    nodes = [f"r{i % 300}-n{i % 7}" for i in range(5000)]
    body = "".join(f"{node},{i}.25,{i % 2},{i % 200}.5,{10**13 + i % 3}\n" for i, node in enumerate(nodes)).encode()
    found = quick.parse(
        [body[: len(body) // 2 + 1].rsplit(b"\n", 1)[0] + b"\n"], header(names, INTERLEAVED), INTERLEAVED.types
    )
    whole = quick.parse([body], header(names, INTERLEAVED), INTERLEAVED.types)
    assert found is not None
    assert whole is not None
    assert whole[0]["node"].cast(pl.String).to_list() == nodes
    assert found[0]["node"].cast(pl.String).to_list() == nodes[: found[0].height]
    assert whole[0]["job_id"].to_list() == [10**13 + i % 3 for i in range(5000)]


def test_a_word_with_a_quote_or_a_foreign_letter_is_doubtful() -> None:
    names = ["node", "timestamp", "gpu_index", "power_draw_W"]
    for node in ('"a,b"', "n\u00f6de", " a", ""):
        body = f"{node},1.5,0,20\n".encode()
        assert quick.parse([body], header(names, INTERLEAVED), INTERLEAVED.types) is None


def test_without_a_compiler_the_build_goes_on(tmp_path: Path) -> None:
    root = Path(quick.__file__).parents[2]
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        "from hatch_build import compile_library;"
        "print(compile_library(Path(sys.argv[1]) / 'ingest/sources/_quick.c', Path(sys.argv[2]) / '_quick.so'))"
    )

    def build(**env: str) -> str:
        command = [sys.executable, "-c", script, str(root), str(tmp_path)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()

    assert build(PATH=str(tmp_path)) == "False"
    assert build(PATH=str(tmp_path), CC="/bin/false") == "False"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler:
        assert build(PATH=str(Path(compiler).parent), CC=compiler) == "True"
        assert (tmp_path / "_quick.so").exists()


IN_A_LOCALE = """
import locale, sys
from pathlib import Path
from ingest.sources import delimited, quick
from ingest.sources.kinds import KINDS

locale.setlocale(locale.LC_ALL, sys.argv[1])
assert locale.localeconv()["decimal_point"] == ","
kind = KINDS["gpu"]
names, body = sys.argv[2].split(","), sys.argv[3].encode()
header = delimited.map_header(names, kind.column_map, kind.optional, kind.ignored)
frame, _ = quick.parse([body], header, kind.types)
print(frame["time"].to_physical()[0], frame["power_w"][0])
"""


@pytest.mark.system
def test_numbers_are_read_the_same_where_the_locale_writes_a_decimal_comma(tmp_path: Path) -> None:
    localedef = shutil.which("localedef")
    if localedef is None or not Path("/usr/share/i18n/locales/de_DE").exists():
        pytest.skip("no locale can be made here")
    subprocess.run([localedef, "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], check=True, timeout=60)
    line = CLEAN.replace("473.482184,", "473.4821843,")  # seven decimals
    done = subprocess.run(
        [sys.executable, "-c", IN_A_LOCALE, "de_DE.UTF-8", ",".join(NAMES), line],
        env={**os.environ, "LOCPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1629595473482184 214.3699951171875\n"


def test_the_compiled_parser_calls_nothing_that_follows_the_locale() -> None:
    names = set(compiled.LIBRARY.read_bytes().split(b"\0"))
    assert b"strtod_l" in names
    assert not names & {b"strtod", b"strtof", b"strtold", b"atof", b"sscanf", b"__isoc99_sscanf"}
