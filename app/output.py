"""One dataclass, a list of them or a polars frame as table, JSON, CSV or Parquet; and the options that choose it."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeGuard

import click

if TYPE_CHECKING:
    import polars as pl

P = ParamSpec("P")

FORMATS = ("table", "json", "csv", "parquet")

NULL = "–"

TABLE_ROWS = 50
"""Rows of a long table on a screen, where nobody asked for a number."""

NARROWEST = 12
"""Characters that a column of text keeps when a table has to be made narrower."""


class Show(Protocol):
    """What a command gets from `with_format`: call it with the result, once.

    A table of more than ``table_rows`` rows is cut there, and says so; the other formats are always whole.
    """

    def __call__(self, value: object, *, table_rows: int | None = None) -> None: ...


def with_format(command: Callable[Concatenate[Show, P], None]) -> Callable[P, None]:
    """Return the command with ``--format`` and ``--output``; its first argument is what renders its result."""

    @click.option(
        "--format",
        "output_format",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="How to write it.",
    )
    @click.option(
        "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file, not to standard output."
    )
    @functools.wraps(command)
    def with_options(*args: P.args, **kwargs: P.kwargs) -> None:
        output_format = str(kwargs.pop("output_format"))
        output: Any = kwargs.pop("output")
        if output_format == "parquet" and output is None and sys.stdout.isatty():
            raise click.UsageError("Parquet is not for a terminal; give --output FILE, or a pipe.")
        if output is not None and not Path(output).absolute().parent.is_dir():
            raise click.UsageError(f"--output {output}: its folder does not exist; make it first.")
        command(functools.partial(show, output_format=output_format, output=output), *args, **kwargs)

    return with_options


def show(value: Any, *, output_format: str, output: Path | None = None, table_rows: int | None = None) -> None:
    """Write the rendered value to standard output, or whole or not at all to ``output``."""
    if output_format == "table" and table_rows is not None and len(value) > table_rows:
        click.echo(f"the first {table_rows:,} of {len(value):,}; --limit 0 shows all", err=True)
        value = value[:table_rows]
    room = shutil.get_terminal_size().columns if output is None and sys.stdout.isatty() else None
    content = render(value, output_format, room)
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    from ingest.disk import write_whole  # not above: `jobwatt doctor` speaks where a foreign ingest is in the way too

    write_whole(output, content)


def render(value: object, output_format: str, room: int | None = None) -> bytes:
    """Return a dataclass, a sequence of dataclasses or a polars frame as the bytes of one of `FORMATS`.

    JSON is an object for a dataclass, else an array of objects: times are ISO 8601 with Z, missing and not-a-number are
    null. In a table, CSV and Parquet one dataclass is one row and a nested value is its JSON; only the table of one
    dataclass stands upright, a line for each field. A field that is not in the dataclass's repr is left out. A table
    wider than ``room`` characters has its long text wrapped.
    """
    if output_format in ("json", "csv") and _is_flat_frame(value):
        return _frame_text(value, output_format).encode()
    if output_format == "json":
        text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
        return text.encode()
    if output_format == "table":
        return _table(value, room).encode()
    if output_format == "csv":
        return _csv(_names(value), _records(value, _json_text)).encode()
    if output_format == "parquet":
        buffer = io.BytesIO()
        _frame(value).write_parquet(buffer)
        return buffer.getvalue()
    raise ValueError(f"format is {output_format!r}; give one of {', '.join(FORMATS)}")


def iso(time: datetime) -> str:
    """Return a time in UTC as ISO 8601 with Z, with microseconds only where there are any; one without zone is UTC.

    Examples
    --------
    >>> iso(datetime(2026, 11, 23, 4, 5, 6, 100_000))
    '2026-11-23T04:05:06.100000Z'
    """
    utc = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return utc.isoformat().replace("+00:00", "Z")


# -- any value as plain rows -------------------------------------------------------------------------------------------


def _fields(value: Any) -> list[dataclasses.Field[Any]]:
    """Return the fields that are shown: all but those that the dataclass keeps out of its own repr."""
    return [field for field in dataclasses.fields(value) if field.repr]


def _is_frame(value: object) -> bool:
    polars = sys.modules.get("polars")  # a frame exists only where polars is loaded already
    return polars is not None and isinstance(value, polars.DataFrame)


def _is_flat_frame(value: Any) -> TypeGuard[pl.DataFrame]:
    return _is_frame(value) and not any(dtype.is_nested() for dtype in value.dtypes)


def _frame_text(frame: pl.DataFrame, output_format: str) -> str:
    """Return a frame as polars itself writes it, which is quick: millions of cells a second."""
    import polars as pl
    from polars import selectors as cs

    plain = frame.with_columns(
        cs.float().replace([float("nan"), float("inf"), float("-inf")], None),
        *[_iso_column(name, dtype) for name, dtype in frame.schema.items() if isinstance(dtype, pl.Datetime)],
    )
    if output_format == "csv":
        return plain.write_csv()
    rows = plain.write_ndjson().rstrip("\n")
    return "[\n" + rows.replace("\n", ",\n") + "\n]\n" if rows else "[]\n"


def _iso_column(name: str, dtype: pl.Datetime) -> pl.Expr:
    """Return a column of times as `iso` writes them."""
    import polars as pl

    time = pl.col(name).dt.cast_time_unit("us")
    if dtype.time_zone is not None:
        time = time.dt.convert_time_zone("UTC")
    whole = time.dt.to_string("%Y-%m-%dT%H:%M:%SZ")
    return pl.when(time.dt.microsecond() == 0).then(whole).otherwise(time.dt.to_string("%Y-%m-%dT%H:%M:%S%.6fZ"))


def _plain(value: Any) -> Any:  # noqa: PLR0911 (a line for each kind of value reads better than a chain)
    """Return the value with nothing in it that JSON does not know."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return iso(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in _fields(value)}
    if _is_frame(value):
        return [_plain(row) for row in value.to_dicts()]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__} cannot be rendered; give numbers, text, times, or dataclasses of them")


