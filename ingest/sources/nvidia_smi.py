"""What ``nvidia-smi`` prints: ``--query-gpu=… --format=csv`` in all its forms, and the text of ``dmon``. Pure.

Columns are found by name, whatever their order; values may carry their unit (``123.45 W``) or not. Both print local
time without a zone, so the zone has to be told. ``dmon`` prints no time at all unless it is asked to (``-o DT``).

``power_w`` is ``power.draw.instant`` where that was asked for, and ``power.draw`` only where it was not: what
``power.draw`` means depends on the GPU. On Ampere (but for GA100) and newer it is an average over 1 s, on older ones
instantaneous.

References
----------
nvidia-smi(1) and ``nvidia-smi --help-query-gpu``, NVIDIA driver 570: names, units, ``[N/A]``, ``[Not Supported]``, the
three readings of power. NVML API reference, ``nvmlDeviceGetPowerUsage``: GA100 is told among the older ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import polars as pl

from ingest.records import SmiOptions
from ingest.schemas import GPU_SAMPLES
from ingest.sources.delimited import BOM, Header, Parsed, split_lines, type_cells
from ingest.sources.file_kind import Context, FileKind, Finished, epoch_to_time

QUERY_COLUMN_MAP: Final = {"timestamp": "time_epoch_s", "index": "gpu_index"}

QUERY_OPTIONAL_COLUMN_MAP: Final = {
    "utilization.gpu": "gpu_util_pct",
    "utilization.memory": "memory_util_pct",
    "memory.free": "memory_free_mib",
    "memory.used": "memory_used_mib",
    "temperature.gpu": "gpu_temp_c",
    "temperature.memory": "memory_temp_c",
    "power.draw.instant": "power_w",
    "power.draw.average": "power_avg_w",
    "pcie.link.width.current": "pcie_link_width",
    "clocks.current.sm": "sm_clock_mhz",
    "clocks.current.memory": "mem_clock_mhz",
    "enforced.power.limit": "power_limit_w",
    "clocks_event_reasons.active": "throttle",
}

QUERY_SECOND_NAMES: Final = {
    "clocks.sm": "clocks.current.sm",
    "clocks.mem": "clocks.current.memory",
    "gpu_index": "index",
    "power.draw": "power.draw.instant",
    "power.limit": "enforced.power.limit",
    "clocks_throttle_reasons.active": "clocks_event_reasons.active",
}
"""Names that fill the place of another where that one was not asked for; else they are left out, and named."""

DMON_COLUMN_MAP: Final = {"Date": "date", "Time": "clock_time", "gpu": "gpu_index"}

DMON_OPTIONAL_COLUMN_MAP: Final = {
    "pwr": "power_w",
    "gtemp": "gpu_temp_c",
    "mtemp": "memory_temp_c",
    "sm": "gpu_util_pct",
    "mem": "memory_util_pct",
    "mclk": "mem_clock_mhz",
    "pclk": "sm_clock_mhz",
    "fb": "memory_used_mib",
}

_NODE: Final = r"(?:-(?P<node>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?))?"
_ROTATED: Final = r"(?:\.\d+|-\d{8})?"
QUERY_NAME: Final = re.compile(rf"^nvidia-smi{_NODE}.*\.csv{_ROTATED}$")
DMON_NAME: Final = re.compile(rf"^(?:nvidia-smi-)?dmon{_NODE}.*\.(?:txt|log|csv){_ROTATED}$")
"""As logrotate leaves them too: ``nvidia-smi-n1.csv.1``, ``nvidia-smi-n1.csv-20261124``."""

TYPES: Final[dict[str, pl.DataType]] = {
    "time_epoch_s": pl.Float64(),
    **{name: dtype for name, dtype in GPU_SAMPLES.columns.items() if name not in ("time", "job_id", "node")},
}

_REQUIRED: Final = frozenset({"time_epoch_s", "gpu_index"})
_UNITS: Final = {
    "gpu_util_pct": "%",
    "memory_util_pct": "%",
    "memory_free_mib": "MiB",
    "memory_used_mib": "MiB",
    "power_w": "W",
    "power_avg_w": "W",
    "power_limit_w": "W",
    "sm_clock_mhz": "MHz",
    "mem_clock_mhz": "MHz",
}
_DATE_TIME: Final = "%Y/%m/%d %H:%M:%S%.f"
_COMPACT_DATE: Final = r"^(\d{4})(\d{2})(\d{2})$"
_IN_BRACKETS: Final = r"^\[.*\]$"
"""A value that nvidia-smi could not get, with the driver's reason: ``[N/A]``, ``[Insufficient Permissions]``."""


