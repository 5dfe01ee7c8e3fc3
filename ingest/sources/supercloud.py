"""The MIT Supercloud Dataset's layouts: the Datacenter Challenge release, the HPCA'22 release, and our recordings.

Where an archive's root is, which kind each file is of by its name, and the mapping of TRES names. The columns are in
`ingest.sources.supercloud_columns`.

References
----------
Samsi et al. 2021, The MIT Supercloud Dataset, arXiv 2108.02037.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final

from ingest.errors import SourceError
from ingest.sources import nvidia_smi
from ingest.sources.file_kind import FileKind
from ingest.sources.sacct_files import is_accounting

_ROOT_FILES: Final = {
    "slurm-log.csv": "jobs",
    "scheduler-log.csv": "jobs",
    "scheduler_data.csv": "jobs",
    "node-data.csv": "node",
    "labelled_jobids.csv": "labels",
    "job-parameters.csv": "job_parameters",
    "dcgm.csv": "dcgm",
    "nvidia_smi.csv": "nvidia_smi",
    "tres-mapping.txt": "tres",
}
_FOLDERS: Final = {"gpu": "gpu", "gpu_extended": "gpu_extended", "cpu": "cpu"}
_DERIVED: Final = frozenset({"labelled_job_stats.csv"})
_HPCA_FILES: Final = frozenset({"scheduler_data.csv", "dcgm.csv", "nvidia_smi.csv"})
_RECORDING_FILES: Final = frozenset({"job-parameters.csv"})


def find_root(source: str, names: list[str]) -> str:
    """Return the folder of an archive below which the layout begins ('' for its top).

    Raises
    ------
    SourceError
        If nothing of a known layout is there, or two releases lie side by side.

    >>> find_root("x.tar", ["x/README.md", "x/gpu/0001/5-n.csv", "x/slurm-log.csv"])
    'x'
    """
    roots = {root for name in names if (root := _root_of(PurePosixPath(name))) is not None}
    if not roots:
        folders = [name.rpartition("/") for name in names]
        roots = {folder for folder, _, file in folders if nvidia_smi.classify(_plain(file))}
    if not roots:
        raise SourceError(
            f"{source}: no table of the Datacenter Challenge or HPCA'22 layout found; expected slurm-log.csv, "
            f"gpu/NNNN/…csv, nvidia_smi.csv, nvidia-smi-NODE.csv, sacct.txt or a spool; found {_named(names)}"
        )
    if len(roots) > 1:
        raise SourceError(f"{source}: several releases side by side ({', '.join(sorted(roots))}); give one of them")
    return roots.pop()


def _named(names: list[str]) -> str:
    """Return some of the names in words.

    >>> _named(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    shown = ", ".join(names[:3]) or "no file"
    return f"{shown} and {len(names) - 3:,} more" if len(names) > 3 else shown


def _root_of(path: PurePosixPath) -> str | None:
    parts = path.parts
    for i, part in enumerate(parts[:-1]):
        if part in _FOLDERS and path.name.split(".csv")[0] != path.name:
            return "/".join(parts[:i])
    if is_accounting(path.name):
        return "/".join(parts[: -2 if parts[-2:-1] == ("jobs",) else -1])
    return "/".join(parts[:-1]) if _plain(path.name) in _ROOT_FILES else None


def _plain(file: str) -> str:
    return file.removesuffix(".gz").removesuffix(".zst")


def classify(name: str) -> str:
    """Return the kind of a file by its name below the root: a key of `KINDS`, ``tres``, ``unknown`` or ``other``.

    ``other`` are files that hold no telemetry (README, LICENSE, derived statistics).

    >>> [classify(n) for n in ("gpu/0001/5-n.csv", "cpu/0001/5-summary.csv", "x.csv", "README.md")]
    ['gpu', 'cpu_summary', 'unknown', 'other']
    """
    folder, _, file = name.rpartition("/")
    if not folder and (kind := nvidia_smi.classify(file)):
        return kind
    if folder in ("", "jobs") and is_accounting(file):
        return "sacct"
    if file in _DERIVED or not file.endswith((".csv", ".txt")):
        return "other"
    otherwise = "unknown" if file.endswith(".csv") else "other"
    if not folder:
        return _ROOT_FILES.get(file, otherwise)
    kind = _FOLDERS.get(folder.split("/")[0], otherwise)
    return "cpu_summary" if kind == "cpu" and file.endswith("-summary.csv") else kind


def layout_of(names: list[str]) -> str:
    """Return which layout the names are of; it is also the name of the cluster where none is given."""
    top = {name.split("/")[0] for name in names}
    if top & _HPCA_FILES:
        return "supercloud-hpca22"
    if any(nvidia_smi.classify(name) for name in top) and not top & (_ROOT_FILES.keys() | _FOLDERS.keys()):
        return "nvidia-smi"
    if all(classify(name) in ("sacct", "other") for name in names):
        return "slurm"
    return "recording" if top & _RECORDING_FILES or "gpu_extended" in top else "supercloud"


def parse_name(kind: FileKind, name: str) -> tuple[int, str] | None:
    """Return the job id and node ('' where it is not told) in a file's name, None where the name does not parse.

    >>> from ingest.sources.kinds import KINDS
    >>> parse_name(KINDS["gpu"], "gpu/0032/10192264782032-r6433012-n258176.csv")
    (10192264782032, 'r6433012-n258176')
    """
    if kind.name_pattern is None:
        return 0, ""
    match = kind.name_pattern.match(name.rpartition("/")[2])
    if match is None:
        return None
    groups = match.groupdict()
    return int(groups.get("job") or 0), groups.get("node") or ""


def parse_tres_mapping(text: str) -> tuple[dict[int, str], list[tuple[int, str]], int]:
    """Return TRES id to name, the lines (number, text) that do not parse, and the number of lines with content.

    >>> parse_tres_mapping("1,cpu\\n1002,gpu:volta\\nx\\n")
    ({1: 'cpu', 1002: 'gpu:volta'}, [(3, 'x')], 3)
    """
    names: dict[int, str] = {}
    bad: list[tuple[int, str]] = []
    rows = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = re.match(r"^\s*\"?(\d+)\"?\s*[,=:;\s]\s*\"?([A-Za-z].*?)\"?\s*$", line)
        if match:
            names[int(match[1])] = match[2].removeprefix("gres/")
            rows += 1
        elif number > 1 or not re.match(r"^\s*\"?id", line, re.IGNORECASE):
            bad.append((number, line))
            rows += 1
    return names, bad, rows
