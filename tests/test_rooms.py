"""What the README's map of rooms says of the places that touch the world outside, against the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")

MODULES = {"os", "shutil", "socket", "time", "subprocess", "fcntl", "ctypes"}
CALLS = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "unlink", "mkdir", "glob", "rglob", "rmdir"}
CALLS |= {"read_parquet", "scan_parquet", "read_csv", "scan_csv", "ParquetFile", "ParquetWriter", "disk_usage"}


def touches_the_world(module: Path) -> bool:
    """Whether a module itself opens, lists, writes or removes files, asks the system, the clock or the network."""
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
    for room in ("features", "models"):
        assert [path.name for path in (ROOT / room).rglob("*.py") if touches_the_world(path)] == []


def test_the_map_of_rooms_names_no_module_that_is_not_there():
    for name in named_in_the_readme():
        assert name.endswith("/") or (ROOT / "ingest" / f"{name}.py").exists(), name
