"""The lake's memory: which files belong to it, what they came from, and the one file whose renaming commits a run.

``_manifest/HEAD.json`` lists every part; replacing it is the commit. It names the inputs and pieces (Parquet beside
it), and what is still to be done after the commit: ``moves`` (final to staging) and ``removes``. A process that dies
before it has done them leaves them to the next, and a reader follows them. Nothing that HEAD does not name is in the
lake.

The order of a commit, each step durable before the next begins: the staged files and indexes; the run's staging folder
renamed to the commit's own, so that nobody who cleans up after a run can take away what HEAD names; HEAD; the moves;
the removals; HEAD once more, without them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from ingest.disk import sync_folder
from ingest.errors import LakeError
from ingest.lake_lock import locked

FORMAT: Final = 3
"""Of the manifest's own files; 3 since the pieces tell energy by integral and by counter over the same steps."""

SCHEMA_VERSION: Final = 3
"""Of the tables in `ingest.schemas`; 3 since windows in `features` tell how fast they were read."""

NOW: Final = (FORMAT, SCHEMA_VERSION)

MIGRATED: Final = frozenset({(2, 1), (3, 2)})
"""The older versions that `ingest.migrate` brings up."""

TABLE_FOLDERS: Final = frozenset(
    (
        *("jobs", "devices", "gpu_samples", "cpu_samples", "node_samples", "gpu_job_summary", "cpu_job_summary"),
        *("labels", "job_parameters", "gpu_minutes", "job_stats", "quarantine", "quality"),
        *("collector_events", "device_inventory"),
        *("features", "feature_series"),
    )
)
"""The folders below the root that are the lake's: one a table of `ingest.schemas`, which is too heavy for here."""

MANIFEST: Final = "_manifest"
STAGING: Final = "_staging"
HEAD: Final = "HEAD.json"
LOCK: Final = "LOCK"

READ_TRIES: Final = 3
"""So often a lake is read that somebody else is writing."""

_T = TypeVar("_T")


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
    """A committed state of the lake; every path is relative to the root.

    ``tres_names`` has, by cluster, what its last ``tres-mapping.txt`` told: TRES number to name. ``version`` is that of
    the manifest and of the tables' schema.
    """

    generation: int = 0
    parts: tuple[LakePart, ...] = ()
    inputs: str = ""
    pieces: str = ""
    moves: dict[str, str] = field(default_factory=dict)
    removes: tuple[str, ...] = ()
    tres_names: dict[str, dict[int, str]] = field(default_factory=dict)
    version: tuple[int, int] = NOW

    @property
    def is_pending(self) -> bool:
        """Whether moves or removals are still to be done."""
        return bool(self.moves or self.removes)

    def path(self, root: Path, part: LakePart) -> Path:
        """Return where a part's bytes are now: its final place, or its staging name while the move is still due."""
        final = root / part.file
        staged = self.moves.get(part.file)
        return root / staged if staged and not final.exists() else final


def read_head(root: Path, *, older: bool = False) -> Head:
    """Return the committed state of the lake at ``root``.

    Parameters
    ----------
    older : take one of an older version too, if it is one that can be brought up (`MIGRATED`)

    Raises
    ------
    LakeError
        If there is no lake, it is damaged, or its schema is of another version.
    """
    path = root / MANIFEST / HEAD
    try:
        return _parse(root, json.loads(path.read_text("utf-8")), older)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LakeError(
            f"{root} is no lake (no {MANIFEST}/{HEAD}); make one with: jobwatt lake ingest PATH --lake {root}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        raise LakeError(
            f"{path} cannot be read ({reason}); restore it from a backup, or ingest the sources into a new lake: "
            "jobwatt lake ingest PATH --lake NEW"
        ) from error


def read_steadily(root: Path, read: Callable[[], _T]) -> _T:
    """Return what ``read`` does, which opens the lake itself; again where somebody wrote the lake meanwhile.

    A commit takes files away, and puts others in their places, that a reader of the state before it is about to open.

    Raises
    ------
    LakeError, FileNotFoundError
        Of ``read``, where nobody did, or again and again.
    """
    for _ in range(READ_TRIES - 1):
        before = read_head(root)
        try:
            return read()
        except (LakeError, FileNotFoundError):
            after = read_head(root)
            if after == before and not after.is_pending:
                raise
    return read()


