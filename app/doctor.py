"""What is wrong with this installation, lake or machine: one finding a line, each with the next step."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from app.cli import ROOMS

Status = Literal["ok", "warning", "problem"]

LIBRARIES = ("polars", "pyarrow", "numpy", "scikit-learn", "lightgbm", "dask", "fsspec", "click")

POWERCAP = Path("/sys/class/powercap")

LITTLE_SPACE_BYTES = 2 * 2**30
NO_SPACE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: how it is, what was found, and what to do where it is not well."""

    status: Status
    what: str
    found: str
    next_step: str = ""


def examine(lake: Path | None) -> list[Finding]:
    """Return the findings on this installation, the lake (that of the settings unless given) and the machine.

    Where a room is hidden from this very process, what stands on the rooms is not looked at.
    """
    home = Path(__file__).parent.parent
    rooms = check_rooms(home, running=sys.path, started_here=python_path())
    machine = [check_libraries(LIBRARIES), check_nvml(), check_rapl(POWERCAP)]
    if hidden_rooms(home, sys.path):
        found = "not looked at, since a module of another project is in the way"
        return [*rooms, *machine, Finding("warning", "lake", found, "see to the rooms first")]
    return [*rooms, *machine, check_compiled(), check_workers(), *check_lake(lake)]


# -- the installation --------------------------------------------------------------------------------------------------


def python_path() -> list[str]:
    """Return where a Python started in this folder looks before it looks at what is installed."""
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return [str(Path.cwd()), *given]


def check_rooms(home: Path, running: Sequence[str], started_here: Sequence[str]) -> list[Finding]:
    """Return a problem for each room that another module hides; one that says ok where none is hidden.

    ``running`` is where this process finds modules, ``started_here`` where a notebook, a dask worker or `python -c`
    begun in this folder finds them first.
    """
    problems = []
    for room, origin in (hidden_rooms(home, started_here) | hidden_rooms(home, running)).items():
        foreign = origin.parent if origin.name == "__init__.py" else origin
        step = f"rename {foreign}, work in another folder, or take {foreign.parent} off PYTHONPATH"
        problems.append(Finding("problem", "rooms", f"{room} is hidden by {foreign}", step))
    found = f"{', '.join(ROOMS)} are jobwatt's own, in {home}; Python {platform.python_version()} at {sys.executable}"
    return problems or [Finding("ok", "rooms", found)]


def hidden_rooms(home: Path, path: Sequence[str]) -> dict[str, Path]:
    """Return room to the file that ``path`` finds in its place; a folder without ``__init__.py`` hides none."""
    PathFinder.invalidate_caches()
    hidden = {}
    for room in ROOMS:
        spec = PathFinder.find_spec(room, list(path))
        origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if origin is not None and not origin.is_relative_to((home / room).resolve()):
            hidden[room] = origin
    return hidden


def check_libraries(names: Sequence[str]) -> Finding:
    """Return the versions of the libraries that jobwatt stands on, and which are missing."""
    versions, missing = [], []
    for name in names:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("problem", "libraries", f"not installed: {', '.join(missing)}", "`make clean test` installs all")
    return Finding("ok", "libraries", ", ".join(versions))


# -- the lake and the machine ------------------------------------------------------------------------------------------


def check_compiled() -> Finding:
    """Return whether the C functions of ingest were built, all of them."""
    from ingest import compiled
    from ingest.sources import quick

    if quick.is_available() and compiled.is_available():
        return Finding("ok", "C functions", "compiled")
    return Finding(
        "warning", "C functions", "not compiled, ingest is slower", "install a C compiler, then run `make clean demo`"
    )


def check_lake(lake: Path | None) -> list[Finding]:
    """Return whether the settings can be read, and the lake is there, of this version, its files as listed, with room.

    Of a file only the footer is read, so that this takes moments whatever the lake's size.
    """
    from app.settings import SettingsError, load
    from ingest.errors import LakeError

    try:
        settings = load(lake=lake)
    except SettingsError as error:
        return [Finding("problem", "settings", str(error), "correct the file")]
    where, space = f"{settings.lake} ({settings.lake_from})", check_space(settings.lake)
    if not settings.lake.exists():
        step = f"`jobwatt lake ingest PATH --lake {settings.lake}` makes one"
        return [Finding("warning", "lake", f"none at {where}", step), space]
    from app.lake_access import open_lake
    from ingest.head import SCHEMA_VERSION

    try:
        with open_lake(lake) as opened:
            report = opened.check(values=False)
    except (LakeError, OSError) as error:
        step = "restore it, or ingest into another folder"
        return [Finding("problem", "lake", f"{where} cannot be read: {error}", step), space]
    if report.problems:
        found = f"{where}: {len(report.problems)} problems, the first: {report.problems[0]}"
        return [Finding("problem", "lake", found, f"`jobwatt lake check --lake {settings.lake}` lists them"), space]
    found = f"{where}: schema {SCHEMA_VERSION}, {report.files:,} files, {report.rows:,} rows by their footers"
    found += f"; `jobwatt lake check --lake {settings.lake}` reads every value"
    return [Finding("ok", "lake", found), space]


def check_space(folder: Path) -> Finding:
    """Return how much room the disk has on which the folder is, or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free_bytes = shutil.disk_usage(there).free
    found = f"{free_bytes / 2**30:,.1f} GiB free where the lake is"
    if free_bytes >= LITTLE_SPACE_BYTES:
        return Finding("ok", "disk", found)
    status: Status = "problem" if free_bytes < NO_SPACE_BYTES else "warning"
    return Finding(status, "disk", found, "make room, or choose another folder with --lake")


def check_workers() -> Finding:
    """Return how many workers an ingest starts here."""
    from ingest.runner import usable_cores

    cores = usable_cores()
    return Finding("ok", "workers", f"{cores} of {os.cpu_count()} cores may be used; --workers {cores} is the default")


def check_nvml() -> Finding:
    """Return whether NVIDIA's meter answers, and for which GPUs."""
    if find_spec("pynvml") is None:
        step = "only live metering needs it: install nvidia-ml-py beside jobwatt"
        return Finding("warning", "nvml", "pynvml is not installed, so no GPU is metered here", step)
    pynvml = importlib.import_module("pynvml")
    try:
        pynvml.nvmlInit()
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            gpus = [
                f"{_text(pynvml.nvmlDeviceGetName(h))} {pynvml.nvmlDeviceGetPowerUsage(h) / 1e3:.0f} W" for h in handles
            ]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return Finding("warning", "nvml", f"the driver does not answer: {error}", "only live metering needs it")
    return Finding("ok", "nvml", ", ".join(gpus) or "the driver answers, and has no GPU")


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def check_rapl(powercap: Path) -> Finding:
    """Return whether the CPUs' energy counters can be read."""
    counters = sorted(powercap.glob("*/energy_uj"))
    if not counters:
        return Finding(
            "warning", "rapl", f"no energy counter in {powercap}", "only CPU metering on this machine needs it"
        )
    refused = [counter for counter in counters if not _readable(counter)]
    if refused:
        step = f"only CPU metering needs it: let jobwatt's user read {refused[0]}"
        return Finding("warning", "rapl", f"{len(refused)} of {len(counters)} energy counters cannot be read", step)
    return Finding("ok", "rapl", f"{len(counters)} energy counters answer")


def _readable(counter: Path) -> bool:
    try:
        return int(counter.read_text()) >= 0
    except (OSError, ValueError):
        return False