def classify(file: str) -> str:
    """Return ``smi_query`` or ``smi_dmon`` for a file of that name, '' for any other.

    >>> [classify(n) for n in ("nvidia-smi-n1.csv", "dmon-n1.log", "nvidia-smi.csv", "nvidia_smi.csv")]
    ['smi_query', 'smi_dmon', 'smi_query', '']
    """
    return "smi_dmon" if DMON_NAME.match(file) else "smi_query" if QUERY_NAME.match(file) else ""


def read_query_header(data: bytes, options: SmiOptions) -> tuple[list[str], int]:
    """Return the names of the columns, as the maps above have them, and where the rows begin.

    Without a header (``noheader``) the names are those of ``options.columns``; none are returned where there are none.

    >>> read_query_header(b"timestamp, index, power.draw [W], name\\n", SmiOptions())
    (['timestamp', 'index', 'power.draw.instant', 'name'], 39)
    """
    line, stop = _first_line(data)
    names = _canonical(_cells(line))
    if any(name in QUERY_COLUMN_MAP or name in QUERY_OPTIONAL_COLUMN_MAP for name in names):
        return names, stop
    return _canonical(options.columns), 0


def _canonical(names: Sequence[str]) -> list[str]:
    """Return the names without their units, second names in the place of absent first ones; others as they are."""
    known = QUERY_COLUMN_MAP | QUERY_OPTIONAL_COLUMN_MAP
    plain = [_without_unit(name) for name in names]
    found = []
    for name, bare in zip(names, plain, strict=True):
        first = QUERY_SECOND_NAMES.get(bare, "")
        if bare in known:
            found.append(bare)
        elif first and first not in plain and first not in found:
            found.append(first)
        else:
            found.append(name)
    return found


def _without_unit(name: str) -> str:
    """Return a column's name without the unit in brackets, if that is the unit which jobwatt expects there.

    >>> _without_unit("power.draw [W]"), _without_unit("power.draw [mW]")
    ('power.draw', 'power.draw [mw]')
    """
    bare, _, unit = name.lower().partition(" [")
    first = QUERY_SECOND_NAMES.get(bare, bare)
    expected = _UNITS.get(QUERY_OPTIONAL_COLUMN_MAP.get(first, ""), "")
    return bare if not unit or unit == f"{expected.lower()}]" else name.lower()


def read_dmon_header(data: bytes, options: SmiOptions) -> tuple[list[str], int]:
    """Return the names of the columns in the first line, and where the next line begins.

    >>> read_dmon_header(b"#Date       Time        gpu    pwr\\n#YYYYMMDD   HH:MM:SS    Idx      W\\n", SmiOptions())
    (['Date', 'Time', 'gpu', 'pwr'], 35)
    """
    line, stop = _first_line(data)
    return (_dmon_cells(line.removeprefix("#")), stop) if line.startswith("#") else ([], 0)


def _first_line(data: bytes) -> tuple[str, int]:
    end = data.find(b"\n")
    stop = len(data) if end < 0 else end + 1
    return data[:stop].removeprefix(BOM).decode("utf-8", "backslashreplace").strip(), stop


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split(",")]


def _dmon_cells(line: str) -> list[str]:
    return _cells(line) if "," in line else line.split()


def parse_query(body: bytes, header: Header, first_line: int, options: SmiOptions) -> Parsed:
    """Return the sound rows of CSV text with ``line`` and ``raw``, and a reason for each of the others.

    Blank lines and repetitions of the header (of runs that were appended to one file) are no rows.
    """
    taken = _Taken(header, met=first_line <= 2)
    numbered, rejected = _numbered_lines(body, first_line)
    for number, raw in numbered:
        cells = _cells(raw)
        if _is_query_header(raw):
            taken.start(_canonical(cells))
        else:
            taken.add(number, raw, cells)
    return taken.finish(rejected, options.time_zone)