def _parse(root: Path, raw: dict[str, Any], older: bool) -> Head:
    found = (raw["format"], raw["schema_version"])
    if found > NOW:
        raise LakeError(
            f"{root} has format and schema version {found}, this jobwatt reads {NOW}; it was made "
            "by a newer jobwatt: update this one (`jobwatt --version` says which it is)"
        )
    if found in MIGRATED and not older:
        raise LakeError(
            f"{root} has format and schema version {found}, this jobwatt reads {NOW}; bring it up, which the next "
            f"ingest does too: jobwatt lake migrate --lake {root}"
        )
    if found not in {NOW, *MIGRATED}:
        raise LakeError(
            f"{root} has format and schema version {found}, this jobwatt reads {NOW}; "
            "ingest its sources again into a new lake: jobwatt lake ingest PATH --lake NEW"
        )
    return Head(
        generation=raw["generation"],
        parts=tuple(LakePart(**part) for part in raw["parts"]),
        inputs=raw["inputs"],
        pieces=raw["pieces"],
        moves=raw["moves"],
        removes=tuple(raw["removes"]),
        tres_names={
            cluster: {int(number): name for number, name in names.items()}
            for cluster, names in raw["tres_names"].items()
        },
        version=found,
    )


def write_head(root: Path, head: Head) -> Head:
    """Commit: make ``head`` the lake's state at one stroke, durably, and return it as written.

    Parameters
    ----------
    head : the next state
        The sources of its moves are in one folder below ``_staging``, which becomes the commit's own.

    Raises
    ------
    LakeError
        If ``head`` does not follow the committed state: somebody else has written meanwhile (on a file system whose
        locks do not reach across machines). Nothing has changed then, nor where the disk is full.
    """
    folder = root / MANIFEST
    folder.mkdir(parents=True, exist_ok=True)
    current = read_head(root, older=True).generation if (folder / HEAD).exists() else 0
    if head.generation != current + 1:
        raise LakeError(
            f"{root} is at generation {current}, this run started from {head.generation - 1}: somebody else has "
            "written it meanwhile; nothing was committed, run it again"
        )
    owned = _owned(head)
    run, commit = _staging_folders(root, head)
    _write_temporary(folder, owned)
    try:
        if run is not None:
            shutil.rmtree(commit, ignore_errors=True)
            run.replace(commit)
        _sync_up(root, [folder, *((root / source).parent for source in owned.moves.values())])
        if head.generation == 1:
            with contextlib.suppress(PermissionError):  # a folder that is not ours, and may not be read
                sync_folder(root.parent)
        (folder / f"{HEAD}.tmp").replace(folder / HEAD)
    except OSError:
        (folder / f"{HEAD}.tmp").unlink(missing_ok=True)
        if run is not None and commit.exists():
            commit.replace(run)
        raise
    sync_folder(folder)
    return owned


def _staging_folders(root: Path, head: Head) -> tuple[Path | None, Path]:
    """Return the folder in which the moves' sources were staged (None: they are the commit's), and the commit's own."""
    commit = PurePosixPath(STAGING, f"commit-{head.generation:06d}")
    runs = {PurePosixPath(*PurePosixPath(source).parts[:2]) for source in head.moves.values()} - {commit}
    if len(runs) > 1 or any(run.parent.as_posix() != STAGING for run in runs):
        raise ValueError(f"files are staged in {sorted(map(str, runs))}; stage them in one folder below {STAGING}")
    return (root / runs.pop() if runs else None), root / commit


def _owned(head: Head) -> Head:
    """Return ``head`` with the sources of its moves in the commit's own folder."""
    commit = f"{STAGING}/commit-{head.generation:06d}"
    moves = {
        final: str(PurePosixPath(commit, *PurePosixPath(source).parts[2:])) for final, source in head.moves.items()
    }
    return replace(head, moves=moves)


