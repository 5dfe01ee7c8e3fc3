"""The tasks that runners run, importable without any frame library: each imports what it needs where it runs."""

from __future__ import annotations

from pathlib import Path

from ingest.head import Head
from ingest.memory import give_back_memory, settle
from ingest.records import (
    CommitResult,
    CommitSpec,
    IngestPlan,
    PlanSpec,
    RewriteResult,
    RewriteSpec,
    ScanResult,
    ScanSpec,
)


def warm(worker: int) -> int:
    """Import what a scan needs, while the plan is being made elsewhere."""
    import ingest.scan  # noqa: F401

    settle()
    return worker


def migrate(lake: str, head: Head) -> Head:
    """Bring a lake of an older version up."""
    from ingest.migrate import migrate as do_migrate

    return do_migrate(Path(lake), head)


def plan(spec: PlanSpec) -> IngestPlan:
    """Return what is to be done for an archive."""
    from ingest.plan import plan_ingest

    return plan_ingest(spec)


def scan(spec: ScanSpec) -> ScanResult:
    """Read files and stage parts."""
    from ingest.scan import scan_files

    result = scan_files(spec)
    give_back_memory()
    return result


def verify(spec: ScanSpec) -> tuple[str, int, list[str]]:
    """Hash one share of a large file."""
    from ingest.plan import verify_share

    return verify_share(spec)


def rewrite(spec: RewriteSpec) -> RewriteResult:
    """Write one part anew."""
    from ingest.rewrite import rewrite_part

    result = rewrite_part(spec)
    give_back_memory()
    return result


def commit(spec: CommitSpec) -> CommitResult:
    """Bring the lake to its next state."""
    from ingest.commit import commit as do_commit

    return do_commit(spec)
