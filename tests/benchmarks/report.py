"""BENCHMARKS.md: an introduction, and one table for each benchmark between markers that a run replaces."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

INTRODUCTION = """# Benchmarks

Written by `make bench`; nothing between markers is edited by hand. A time is that of one whole process from start to
end (interpreter, imports and all) unless a table says otherwise. Contestants run in turn on an otherwise idle machine,
each round in another order; a ratio is that of two runs of one round. Given is the median, with the least and the
greatest. All telemetry is synthetic (`ingest/synthetic.py`): about nine samples a second, power to 0.01 W, times to
1 µs. Sizes depend on that.
"""

PACKAGES = ("polars", "pyarrow", "numpy", "pandas", "dask", "distributed", "duckdb")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table.

    Examples
    --------
    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """Return what the benchmarks ran on, in a paragraph."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    total = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))
    memory = f"{int(total.group(1)) / 2**20:.0f} GiB" if total else "unknown"
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"Machine: {len(os.sched_getaffinity(0))} cores ({cpu.group(1) if cpu else platform.processor()}), {memory} of "
        f"memory, {platform.system()}; Python {platform.python_version()}, {versions}."
    )


def dated(text: str) -> str:
    """Return a section with the day it was measured on."""
    return f"{text}\n\nMeasured on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}."


def replace_sections(document: str, sections: Mapping[str, str], order: Sequence[str]) -> str:
    """Return the document with the named sections' contents replaced, or put in where they belong in the order."""
    kept = {
        name: match.group(1)
        for name in order
        if (match := re.search(rf"{re.escape(_open(name))}\n(.*?)\n{re.escape(_close(name))}", document, re.DOTALL))
    }
    parts = {**kept, **sections}
    blocks = [f"{_open(name)}\n{parts[name]}\n{_close(name)}" for name in order if name in parts]
    return "\n".join([INTRODUCTION, *("\n".join([block, ""]) for block in blocks)])


def write_sections(path: Path, sections: Mapping[str, str], order: Sequence[str]) -> None:
    """Put sections into a file, which is made if it is not there."""
    document = path.read_text(encoding="utf-8") if path.exists() else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(replace_sections(document, sections, order), encoding="utf-8")


def _open(name: str) -> str:
    return f"<!-- bench:{name} -->"


def _close(name: str) -> str:
    return f"<!-- /bench:{name} -->"
