"""Public data sets: where each one is, under which licence, and fetching one so that an interruption costs little.

The catalogue is ``public_data.csv`` beside this file. Other people's data is fetched by who wants it, under its own
licence, and is never part of jobwatt.
"""

from __future__ import annotations

import csv
import fnmatch
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from ingest.errors import SourceError
from ingest.sources.download import (
    BLOCK_BYTES,
    SUMS_NAME,
    FetchedFile,
    RemoteFile,
    fetch_file,
    open_network,
    read_sums,
    reason,
    record_sum,
)

CATALOGUE = Path(__file__).with_name("public_data.csv")

Progress = Callable[[int, int], None]
"""Called with the bytes that are here and the bytes there will be, of all files together."""


@dataclass(frozen=True, slots=True)
class PublicDataset:
    """One row of the catalogue. ``files`` are paths below ``url``; none means everything below it.

    ``sha256`` has one for each of the files, or none: then the first fetch records what came, for all later ones.
    """

    name: str
    title: str
    licence: str
    licence_url: str
    url: str
    files: tuple[str, ...]
    size_bytes: int | None
    sha256: tuple[str, ...]
    citation: str
    source: str

    @property
    def checksum(self) -> str:
        """By what a file of the set is checked: ``catalogue``, ``recorded at first fetch``, or git's own ``commit``."""
        if self.url.startswith("git+"):
            return "commit"
        return "catalogue" if self.sha256 else "recorded at first fetch"


@dataclass(frozen=True, slots=True)
class FetchReport:
    """What a fetch did, file by file."""

    name: str
    folder: str
    licence: str
    fetched_bytes: int
    files: tuple[FetchedFile, ...]


def read_catalogue(path: Path = CATALOGUE) -> tuple[PublicDataset, ...]:
    """Return every public data set that jobwatt knows, in the catalogue's order."""
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(
            PublicDataset(
                **{
                    name: row[name] for name in ("name", "title", "licence", "licence_url", "url", "citation", "source")
                },
                files=_split(row["files"]),
                size_bytes=int(row["size_bytes"]) if row["size_bytes"] else None,
                sha256=_split(row["sha256"]),
            )
            for row in csv.DictReader(file)
        )


def find_dataset(name: str, catalogue: Sequence[PublicDataset]) -> PublicDataset:
    """Return the set of that name; `SourceError` names the sets there are."""
    for dataset in catalogue:
        if dataset.name == name:
            return dataset
    known = ", ".join(dataset.name for dataset in catalogue)
    raise SourceError(f"no public data set is called {name!r}; there are {known}")


