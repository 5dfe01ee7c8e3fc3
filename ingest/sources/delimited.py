"""Delimited text: bytes become typed frames, quickly where the bytes are clean and carefully where they are not.

Two ways lead to the same frame. `parse_clean` is polars' typed CSV reader plus the proof that nothing was lost; it
gives up on the least doubt. `parse_careful` then looks at every line and cell of that piece and names what is wrong.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from ingest.quality import LIMITS, NULL_TOKENS, SENTINELS
from ingest.sources.inflate import ByteStream

csv.field_size_limit(2**31 - 1)  # a node list of thousands of names is one field

BOM = b"\xef\xbb\xbf"
_FLOAT_TYPES = (pl.Float32(), pl.Float64())
_LEAST_SENTINEL = 2.0**31 - 1
_QUOTED_LINES = re.compile(rb'(?:(?:"[^"\n\r]*+"|[^",\n]*+)(?:,|\r?\n|\Z))*+')


@dataclass(frozen=True, slots=True)
class Header:
    """A file's header row, mapped: ``columns[i]`` is the column that field ``i`` fills, None where it is not taken."""

    names: tuple[str, ...]
    columns: tuple[str | None, ...]
    unknown: tuple[str, ...]
    repeated: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def width(self) -> int:
        """Number of fields of a line."""
        return len(self.names)


@dataclass(slots=True)
class Parsed:
    """A piece of a file as a typed frame, with what was found on the way.

    ``frame`` has the mapped columns; after a careful parse also ``line`` (from 1, the header's) and ``raw``.
    ``rejected`` has line, reason, detail, raw. ``sentinels``, and ``bad_extras`` for bad cells of extra columns, count
    cells that became null, by column.
    """

    frame: pl.DataFrame
    rejected: list[tuple[int, str, str, str]] = field(default_factory=list)
    sentinels: dict[str, int] = field(default_factory=dict)
    bad_extras: dict[str, int] = field(default_factory=dict)


def split_header(data: bytes) -> tuple[list[str], int]:
    """Return the names in the first line of ``data`` and the offset of the second.

    >>> split_header(b'\\xef\\xbb\\xbfa,"b"\\r\\n1,2')
    (['a', 'b'], 10)
    """
    end = data.find(b"\n")
    stop = len(data) if end < 0 else end + 1
    line = data[:stop].removeprefix(BOM).decode("utf-8", "backslashreplace").rstrip("\r\n")
    names = [name.strip() for name in _split_fields([line])[0]] if line else []
    return ([] if names == [""] and stop == len(data) else names), stop


def map_header(
    names: Sequence[str], column_map: Mapping[str, str], optional: Mapping[str, str], ignored: frozenset[str]
) -> Header:
    """Return which field fills which column, found by name without regard to case; the first of a repeated name wins.

    ``optional`` are further spellings and extras, whose absence is not reported.
    """
    folded = {name.lower(): column for name, column in {**optional, **column_map}.items()}
    columns: list[str | None] = []
    unknown, repeated = [], []
    for name in names:
        column = folded.get(name.lower())
        if column is not None and column in columns:
            repeated.append(name)
            column = None
        elif column is None and name not in ignored:
            unknown.append(name)
        columns.append(column)
    taken = set(columns)
    missing = [name for name, column in column_map.items() if column not in taken]
    return Header(tuple(names), tuple(columns), tuple(unknown), tuple(repeated), tuple(dict.fromkeys(missing)))


def iter_chunks(stream: ByteStream, size: int, head: bytes = b"") -> Iterator[bytes]:
    """Yield pieces of about ``size`` bytes that end with a line; only the last may end without a newline.

    A line longer than ``size`` comes whole.

    >>> import io
    >>> list(iter_chunks(io.BytesIO(b"ab\\ncd\\nef"), 4))
    [b'ab\\n', b'cd\\n', b'ef']
    """
    rest = head
    while block := stream.read(size):
        rest = rest + block if rest else block
        cut = rest.rfind(b"\n") + 1
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def parse_clean(
    body: bytes, header: Header, types: Mapping[str, pl.DataType], required: frozenset[str] = frozenset()
) -> pl.DataFrame | None:
    """Return the typed frame of ``body``, or None unless every line and cell is provably sound.

    Sound: each line has the header's number of fields, each cell its type or nothing, no ``required`` cell is blank, no
    value lies outside `quality.LIMITS`. Columns that are not taken are checked for their number only.
    """
    schema = {
        (column if column is not None else f"_{i}"): (types[column] if column is not None else pl.String())
        for i, column in enumerate(header.columns)
    }
    wanted = [i for i, column in enumerate(header.columns) if column is not None]
    if header.width < 2 or not wanted:  # one field: a blank line and a blank cell cannot be told apart
        return None
    if not _is_plain(body):
        return None
    last = header.width - 1
    keep = wanted if last in wanted else [*wanted, last]
    try:
        frame = pl.read_csv(body, has_header=False, schema=schema, columns=keep if len(keep) < header.width else None)
    except (pl.exceptions.PolarsError, UnicodeDecodeError):
        return None
    tail = header.columns[last] or f"_{last}"
    if frame[tail].null_count() and (b'"' in body or body.count(b",") != frame.height * last):
        return None
    frame = frame.drop([name for name in frame.columns if name.startswith("_")])
    frame = _nan_to_null(frame).with_columns(pl.col(pl.String).pipe(_text))
    if any(frame[name].null_count() for name in required if name in frame.columns):
        return None
    return frame if _within_limits(frame) and not has_sentinel(frame) else None


