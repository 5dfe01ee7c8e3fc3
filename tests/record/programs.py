"""The programs of ``data/record``, scripts beside each other and no package, as modules; and a child that is played."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "data" / "record"

CHILD = """
import json, os, sys, time
print("ready", flush=True)
orders = json.loads(sys.stdin.readline())
time.sleep(orders["seconds"])
print(json.dumps({{"steps": 12, "batch": 8, "peak_memory_gib": 1.5}})[:{bytes_told}], end={end!r}, flush=True)
os._exit({exit_code})
"""


def write_child(path: Path, *, bytes_told: int | None = None, exit_code: int = 0) -> Path:
    """Write a child that needs no GPU: it waits for its time and answers; or dies having told so many bytes of it."""
    path.write_text(CHILD.format(bytes_told=bytes_told, end="\n" if bytes_told is None else "", exit_code=exit_code))
    return path


def load(name: str) -> ModuleType:
    """Return one of the programs as a module, with those beside it to be found while it is loaded."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module