def parse_dmon(body: bytes, header: Header, first_line: int, options: SmiOptions) -> Parsed:
    """Return the sound rows of dmon's text with ``line`` and ``raw``, and a reason for each of the others.

    Blank lines and lines that begin with # (names and units, repeated every so often) are no rows.
    """
    taken = _Taken(header, met=first_line <= 2)
    numbered, rejected = _numbered_lines(body, first_line)
    for number, raw in numbered:
        line = raw.strip()
        if not _is_dmon_remark(raw):
            taken.add(number, raw, _dmon_cells(line))
        elif "gpu" in (names := _dmon_cells(line.removeprefix("#"))):
            taken.start(names)
    return taken.finish(rejected, options.time_zone)


def count_query_rows(body: bytes) -> int:
    """Return how many lines of CSV text are rows, sound or not: neither blank nor a header.

    >>> count_query_rows(b"2026/11/24 22:42:00, 0\\n\\ntimestamp, index\\nUnknown Error\\n")
    2
    """
    lines, _, rejected = split_lines(body, 1)
    return len(rejected) + sum(not _is_query_header(line) for line in lines)


def count_dmon_rows(body: bytes) -> int:
    """Return how many lines of dmon's text are rows, sound or not: neither blank nor names and units.

    >>> count_dmon_rows(b"# Idx     W\\n    0    70\\n\\n")
    1
    """
    lines, _, rejected = split_lines(body, 1)
    return len(rejected) + sum(not _is_dmon_remark(line) for line in lines)


def _is_query_header(line: str) -> bool:
    return "timestamp" in line and "timestamp" in map(_without_unit, _cells(line))


def _is_dmon_remark(line: str) -> bool:
    return line.strip().startswith("#")


def _numbered_lines(body: bytes, first_line: int) -> tuple[list[tuple[int, str]], list[tuple[int, str, str, str]]]:
    lines, numbers, rejected = split_lines(body, first_line)
    return list(zip(numbers, lines, strict=True)), rejected


class _Taken:
    """Lines of a piece of text, split, under the header of their file; those under another header are set apart.

    ``met``: whether the piece begins right below the file's header. Otherwise rows before the first header of the
    piece belong to the file's own; if that first one differs, nobody knows.
    """

    def __init__(self, header: Header, *, met: bool) -> None:
        self._header = header
        self._rows: list[tuple[int, str, list[str]]] = []
        self._strange: list[tuple[int, str, list[str]]] = []
        self._is_strange = False
        self._met = met

    def start(self, names: list[str]) -> None:
        """Begin the rows under a header that was met in the midst."""
        self._is_strange = tuple(names) != self._header.names
        if self._is_strange and not self._met:
            self._strange, self._rows = self._rows, []
        self._met = True

    def add(self, number: int, raw: str, cells: list[str]) -> None:
        """Take one line."""
        (self._strange if self._is_strange else self._rows).append((number, raw, cells))

    def finish(self, rejected: list[tuple[int, str, str, str]], time_zone: str) -> Parsed:
        """Return the rows typed."""
        width = self._header.width
        bad = [*rejected, *((number, "header_changed", "", raw) for number, raw, _ in self._strange)]
        kept = []
        for number, raw, cells in self._rows:
            if len(cells) == width:
                kept.append((number, raw, cells))
            else:
                reason = "too_few_fields" if len(cells) < width else "too_many_fields"
                bad.append((number, reason, f"{len(cells)} of {width}", raw))
        text = _text_frame(kept, self._header)
        text, off_clock = _with_epoch(text, time_zone or "UTC")
        frame, wrong, sentinels, _ = type_cells(text, TYPES, _REQUIRED, frozenset(), extras=frozenset())
        bad += [*off_clock, *wrong]
        frame = frame.with_columns(pl.lit(None, dtype=pl.Int64).alias("job_id"))
        return Parsed(frame, sorted(bad), sentinels, {})