def _is_plain(body: bytes) -> bool:
    """Return whether a text is UTF-8 and its quotes, if any, enclose whole fields of one line."""
    if not body.isascii():
        try:
            body.decode("utf-8")
        except UnicodeDecodeError:
            return False
    return b'"' not in body or _QUOTED_LINES.fullmatch(body) is not None


def _text(cells: pl.Expr) -> pl.Expr:
    """Return an expression: texts without the blanks around them, null where they say that they are missing."""
    stripped = cells.str.strip_chars()
    return pl.when(~stripped.is_in(NULL_TOKENS)).then(stripped)


def has_sentinel(frame: pl.DataFrame) -> bool:
    """Return whether a limited column holds a 'no value' number that lies within its limits."""
    high = [name for name in frame.columns if LIMITS.get(name, (0.0, 0.0))[1] >= _LEAST_SENTINEL]
    if not high:
        return False
    return any(frame.select(pl.col(high).cast(pl.Float64).is_in(SENTINELS).any()).row(0))


def _nan_to_null(frame: pl.DataFrame) -> pl.DataFrame:
    floats = [name for name, dtype in frame.schema.items() if dtype in _FLOAT_TYPES]
    if not floats or not any(frame.select(pl.col(floats).is_nan().any()).row(0)):
        return frame
    return frame.with_columns(pl.col(floats).fill_nan(None))


def _within_limits(frame: pl.DataFrame) -> bool:
    limited = [name for name in frame.columns if name in LIMITS and frame.schema[name].is_numeric()]
    if not limited:
        return True
    least = frame.select(pl.col(limited).min()).row(0)
    greatest = frame.select(pl.col(limited).max()).row(0)
    return all(
        low is None or (LIMITS[name][0] <= low and high <= LIMITS[name][1])
        for name, low, high in zip(limited, least, greatest, strict=True)
    )


def parse_careful(
    body: bytes,
    header: Header,
    types: Mapping[str, pl.DataType],
    *,
    first_line: int,
    required: frozenset[str],
    exact: frozenset[str] = frozenset(),
    extras: frozenset[str] = frozenset(),
) -> Parsed:
    """Return the sound rows of ``body`` with ``line`` and ``raw``, and a reason for each of the others.

    Parameters
    ----------
    first_line : number of the first line of ``body`` in its file, the header being 1
    required : columns whose cells may not be missing
    exact : columns (ids) that must be written as plain integers
    extras : columns of which a bad cell costs the cell, not the row
    """
    lines, numbers, rejected = split_lines(body, first_line)
    fields = _split_fields(lines)
    good: list[list[str]] = []
    keep_number: list[int] = []
    keep_raw: list[str] = []
    for number, raw, cells in zip(numbers, lines, fields, strict=True):
        if len(cells) == header.width:
            good.append(cells)
            keep_number.append(number)
            keep_raw.append(raw)
        else:
            reason = "too_few_fields" if len(cells) < header.width else "too_many_fields"
            rejected.append((number, reason, f"{len(cells)} of {header.width}", raw))
    cells_by_field = list(zip(*good, strict=True)) if good else [()] * header.width
    text = pl.DataFrame(
        {c: pl.Series(cells_by_field[i], dtype=pl.String) for i, c in enumerate(header.columns) if c is not None}
    ).with_columns(pl.Series("line", keep_number, dtype=pl.Int64), pl.Series("raw", keep_raw, dtype=pl.String))
    frame, bad, sentinels, bad_extras = type_cells(text, types, required, exact, extras)
    rejected += bad
    rejected.sort()
    return Parsed(frame, rejected, sentinels, bad_extras)


def split_lines(body: bytes, first_line: int) -> tuple[list[str], list[int], list[tuple[int, str, str, str]]]:
    lines: list[str] = []
    numbers: list[int] = []
    rejected: list[tuple[int, str, str, str]] = []
    try:
        pieces: Sequence[str | bytes] = body.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        pieces = body.split(b"\n")
    for number, piece in enumerate(pieces, first_line):
        if isinstance(piece, bytes):
            try:
                text = piece.decode("utf-8")
            except UnicodeDecodeError as error:
                raw = piece.decode("utf-8", "backslashreplace").rstrip("\r")
                rejected.append((number, "not_utf8", f"byte {error.start + 1} of the line", raw))
                continue
        else:
            text = piece
        text = text.rstrip("\r")
        if text.strip():
            lines.append(text)
            numbers.append(number)
    return lines, numbers, rejected


def _split_fields(lines: list[str]) -> list[list[str]]:
    if not any('"' in line for line in lines):
        return [line.split(",") for line in lines]
    return [_split_quoted(line) if '"' in line else line.split(",") for line in lines]


