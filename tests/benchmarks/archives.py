"""The archives that the benchmarks work on: made once in ``.bench/``, and used again while they are as asked."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ingest.synthetic import make_archive
from ingest.synthetic_hpca import make_hpca_archive
from tests.benchmarks.measure import JOBWATT, ROOT, SCRATCH, Run, run_process


@dataclass(frozen=True, slots=True)
class Archive:
    """A raw archive: where it is, its rows by table, and the bytes of its GPU files."""

    root: Path
    rows: dict[str, int]
    gpu_bytes: int


def challenge_archive(target_bytes: float, tell: Callable[[str], None]) -> Archive:
    """Return a Datacenter Challenge archive of about so many bytes of GPU CSV, in files of 1.3 MB in the mean."""
    jobs = max(4, round(target_bytes / 1.312e6))
    settings = {
        "rng": 20_220_401,
        "n_jobs": jobs,
        "target_bytes": target_bytes,
        "seconds_per_job": (600.0, 4_500.0),
        "gpus_per_job": 1,
        "cpu_files": False,
        "node_data": False,
    }
    return _made("challenge", make_archive, settings, tell)


def hpca_archive(target_bytes: float, tell: Callable[[str], None]) -> Archive:
    """Return an HPCA'22 archive: one interleaved file of about so many bytes."""
    jobs = max(4, round(target_bytes / 2.6e6))
    settings = {
        "rng": 20_220_402,
        "n_jobs": jobs,
        "target_bytes": target_bytes,
        "seconds_per_job": (600.0, 9_000.0),
        "n_nodes": 16,
    }
    return _made("hpca", make_hpca_archive, settings, tell)


def fresh(name: str) -> Path:
    """Return a path in ``.bench/`` where nothing is any more."""
    path = SCRATCH / name
    if path.exists():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def run_ingest(archive: Archive, lake: Path, *, watch_memory: bool = False) -> Run:
    """Run ``jobwatt lake ingest`` with two workers as one whole process, and check that no sample is missing."""
    command = [str(JOBWATT), "lake", "ingest", str(archive.root), "--lake", str(lake), "--workers", "2"]
    run = run_process([*command, "--format", "json"], watch_memory=watch_memory)
    report = json.loads(run.output)
    report = report[0] if isinstance(report, list) else report
    found = report["tables"]["gpu_samples"]
    if found != archive.rows["gpu_samples"]:
        raise SystemExit(f"the lake has {found} GPU samples, the archive {archive.rows['gpu_samples']}")
    return run


def read_through(root: Path) -> None:
    """Read every file once, so that the first contestant does not pay for the disk."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 22):
                    pass


def _made(kind: str, make: Callable[..., object], settings: dict[str, object], tell: Callable[[str], None]) -> Archive:
    code = b"".join(path.read_bytes() for path in sorted((ROOT / "ingest").glob("synthetic*.py")))
    wanted = hashlib.sha256(code + repr(sorted(settings.items())).encode()).hexdigest()
    root = SCRATCH / "raw" / f"{kind}-{settings['target_bytes']:.0f}"
    stamp = root.with_suffix(".json")
    if stamp.exists() and root.is_dir():
        known = json.loads(stamp.read_text())
        if known["made_by"] == wanted:
            return Archive(root, known["rows"], known["gpu_bytes"])
    tell(f"making {root.name}")
    stamp.unlink(missing_ok=True)
    truth = make(fresh(f"raw/{root.name}"), workers=2, **settings)
    archive = Archive(root, truth.rows, truth.gpu_bytes)  # type: ignore[attr-defined]  # both return ArchiveTruth
    stamp.write_text(json.dumps({"made_by": wanted, "rows": archive.rows, "gpu_bytes": archive.gpu_bytes}))
    return archive
