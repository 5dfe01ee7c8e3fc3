"""What the README's map of rooms says of the places that touch the world outside, against the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")

MOST_LINES = 400
MODULES = {"multiprocessing", "os", "shutil", "socket", "time", "subprocess", "fcntl", "ctypes"}
CALLS = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "unlink", "mkdir", "glob", "rglob", "rmdir"}
CALLS |= {"read_parquet", "scan_parquet", "read_csv", "scan_csv", "ParquetFile", "ParquetWriter", "disk_usage"}


def touches_the_world(module: Path) -> bool:
    """Whether a module itself opens, lists, writes or removes files, starts processes, asks system, clock, network."""
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Import) and MODULES & {name.name.partition(".")[0] for name in node.names}:
            return True
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in CALLS:
                return True
    return False


def named_in_the_readme() -> set[str]:
    begin = README.index("Disk, clock, network and hardware are touched ")
    paragraph = README[begin : README.index("\n\n", begin)]
    return set(re.findall(r"`([\w/]+)`", paragraph))


def test_every_module_that_touches_the_world_is_named_in_the_map_of_rooms():
    named = named_in_the_readme()
    assert {"sources/", "app/"} <= named
    found = {
        path.relative_to(ROOT / "ingest").with_suffix("").as_posix()
        for path in (ROOT / "ingest").glob("*.py")
        if touches_the_world(path)
    }
    assert found <= named
    others = [path for room in ("features", "models") for path in (ROOT / room).rglob("*.py")]
    elsewhere = {path.relative_to(ROOT).with_suffix("").as_posix() for path in others if touches_the_world(path)}
    assert elsewhere <= named


def test_the_map_of_rooms_names_no_module_that_is_not_there():
    for name in named_in_the_readme():
        places = (ROOT / "ingest" / f"{name}.py", ROOT / f"{name}.py")
        assert name.endswith("/") or any(place.exists() for place in places), name


def test_no_module_is_longer_than_can_be_read_at_once():
    modules = [path for room in ("ingest", "features", "models", "app") for path in (ROOT / room).rglob("*.py")]
    long = {path: n for path in modules if (n := len(path.read_text("utf-8").splitlines())) > MOST_LINES}
    assert long == {}