def fetch_dataset(
    dataset: PublicDataset,
    folder: Path,
    *,
    only: Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
    block_bytes: int = BLOCK_BYTES,
    wait_s: float = 1.0,
    progress: Progress | None = None,
) -> FetchReport:
    """Fetch a set, or those of its files that match a pattern in ``only``, into ``folder``, and say what was done.

    A file that is here with its recorded checksum is left alone; one that was interrupted goes on at its first missing
    byte. ``only`` takes paths, folders and globs (``*`` crosses folders). ``wait_s`` is the pause after a first
    failure, doubled after each further one. ``storage_options`` go to fsspec.

    Raises
    ------
    SourceError
        Nothing matches, the server fails, a checksum differs, or the disk has no room for the set.
    """
    if dataset.url.startswith("git+"):
        repository, _, commit = dataset.url.removeprefix("git+").rpartition("@")
        raise SourceError(
            f"{dataset.name} is a whole git repository; get it with: git clone {repository} && git checkout {commit}"
        )
    _refuse_without_room(dataset.name, folder, 0 if only else dataset.size_bytes or 0)
    network = open_network(dataset.url, storage_options or {}, block_bytes, wait_s)
    try:
        remotes = list_files(dataset, network.system, only)
    except network.errors as error:
        raise SourceError(f"{dataset.url} does not answer ({reason(error)}); try again later") from error
    total_bytes = sum(remote.size_bytes or 0 for remote in remotes)
    _refuse_without_room(dataset.name, folder, total_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    sums = read_sums(folder)
    fetched: list[FetchedFile] = []
    before_bytes = 0
    for remote in remotes:

        def tell(here_bytes: int, before_bytes: int = before_bytes) -> None:
            if progress is not None:
                progress(before_bytes + here_bytes, total_bytes)

        file = fetch_file(network, remote, folder, tell, sums.get(remote.path))
        record_sum(folder, file.path, file.sha256, sums)
        before_bytes += file.size_bytes
        fetched.append(file)
    return FetchReport(
        name=dataset.name,
        folder=str(folder),
        licence=dataset.licence,
        fetched_bytes=sum(file.fetched_bytes for file in fetched),
        files=tuple(fetched),
    )


def list_files(dataset: PublicDataset, system: Any, only: Sequence[str] = ()) -> list[RemoteFile]:
    """Return the set's files that match a pattern in ``only`` (all, without one), asking the server about each."""
    sums = dict(zip(dataset.files, dataset.sha256, strict=bool(dataset.sha256)))
    base = dataset.url.rstrip("/")
    found: dict[str, Mapping[str, Any]] = {}
    if dataset.files:
        wanted = [path for path in dataset.files if not only or any(_matches(path, pattern) for pattern in only)]
        found = {path: system.info(f"{base}/{quote(path)}") for path in wanted}
    else:
        for pattern in only or ("",):
            found |= _list_below(system, base, pattern)
    if not found:
        raise SourceError(f"{dataset.name} has no file that matches {' or '.join(only)}; look below {dataset.url}")
    return [
        RemoteFile(
            path=_safe(path, dataset.name),
            url=f"{base}/{quote(path) if dataset.files else path}",
            size_bytes=info.get("size"),
            version=str(info.get("ETag") or info.get("LastModified") or info.get("Last-Modified") or ""),
            sha256=sums.get(path),
        )
        for path, info in sorted(found.items())
    ]


# -- the server's list -------------------------------------------------------------------------------------------------


def _list_below(system: Any, base: str, pattern: str) -> dict[str, Mapping[str, Any]]:
    """Return path to the server's word on it, for the files below ``base`` that match; lists no more than it must."""
    root = base.partition("://")[2]
    pattern = pattern.strip("/")
    wild = min((pattern.index(sign) for sign in "*?[" if sign in pattern), default=None)
    start = pattern if wild is None else pattern[:wild].rpartition("/")[0]
    listed: dict[str, Mapping[str, Any]] = system.find(f"{root}/{start}".rstrip("/"), detail=True)
    paths = {key.removeprefix(f"{root}/"): info for key, info in listed.items()}
    return {path: info for path, info in paths.items() if not pattern or _matches(path, pattern)}


def _matches(path: str, pattern: str) -> bool:
    pattern = pattern.strip("/")
    return path == pattern or path.startswith(f"{pattern}/") or fnmatch.fnmatchcase(path, pattern)


def _safe(path: str, name: str) -> str:
    """Return the path if it stays below the folder that it is written to; else raise."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\n" in path or parts[-1] == SUMS_NAME:
        raise SourceError(
            f"{name} lists a file {path!r}, which cannot be written below one folder; nothing was fetched"
        )
    return path


def _split(cell: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in cell.split(";") if item.strip())


# -- the folder here ---------------------------------------------------------------------------------------------------


def _refuse_without_room(name: str, folder: Path, needed_bytes: int) -> None:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    here_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    free_bytes = shutil.disk_usage(there).free
    if needed_bytes - here_bytes > free_bytes:
        raise SourceError(
            f"{name} needs {needed_bytes / 1e9:,.1f} GB and {there} has {free_bytes / 1e9:,.1f} GB free; "
            f"choose fewer files with --only, or another folder"
        )
