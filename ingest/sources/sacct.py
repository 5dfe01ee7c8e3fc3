"""``sacct -P`` as text: one job an allocation, whatever columns it was asked for. Pure, and light.

``sacct`` escapes nothing: a bar or a line break inside a job's name looks like the next column or the next row. So
columns that can hold anything (`FREE_TEXT`) are found by what the others may hold: cells left of them count from the
left, cells right of them from the right, and a row goes on until the next line that begins as a row must. What fits in
two ways is not taken.

References
----------
SchedMD, slurm: sacct(1); src/sacct/print.c.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Final

from ingest.sources.sacct_columns import COLUMNS, FREE_TEXT, WEAKER, MissingKeyError, Row, finish

_MAX_WAYS: Final = 1000
_NOT_OF_A_JOB: Final = "job_step"


@dataclass(slots=True)
class Parsed:
    """Rows of jobs with the number of their line (or place); rejected ones with reason, detail, raw; counts of what
    was seen, by job, reason and detail."""

    rows: list[tuple[int, str, Row]] = field(default_factory=list)
    rejected: list[tuple[int, str, str, str]] = field(default_factory=list)
    counts: Counter[tuple[int | None, str, str]] = field(default_factory=Counter)

    def clear(self) -> None:
        """Forget the rows and what was rejected, so that the next ones have their room."""
        self.rows, self.rejected, self.counts = [], [], Counter()


# -- rows --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """The header of a text: its columns folded, the separator, and which of them can hold anything."""

    names: tuple[str, ...]
    separator: str
    free: tuple[int, ...]
    readers: tuple[tuple[int, Callable[[Row, str], None]], ...]

    @property
    def width(self) -> int:
        """Number of cells of a row."""
        return len(self.names)


def parse_header(line: str) -> Table:
    """Return the columns of a text.

    Raises
    ------
    ValueError
        If no job id is among them, or a name comes twice.

    >>> parse_header("JobIDRaw|State|JobName").free
    (2,)
    """
    found = re.match(r"^\s*[A-Za-z]+([^A-Za-z0-9 ])", line)
    separator = found[1] if found else "|"
    names = tuple(name.strip().lower() for name in line.split(separator))
    if not {"jobid", "jobidraw"} & set(names):
        raise ValueError("JobIDRaw")
    twice = [name for name, n in Counter(names).items() if n > 1 and name in COLUMNS]
    if twice:
        raise ValueError(f"{twice[0]} twice")
    readers = [(i, COLUMNS[name]) for i, name in enumerate(names) if name in COLUMNS and WEAKER.get(name) not in names]
    return Table(names, separator, tuple(i for i, name in enumerate(names) if name in FREE_TEXT), tuple(readers))


def unknown_columns(table: Table) -> list[str]:
    """Return the columns that the lake does not keep."""
    return [name for name in table.names if name and name not in COLUMNS]


def split_rows(table: Table, lines: Iterable[str], first_line: int) -> Iterator[tuple[int, str]]:
    """Yield the number of the first line and the text of each row; lines that go on from the row before are in it."""
    begin, held = first_line, list[str]()
    for number, line in enumerate(lines, first_line):
        if held and _goes_on(table, held, line):
            held.append(line)
            continue
        if held:
            yield begin, "\n".join(held)
        begin, held = number, [line] if line.strip() else []
    if held:
        yield begin, "\n".join(held).rstrip("\n")


def _goes_on(table: Table, held: list[str], line: str) -> bool:
    """Return whether a line belongs to the row before it: that one lacks cells, or the line begins as no row does."""
    if not table.free or table.free[0] == 0 or line.startswith(("sacct: ", "slurm_")):
        return False
    have = 1 + sum(each.count(table.separator) for each in held)
    if have <= table.free[0]:  # it ends before any text in which a line can break
        return False
    cells = line.split(table.separator)
    if have < table.width or not _begins(table, cells):
        return True
    return not _is_sound(table, cells) and not _is_whole(table, held)


def _is_sound(table: Table, cells: list[str]) -> bool:
    """Return whether a row can begin with these cells."""
    try:
        _read(table, cells[: table.free[0]])
    except ValueError:
        return False
    return True


def _is_whole(table: Table, held: list[str]) -> bool:
    """Return whether these lines are a row of a job with its state, which sacct never leaves out."""
    try:
        return parse_row(table, "\n".join(held)).get("state") is not None
    except ValueError:
        return False


def _begins(table: Table, cells: list[str]) -> bool:
    """Return whether a row begins with these cells, or all of one is there, sound or not."""
    if len(cells) == 1 or len(cells) >= table.width:
        return len(cells) > 1
    return _is_sound(table, cells[:-1])


def parse_row(table: Table, text: str) -> Row:
    """Return one row.

    Raises
    ------
    ValueError
        With the detail; ``too_few_fields`` and ``too_many_fields`` begin the message of a wrong number of cells.
    """
    cells = text.split(table.separator)
    extra = len(cells) - table.width
    if extra < 0:
        raise ValueError(f"too_few_fields {len(cells)} of {table.width}")
    if extra == 0 or not table.free:
        if extra:
            raise ValueError(f"too_many_fields {len(cells)} of {table.width}")
        row = _read(table, cells)
        _refuse_hidden_row(table, text)
        return row
    found: list[Row] = []
    for sizes in _ways(len(table.free), extra):
        try:
            row = _read(table, _join(table, cells, sizes))
        except ValueError:
            continue
        if row not in found:
            found.append(row)
    if len({_but_constraints(row) for row in found}) != 1:
        raise ValueError(f"too_many_fields {len(cells)} of {table.width}, which fit in {len(found)} ways")
    _refuse_hidden_row(table, text)
    if len(found) > 1:
        found[0] |= {"constraints": None, "ambiguous": "constraints"}
    return found[0]


def _but_constraints(row: Row) -> str:
    """Return all that a row says but the one of its texts that is kept."""
    return repr(sorted((name, value) for name, value in row.items() if name != "constraints"))


def _refuse_hidden_row(table: Table, text: str) -> None:
    """Refuse a row of lines some of which are a row as well: a name that plays a job, or a damaged file."""
    _, newline, rest = text.partition("\n")
    while newline:
        try:
            parse_row(table, rest)
        except ValueError:
            _, newline, rest = rest.partition("\n")
        else:
            raise ValueError(f"too_many_fields a row of several lines, of which {rest[:40]!r} is one too")


def _ways(free: int, extra: int) -> Iterator[tuple[int, ...]]:
    """Yield how many of the extra separators may lie in each of the columns that can hold anything."""
    for n, bars in enumerate(combinations(range(extra + free - 1), free - 1)):
        if n >= _MAX_WAYS:
            return
        edges = (-1, *bars, extra + free - 1)
        yield tuple(b - a - 1 for a, b in pairwise(edges))


def _join(table: Table, cells: Sequence[str], sizes: Sequence[int]) -> list[str]:
    joined: list[str] = []
    at = 0
    extra = dict(zip(table.free, sizes, strict=True))
    for i in range(table.width):
        n = 1 + extra.get(i, 0)
        joined.append(table.separator.join(cells[at : at + n]))
        at += n
    return joined


def _read(table: Table, cells: Sequence[str]) -> Row:
    """Return what the cells tell, which may be the first ones of a row only."""
    for i, text in enumerate(cells):
        if "\n" in text and i not in table.free:
            raise ValueError(f"a line break in {table.names[i]}")
    row: Row = {}
    for i, put in table.readers:
        if i < len(cells):
            try:
                put(row, cells[i].strip())
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{table.names[i]} {error}") from error
    return row


def parse_rows(table: Table, rows: Iterable[tuple[int, str]], parsed: Parsed) -> None:
    """Add rows of text to what is parsed; steps are counted and left out."""
    for number, text in rows:
        if _is_header(table, text):
            continue
        try:
            row = finish(parse_row(table, text))
        except MissingKeyError as error:
            parsed.rejected.append((number, "missing_key", str(error), text))
        except ValueError as error:
            reason, _, detail = str(error).partition(" ")
            if reason not in ("too_few_fields", "too_many_fields"):
                reason, detail = "wrong_type", str(error)
            parsed.rejected.append((number, reason, detail, text))
        else:
            take(parsed, number, text, row)


def take(parsed: Parsed, number: int, raw: str, row: Row) -> None:
    """Add one row with what is to be counted about it."""
    if row.pop("step", None):
        parsed.counts[None, _NOT_OF_A_JOB, ""] += 1
        return
    for column in row.pop("local_times", ()):
        parsed.counts[row["job_id"], "time_zone_unknown", column] += 1
    if column := row.pop("ambiguous", ""):
        parsed.counts[row["job_id"], "cell_ambiguous", column] += 1
    parsed.rows.append((number, raw, row))


def _is_header(table: Table, text: str) -> bool:
    if text[: len(table.names[0])].lower() != table.names[0]:
        return False
    return tuple(name.strip().lower() for name in text.split(table.separator)) == table.names


def parse_text(text: str) -> Parsed:
    """Return what a whole text says; see `parse_header` for what it raises.

    >>> [row["state"] for _, _, row in parse_text("JobIDRaw|State|JobName\\n7|FAILED|a|b\\nc\\n").rows]
    ['FAILED']
    """
    lines = text.split("\n")
    table = parse_header(lines[0])
    parsed = Parsed()
    parse_rows(table, split_rows(table, lines[1:], 2), parsed)
    return parsed
