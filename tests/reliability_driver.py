"""One ingest that is started in a moment (all is imported by then), and may be told where to die.

python -m tests.reliability_driver ARCHIVE LAKE [POINT]: says ``ready``, waits for a line, ingests, says ``done``.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ingest.assembly
import ingest.pipeline
import ingest.scan
import ingest.tasks
from ingest import head
from ingest.runner import SerialRunner

DIED = 99
POINTS = (
    "before-rewrite",
    "rewritten",
    "before-head",
    "staging-taken",
    "head-written",
    "first-move",
    "third-move",
    "before-removes",
    "first-remove",
    "before-second-head",
    "after-second-head",
)


def die_before(owner: Any, name: str, when: Callable[[tuple[Any, ...]], bool]) -> None:
    """Make this process end at once, as if killed, at the first call of ``owner.name`` for which ``when`` holds."""
    real = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if when(arguments):
            os._exit(DIED)
        return real(*arguments, **named)

    setattr(owner, name, call)


def is_part(path: Path) -> bool:
    """Return whether a path is where a reader would find a part."""
    return path.parent.name.startswith("cluster=")


class Nth:
    """True the n-th time that a condition holds."""

    def __init__(self, n: int, condition: Callable[[tuple[Any, ...]], bool]) -> None:
        self.left = n
        self.condition = condition

    def __call__(self, arguments: tuple[Any, ...]) -> bool:
        self.left -= self.condition(arguments)
        return self.left == 0


def is_head(arguments: tuple[Any, ...]) -> bool:
    """Return whether a file is to be renamed to HEAD."""
    return Path(arguments[1]).name == head.HEAD


def plan_death(point: str) -> None:
    """Arrange for this process to die there."""
    if point == "before-rewrite":
        die_before(ingest.tasks, "rewrite", lambda _: True)
    elif point == "rewritten":
        die_before(ingest.assembly.Assembly, "add_minutes", lambda arguments: bool(arguments[0]._rewritten))
    elif point == "before-head":
        die_before(ingest.assembly, "write_head", lambda _: True)
    elif point == "staging-taken":
        die_before(Path, "replace", is_head)
    elif point == "head-written":
        die_before(ingest.assembly, "finish_moves", lambda _: True)
    elif point in ("first-move", "third-move"):
        after = 2 if point == "first-move" else 4  # it dies before the next one
        die_before(Path, "replace", Nth(after, lambda arguments: is_part(Path(arguments[1]))))
    elif point == "before-removes":
        die_before(Path, "unlink", lambda arguments: is_part(arguments[0]))
    elif point == "first-remove":
        die_before(Path, "unlink", Nth(2, lambda arguments: is_part(arguments[0])))
    elif point == "before-second-head":
        die_before(Path, "replace", Nth(2, is_head))
    elif point == "after-second-head":
        die_before(shutil, "rmtree", Nth(2, lambda arguments: Path(arguments[0]).name.startswith("commit-")))
    else:
        raise ValueError(f"no point {point!r}; there are {', '.join(POINTS)}")


def main(archive: str, lake: str, *points: str) -> None:
    """Ingest in this process alone, when told to."""
    for point in points:
        plan_death(point)
    print("ready", flush=True)
    sys.stdin.readline()
    ingest.pipeline.ingest(archive, Path(lake), cluster="one", runner=SerialRunner())
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
