"""The lake's memory: which files belong to it, what they came from, and the one file whose renaming commits a run.

``_manifest/HEAD.json`` lists every part; replacing it is the commit. It names the inputs and pieces (Parquet beside it) and
the moves from staging names to final ones (``moves``: final to staging) that are still to be done: a process that dies after the commit leaves them to
the next, and a reader follows them. Nothing that HEAD does not name is in the lake.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ingest.errors import LakeBusyError, LakeError

FORMAT: Final = 1
"""Of the manifest's own files."""

SCHEMA_VERSION: Final = 1
"""Of the tables in `ingest.schemas`."""

MANIFEST: Final = "_manifest"
STAGING: Final = "_staging"
HEAD: Final = "HEAD.json"
LOCK: Final = "LOCK"


@dataclass(frozen=True, slots=True)
class LakePart:
    """One Parquet file of the lake; ``file`` is relative to the root."""

    table: str
    cluster: str
    file: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Head:
    """A committed state of the lake."""

    generation: int = 0
    parts: tuple[LakePart, ...] = ()
    inputs: str = ""
    pieces: str = ""
    moves: dict[str, str] = field(default_factory=dict)
    removes: tuple[str, ...] = ()

    def path(self, root: Path, part: LakePart) -> Path:
        """Return where a part's bytes are now: its final place, or its staging name while the move is still due."""
        final = root / part.file
        staged = self.moves.get(part.file)
        return root / staged if staged and not final.exists() else final


def read_head(root: Path) -> Head:
    """Return the committed state of the lake at ``root``.

    Raises
    ------
    LakeError
        If there is no lake, it is damaged, or its schema is of another version.
    """
    path = root / MANIFEST / HEAD
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise LakeError(
            f"{root} is no lake (no {MANIFEST}/{HEAD}); make one with: jobwatt lake ingest PATH --lake {root}"
        ) from error
    except (OSError, ValueError) as error:
        raise LakeError(
            f"{path} cannot be read ({error}); restore it from a backup or ingest into a new lake"
        ) from error
    found = (raw.get("format"), raw.get("schema_version"))
    if found != (FORMAT, SCHEMA_VERSION):
        raise LakeError(
            f"{root} has format and schema version {found}, this jobwatt reads {(FORMAT, SCHEMA_VERSION)}; "
            "ingest its sources again into a new lake: jobwatt lake ingest PATH --lake NEW"
        )
    return Head(
        generation=raw["generation"],
        parts=tuple(LakePart(**part) for part in raw["parts"]),
        inputs=raw["inputs"],
        pieces=raw["pieces"],
        moves=raw["moves"],
        removes=tuple(raw["removes"]),
    )


def write_head(root: Path, head: Head) -> None:
    """Replace the committed state at one stroke, durably."""
    folder = root / MANIFEST
    folder.mkdir(parents=True, exist_ok=True)
    raw = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "generation": head.generation,
        "inputs": head.inputs,
        "pieces": head.pieces,
        "parts": [
            {"table": p.table, "cluster": p.cluster, "file": p.file, "rows": p.rows, "bytes": p.bytes}
            for p in head.parts
        ],
        "moves": head.moves,
        "removes": list(head.removes),
    }
    temporary = folder / f"{HEAD}.tmp"
    with temporary.open("w") as file:
        json.dump(raw, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / HEAD)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def finish_moves(root: Path, head: Head) -> Head:
    """Do the moves and removals that a commit left due, and return the state without them.

    Only for the process that holds the lake's lock. Doing it twice is harmless.
    """
    folders: set[Path] = set()
    for target, source in head.moves.items():
        final = root / target
        if (root / source).exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            (root / source).replace(final)
            folders.add(final.parent)
        elif not final.exists():
            raise LakeError(f"{root}: {target} is listed but missing; run: jobwatt lake check --lake {root}")
    for folder in folders:
        sync_folder(folder)
    for name in head.removes:
        (root / name).unlink(missing_ok=True)
    if not head.moves and not head.removes:
        return head
    done = Head(head.generation, head.parts, head.inputs, head.pieces)
    write_head(root, done)
    return done


@contextlib.contextmanager
def writing(root: Path) -> Iterator[Head]:
    """Hold the lake's lock, finish what a killed run left, and give the committed state (an empty one for a new lake).

    Raises
    ------
    LakeBusyError
        If another process writes this lake.
    """
    folder = root / MANIFEST
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise LakeError(f"{root} is not a folder; give a folder for the lake") from error
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise LakeBusyError(f"{root} is being written by {holder}; wait for it to end and try again") from error
        lock.truncate(0)
        lock.write(json.dumps({"pid": os.getpid(), "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}))
        lock.flush()
        try:
            yield finish_moves(root, read_head(root)) if (folder / "HEAD.json").exists() else Head()
        finally:
            lock.truncate(0)