def _split_quoted(line: str) -> list[str]:
    try:
        return next(csv.reader([line]))
    except csv.Error:  # a carriage return in the midst of it
        return line.split(",")


def type_cells(
    text: pl.DataFrame,
    types: Mapping[str, pl.DataType],
    required: frozenset[str],
    exact: frozenset[str],
    extras: frozenset[str],
) -> tuple[pl.DataFrame, list[tuple[int, str, str, str]], dict[str, int], dict[str, int]]:
    """Return the typed frame of sound rows, the others with their first reason, sentinels and bad extras by column."""
    names = [name for name in text.columns if name not in ("line", "raw")]
    reason = pl.Series("reason", [None] * text.height, dtype=pl.String)
    detail = pl.Series("detail", [None] * text.height, dtype=pl.String)
    typed: dict[str, pl.Series] = {}
    lost: dict[str, pl.Series] = {}
    bad_extras: dict[str, pl.Series] = {}
    for name in names:
        cells = text[name].str.strip_chars()
        values, faults, sentinel = _type_column(cells, name, types[name], name in exact)
        if sentinel is not None and sentinel.any():
            lost[name] = sentinel
        if name in extras and faults:
            bad_extras[name] = pl.select(pl.any_horizontal([mask.fill_null(False) for _, mask in faults])).to_series()
            values, faults = pl.select(pl.when(~bad_extras[name]).then(values)).to_series(), []
        if name in required:
            faults.append(("missing_key", values.is_null()))
        for code, mask in faults:
            new = mask & reason.is_null()
            if new.any():
                reason = pl.select(pl.when(new).then(pl.lit(code)).otherwise(reason)).to_series()
                what = pl.concat_str(pl.lit(name + " "), cells.fill_null(""))
                detail = pl.select(pl.when(new).then(what).otherwise(detail)).to_series()
        typed[name] = values
    frame = pl.DataFrame(typed).with_columns(text["line"], text["raw"])
    bad = reason.is_not_null()
    rows = pl.DataFrame({"line": text["line"], "reason": reason, "detail": detail, "raw": text["raw"]}).filter(bad)
    sentinels, spoiled = (_count_cells(found, ~bad) for found in (lost, bad_extras))
    return frame.filter(~bad), [tuple(row) for row in rows.iter_rows()], sentinels, spoiled


def _count_cells(found: Mapping[str, pl.Series], rows: pl.Series) -> dict[str, int]:
    """Return in how many of the rows each column has a cell that was found."""
    counts = {name: int((mask & rows).sum()) for name, mask in found.items()}
    return {name: n for name, n in counts.items() if n}


def _type_column(
    cells: pl.Series, name: str, dtype: pl.DataType, exact: bool
) -> tuple[pl.Series, list[tuple[str, pl.Series]], pl.Series | None]:
    """Return one column's values, the faults found as (reason, mask), and where sentinels were made null."""
    blank = cells.is_in(list(NULL_TOKENS))
    if dtype == pl.String():
        return pl.select(_text(pl.lit(cells))).to_series(), [], None
    if dtype == pl.Boolean():
        folded = cells.str.to_lowercase()
        known = folded.is_in(["true", "false", "1", "0"])
        values = pl.select(pl.when(known).then(folded.is_in(["true", "1"]))).to_series()
        return values, [("wrong_type", ~known & ~blank)], None
    present = pl.select(pl.when(~blank).then(cells)).to_series()
    number = present.cast(pl.Float64, strict=False)
    whole = present.cast(pl.UInt64 if dtype == pl.UInt64() else pl.Int64, strict=False)
    if exact:
        inexact = whole.is_null() & number.is_not_null()
        wrong = number.is_null() & present.is_not_null()
        low, high = LIMITS.get(name, (-(2.0**63), 2.0**63))
        outside = (whole.cast(pl.Float64) < low) | (whole.cast(pl.Float64) > high)
        faults = [("id_not_exact", inexact), ("wrong_type", wrong), ("out_of_range", outside.fill_null(False))]
        return whole.cast(dtype, strict=False), faults, None
    sentinel = (number.is_in(list(SENTINELS)) if name in LIMITS else number.is_null() & False).fill_null(False)
    number = pl.select(pl.when(~sentinel).then(number)).to_series().fill_nan(None)
    wrong = number.is_null() & present.is_not_null() & ~sentinel & ~present.str.to_lowercase().is_in(["nan", "-nan"])
    low, high = LIMITS.get(name, (-float("inf"), float("inf")))
    outside = ((number < low) | (number > high)).fill_null(False)
    faults = [("wrong_type", wrong), ("out_of_range", outside)]
    if dtype in _FLOAT_TYPES:
        values = number.cast(dtype)
    else:
        rounded = pl.select(pl.when(~sentinel).then(whole)).to_series()
        from_float = number.round().cast(rounded.dtype, strict=False)
        faults.append(("wrong_type", ((number - number.round()).abs() > 0).fill_null(False)))
        values = pl.select(pl.coalesce(rounded, from_float)).to_series().cast(dtype, strict=False)
        overflow = values.is_null() & number.is_not_null()
        faults.append(("out_of_range", overflow))
    return values, faults, sentinel