def _write_temporary(folder: Path, head: Head) -> None:
    raw = {
        "format": head.version[0],
        "schema_version": head.version[1],
        "generation": head.generation,
        "inputs": head.inputs,
        "pieces": head.pieces,
        "parts": [
            {"table": p.table, "cluster": p.cluster, "file": p.file, "rows": p.rows, "bytes": p.bytes}
            for p in head.parts
        ],
        "moves": head.moves,
        "removes": list(head.removes),
        "tres_names": head.tres_names,
    }
    temporary = folder / f"{HEAD}.tmp"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(raw, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _sync_up(root: Path, folders: Iterable[Path]) -> None:
    """Make the entries of folders durable, and their own in the folders above them, up to the root."""
    every = {root}
    for folder in folders:
        every |= {folder, *(above for above in folder.parents if above.is_relative_to(root))}
    for folder in sorted(every, key=lambda path: (-len(path.parts), path)):
        sync_folder(folder)


def finish_moves(root: Path, head: Head) -> Head:
    """Do the moves and removals that a commit left due, and return the state without them.

    Only for the process that holds the lake's lock. Doing it twice is harmless.

    Raises
    ------
    LakeError
        If they cannot be done. The commit stands all the same, and readers of `Lake` see it.
    """
    if not head.is_pending:
        return head
    owned = _owned(head)
    try:
        _move(root, owned)
        done = replace(head, moves={}, removes=())
        _write_temporary(root / MANIFEST, done)
        (root / MANIFEST / f"{HEAD}.tmp").replace(root / MANIFEST / HEAD)
        sync_folder(root / MANIFEST)
    except OSError as error:
        raise LakeError(
            f"{root}: generation {head.generation} is committed, but not all of its files could be put in their places "
            f"({error.strerror or error}); make room or mend the permissions, the next ingest finishes it"
        ) from error
    shutil.rmtree(_staging_folders(root, owned)[1], ignore_errors=True)
    return done


def _move(root: Path, owned: Head) -> None:
    folders: set[Path] = set()
    for target, source in owned.moves.items():
        final = root / target
        if (root / source).exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            (root / source).replace(final)
            folders.add(final.parent)
        elif not final.exists():
            raise LakeError(f"{root}: {target} is listed but missing; run: jobwatt lake check --lake {root}")
    _sync_up(root, folders)
    gone = [root / name for name in owned.removes]
    for path in gone:
        path.unlink(missing_ok=True)
    _sync_up(root, {path.parent for path in gone if path.parent.exists()})


@contextlib.contextmanager
def writing(root: Path) -> Iterator[Head]:
    """Hold the lake's lock, finish what a killed run left, and give the committed state (an empty one for a new lake).

    It may be of an older version; `ingest.migrate` comes first then.

    A lake that is still none at the end is removed again.

    Raises
    ------
    LakeBusyError
        If another process writes this lake.
    LakeError
        If ``root`` cannot be a lake, or is one that cannot be read.
    """
    is_new = not root.exists()
    stray = next(find_parts(root, "*.parquet"), None)
    if stray is not None and not (root / MANIFEST / HEAD).exists():
        raise LakeError(
            f"{root} has files such as {stray.relative_to(root)} but no {MANIFEST}/{HEAD}; "
            "restore that from a backup, or give an empty folder"
        )
    with locked(root / MANIFEST / LOCK, root) as lock:
        try:
            yield finish_moves(root, read_head(root, older=True)) if (root / MANIFEST / HEAD).exists() else Head()
        finally:
            _leave(root, is_new)
            lock.truncate(0)


def find_parts(root: Path, pattern: str = "part-*.parquet") -> Iterator[Path]:
    """Yield every file that has the place and the name of a part, whether HEAD names it or not."""
    for table in sorted(TABLE_FOLDERS):
        below = "*/cluster=*" if table == "features" else "cluster=*"  # a folder for each variant of features
        yield from sorted((root / table).glob(f"{below}/{pattern}"))


def _leave(root: Path, is_new: bool) -> None:
    """Finish what a commit left due, and remove what no committed state names; for the holder of the lock."""
    folder = root / MANIFEST
    if not (folder / HEAD).exists():
        shutil.rmtree(root / STAGING, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # not empty: something else is in it by now
                root.rmdir()
        return
    with contextlib.suppress(OSError, LakeError):  # the error that brought us here tells more
        head = finish_moves(root, read_head(root, older=True))
        shutil.rmtree(root / STAGING, ignore_errors=True)
        for path in (*folder.glob("*-*.parquet"), folder / f"{HEAD}.tmp"):
            if path.name not in (head.inputs, head.pieces):
                path.unlink(missing_ok=True)