def _text_frame(rows: list[tuple[int, str, list[str]]], header: Header) -> pl.DataFrame:
    """Return the cells of the mapped columns as text without units, with ``line`` and ``raw``."""
    fields = list(zip(*(cells for _, _, cells in rows), strict=True)) if rows else [()] * header.width
    columns = {name: pl.Series(fields[i], dtype=pl.String) for i, name in enumerate(header.columns) if name is not None}
    text = pl.DataFrame(columns).with_columns(
        pl.Series("line", [number for number, _, _ in rows], dtype=pl.Int64),
        pl.Series("raw", [raw for _, raw, _ in rows], dtype=pl.String),
    )
    values = [name for name in columns if name in GPU_SAMPLES.columns]
    text = text.with_columns(pl.when(~pl.col(values).str.contains(_IN_BRACKETS)).then(pl.col(values)).name.keep())
    for name in values:
        if name in _UNITS:
            amount = rf"^([-+0-9.eE]+)\s*{re.escape(_UNITS[name])}$"
            text = text.with_columns(pl.col(name).str.replace(amount, "$1"))
    if "throttle" in text.columns:
        mask = pl.col("throttle").str.strip_prefix("0x").str.to_integer(base=16, strict=False).cast(pl.String)
        is_hex = pl.col("throttle").str.contains(r"^0x[0-9A-Fa-f]+$")
        text = text.with_columns(pl.when(is_hex).then(mask).otherwise(pl.col("throttle")))
    return text.with_columns(pl.col(values).fill_null(""))


def _with_epoch(text: pl.DataFrame, zone: str) -> tuple[pl.DataFrame, list[tuple[int, str, str, str]]]:
    """Return the rows with ``time_epoch_s`` as text, and those whose local time the clock showed twice or never."""
    if "date" in text.columns:
        date = pl.col("date").str.replace(_COMPACT_DATE, "$1/$2/$3")
        text = text.with_columns((date + " " + pl.col("clock_time")).alias("time_epoch_s")).drop("date", "clock_time")
    naive = pl.col("time_epoch_s").str.to_datetime(_DATE_TIME, time_unit="us", strict=False)
    utc = naive.dt.replace_time_zone(zone, ambiguous="null", non_existent="null").dt.epoch("us")
    found = text.with_columns(naive.alias("_naive"), utc.alias("_us"))
    off_clock = found.filter(pl.col("_naive").is_not_null() & pl.col("_us").is_null())
    kept = found.filter(pl.col("_naive").is_null() | pl.col("_us").is_not_null())
    seconds = (pl.col("_us") / 1_000_000).cast(pl.String)
    kept = kept.with_columns(pl.coalesce(seconds, pl.col("time_epoch_s")).alias("time_epoch_s")).drop("_naive", "_us")
    rows = off_clock.select("line", "time_epoch_s", "raw").iter_rows()
    return kept, [(line, "ambiguous_time", f"{zone} {shown}", raw) for line, shown, raw in rows]


def _finish_smi(frame: pl.DataFrame, context: Context) -> Finished:
    assumed: dict[tuple[int | None, str, str], int] = {}
    if frame.height and not context.smi.time_zone:
        assumed[None, "time_zone_assumed", "UTC"] = frame.height
    return Finished(frame.with_columns(epoch_to_time()).drop("time_epoch_s"), assumed)


KINDS: Final = (
    FileKind(
        "smi_query",
        "gpu_samples",
        QUERY_COLUMN_MAP,
        TYPES,
        frozenset(QUERY_COLUMN_MAP.values()),
        _finish_smi,
        optional=QUERY_OPTIONAL_COLUMN_MAP,
        name_pattern=QUERY_NAME,
        read_header=read_query_header,
        parse=parse_query,
        count_rows=count_query_rows,
    ),
    FileKind(
        "smi_dmon",
        "gpu_samples",
        DMON_COLUMN_MAP,
        TYPES,
        frozenset(DMON_COLUMN_MAP.values()),
        _finish_smi,
        optional=DMON_OPTIONAL_COLUMN_MAP,
        name_pattern=DMON_NAME,
        read_header=read_dmon_header,
        parse=parse_dmon,
        count_rows=count_dmon_rows,
    ),
)