def _records(value: Any, nested: Callable[[Any], str]) -> list[dict[str, Any]]:
    """Return the rows of a value: times and numbers as they are, what holds several values as ``nested`` writes it."""
    if _is_frame(value):
        rows: list[dict[str, Any]] = value.to_dicts()
    else:
        items = value if isinstance(value, Sequence) else [value]
        rows = [{field.name: getattr(item, field.name) for field in _fields(item)} for item in items]
    return [{name: _cell(item, nested) for name, item in row.items()} for row in rows]


def _names(value: Any) -> list[str]:
    """Return the columns; none for an empty list, of which nobody knows what it would hold."""
    if _is_frame(value):
        return list(value.columns)
    items = value if isinstance(value, Sequence) else [value]
    return [field.name for field in _fields(items[0])] if items else []


def _cell(value: Any, nested: Callable[[Any], str]) -> Any:
    if value is None or isinstance(value, bool | int | str | datetime):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    plain = _plain(value)
    return plain if isinstance(plain, str) else nested(plain)


def _json_text(plain: Any) -> str:
    return json.dumps(plain, ensure_ascii=False, allow_nan=False)


def _words(plain: Any) -> str:
    """Return plain values in a row of words; JSON for what is deeper than that."""
    if isinstance(plain, list) and not any(isinstance(item, list | dict) for item in plain):
        return ", ".join(_column([item], "")[0] for item in plain) or NULL
    return _json_text(plain) if plain else NULL


def _frame(value: Any) -> pl.DataFrame:
    import polars as pl

    if isinstance(value, pl.DataFrame):
        return value
    return pl.DataFrame(_records(value, _json_text), infer_schema_length=None)


