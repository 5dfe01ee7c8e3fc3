"""Memory of ingest's whole process tree, by the size and the layout of what it reads."""

from __future__ import annotations

from collections.abc import Callable

from tests.benchmarks.archives import Archive, challenge_archive, fresh, hpca_archive, run_ingest
from tests.benchmarks.measure import spread
from tests.benchmarks.report import table


def memory(quick: bool, runs: int, tell: Callable[[str], None]) -> str:
    """Return the table of largest memory by input."""
    scale = 0.02 if quick else 1.0
    inputs: list[tuple[str, Archive]] = [
        ("1 GB in one file a job", challenge_archive(1e9 * scale, tell)),
        ("4 GB in one file a job", challenge_archive(4e9 * scale, tell)),
        ("2 GB in one interleaved file", hpca_archive(2e9 * scale, tell)),
    ]
    rows = []
    for name, archive in inputs:
        taken = []
        for _ in range(runs):
            taken.append(run_ingest(archive, fresh("lakes/memory"), watch_memory=True))
            tell(f"{name}: {taken[-1].rss_mib:.0f} MiB RSS, {taken[-1].pss_mib:.0f} MiB PSS, {taken[-1].wall_s:.1f} s")
        rows.append(
            [
                name if not quick else f"{name}, scaled by {scale}",
                f"{archive.gpu_bytes / 1e9:.2f}",
                spread([run.rss_mib for run in taken], ".0f"),
                spread([run.pss_mib for run in taken], ".0f"),
                spread([run.wall_s for run in taken], ".1f"),
            ]
        )
    return (
        f"## Memory\n\n`jobwatt lake ingest` with two workers, {runs} runs; the largest sum over the process tree, "
        "sampled every 50 ms. RSS counts a shared page in every process that has it; PSS shares it out, and is what "
        "the machine has to find. Bar: 400 MiB, and the same for each input.\n\n"
        + table(["input", "GB", "RSS MiB", "PSS MiB", "wall s"], rows)
    )