def _csv(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if names:
        writer.writerow(names)
    writer.writerows([_csv_cell(item) for item in row.values()] for row in rows)
    return buffer.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return iso(value) if isinstance(value, datetime) else value


# -- the table ---------------------------------------------------------------------------------------------------------


def _table(value: Any, room: int | None) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _upright([(field.name, getattr(value, field.name)) for field in _fields(value)], room)
    rows = _records(value, _words)
    return _grid(_names(value), rows, room) if rows else "nothing\n"


def _grid(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], room: int | None) -> str:
    """Return aligned columns, numbers to the right; where ``room`` characters do not suffice, long text is wrapped."""
    values = {name: [row[name] for row in rows] for name in columns}
    cells = {name: _column(values[name], name) for name in columns}
    right = {name: _is_number(values[name]) for name in columns}
    width = {name: max([len(name), *map(len, cells[name])]) for name in columns}
    if room is not None:
        width |= _narrowed(
            {name: width[name] for name in columns if not right[name]}, sum(width.values()), room, columns
        )

    def lines(texts: Sequence[str]) -> list[str]:
        wrapped = [_wrap(text, width[name]) for name, text in zip(columns, texts, strict=True)]
        out = []
        for parts in itertools.zip_longest(*wrapped, fillvalue=""):
            padded = [
                part.rjust(width[name]) if right[name] else part.ljust(width[name])
                for name, part in zip(columns, parts, strict=True)
            ]
            out.append("  ".join(padded).rstrip())
        return out

    out = [*lines(columns), "  ".join("-" * width[name] for name in columns)]
    for row in zip(*cells.values(), strict=True):
        out += lines(row)
    return "\n".join(out) + "\n"


def _wrap(text: str, width: int, hang: int = 0) -> list[str]:
    """Return the lines of a text, those after the first set in by ``hang`` characters."""
    if len(text) <= width:
        return [text]
    rest = textwrap.wrap(text[hang:], width - hang, break_on_hyphens=False)
    return [text[:hang] + rest[0], *(" " * hang + line for line in rest[1:])]


def _narrowed(text_width: dict[str, int], wanted: int, room: int, columns: Sequence[str]) -> dict[str, int]:
    """Return the widths of the text columns, the widest made narrower until all columns fit or none can give more."""
    excess = wanted + 2 * (len(columns) - 1) - room
    width = dict(text_width)
    while excess > 0 and width:
        widest = max(width, key=width.__getitem__)
        if width[widest] <= max(len(widest), NARROWEST):
            break
        width[widest] -= 1
        excess -= 1
    return width


def _upright(fields: Sequence[tuple[str, Any]], room: int | None) -> str:
    """Return a line for each field, or for each of its items; below, a table for each list of dataclasses."""
    width = max(len(name) for name, _ in fields)
    lines, below = [], []
    for name, value in fields:
        items, hang = [NULL], 0
        if isinstance(value, Mapping) and value:
            hang = max(len(str(key)) for key in value) + 2
            items = [f"{str(key).ljust(hang)}{_text(item, str(key))}" for key, item in value.items()]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            if value and dataclasses.is_dataclass(value[0]):
                below.append(f"\n{name}\n{_table(value, room)}")
                continue
            items = [_text(item, name) for item in value] or items
        else:
            items = [_text(value, name)]
        if room is not None:
            items = [line for item in items for line in _wrap(item, max(room - width - 2, hang + 2 * NARROWEST), hang)]
        lines += [f"{(name if index == 0 else '').ljust(width)}  {item}" for index, item in enumerate(items)]
    return "\n".join(lines) + "\n" + "".join(below)


def _text(value: Any, name: str) -> str:
    return _column([_cell(value, _words)], name)[0]


def _is_number(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)


def _column(values: Sequence[Any], name: str) -> list[str]:
    """Return the texts of one column: numbers with as many decimals as give its largest four digits, ids ungrouped."""
    floats = [abs(value) for value in values if isinstance(value, float)]
    decimals = 0
    if floats and max(floats) > 0:
        decimals = min(max(3 - math.floor(math.log10(max(floats))), 0), 6)
    group = "" if name == "id" or name.endswith("_id") else ","

    def text(value: Any) -> str:
        if value is None or value == "":
            return NULL
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int):
            return f"{value:{group}d}"
        if isinstance(value, float):
            return f"{value:{group}.{decimals}f}"
        if isinstance(value, datetime):
            return iso(value.replace(microsecond=0)).replace("T", " ")
        return " ".join(str(value).split())

    return [text(value) for value in values]
