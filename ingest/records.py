"""The small records that tasks take and return. Light: no frame library is imported here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from ingest.head import Head
from ingest.sources.archive import DEFAULT_MAX_MEMBER_BYTES, Member

CountKey = tuple[str, int | None, str, str]
"""File, job id, reason code, detail."""


@dataclass(frozen=True, slots=True)
class SmiOptions:
    """What the output of nvidia-smi does not say: node, zone of its times, the columns where it has no header."""

    node: str = ""
    time_zone: str = ""
    columns: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        """What tells a file read with these options from the same file read with others; '' for none."""
        told = (self.node, self.time_zone, ",".join(self.columns))
        return f"~{'~'.join(told)}" if any(told) else ""


UNTOLD: Final = SmiOptions()
"""The node is in the file's name, times are UTC, and there is a header."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the lake remembers of an input file, under the name by which it knows it."""

    size: int
    checksum: str
    rows_in: int
    name: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class ScanFile:
    """One file to be read: which member, as what kind, for which job and node, and what is known of it.

    ``start`` and ``stop`` bound the bytes that this task reads of a file that several tasks share; a task takes the
    lines that begin inside its bounds. Where the name does not say which job the file is of (``is_anonymous``), it may
    be any of the files of its kind that the lake knows, ``known`` and ``others``, or none of them: that is found out
    when it has been read (`ingest.succession`). ``alias`` is its name where that is settled.
    """

    member: Member
    kind: str
    job_id: int = 0
    node: str = ""
    known: Known | None = None
    start: int = 0
    stop: int | None = None
    is_anonymous: bool = False
    others: tuple[Known, ...] = ()
    alias: str = ""

    @property
    def name(self) -> str:
        """The file's name below the archive's root: its identity in the lake, unless that has another for it."""
        return self.alias or self.member.plain_name

    @property
    def candidates(self) -> tuple[Known, ...]:
        """The files of the lake that this one may be."""
        return self.others if self.known is None else (self.known, *self.others)

    def find_same(self, size: int, checksum: str) -> Known | None:
        """Return the file of the lake that has this very content."""
        return next((known for known in self.candidates if (known.size, known.checksum) == (size, checksum)), None)

    @property
    def stored_bytes(self) -> int:
        """Size of the file, or of this share of it, before anything is inflated; 0 where it is not known."""
        return max(self.member.size, 0) if self.stop is None else self.stop - self.start


@dataclass(frozen=True, slots=True)
class ScanSpec:
    """One scan task: files of one table, read in order, written to parts named after ``part`` in ``staging``."""

    files: tuple[ScanFile, ...]
    staging: str
    part: str
    stream: str = ""
    anonymous: bool = False
    force: bool = False
    tres_names: Mapping[int, str] = field(default_factory=dict)
    max_member_bytes: int = DEFAULT_MAX_MEMBER_BYTES
    smi: SmiOptions = UNTOLD

    @property
    def names(self) -> set[str]:
        """The names of its files."""
        return {file.name for file in self.files}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What became of one input file (or of one task's share of it).

    rows_in = rows_out + rows_quarantined + rows_merged + rows_unchanged, always. ``status`` is ``new``, ``replaced``,
    ``unchanged``, or ``refused`` with a reason code and its detail: nothing of the file is taken, and what the lake has
    of it stays. ``scanned`` is its name in the source where ``name`` is that of the lake.
    """

    name: str
    kind: str
    status: str
    size: int = 0
    checksum: str = ""
    rows_in: int = 0
    rows_out: int = 0
    rows_quarantined: int = 0
    rows_merged: int = 0
    rows_unchanged: int = 0
    lines: int = 0
    unknown_columns: tuple[str, ...] = ()
    reason: str = ""
    detail: str = ""
    scanned: str = ""

    def plus(self, other: FileRecord) -> FileRecord:
        """Return the record of both shares of one file; checksums of shares are joined by the caller."""
        return replace(
            self,
            rows_in=self.rows_in + other.rows_in,
            rows_out=self.rows_out + other.rows_out,
            rows_quarantined=self.rows_quarantined + other.rows_quarantined,
            rows_merged=self.rows_merged + other.rows_merged,
            rows_unchanged=self.rows_unchanged + other.rows_unchanged,
            unknown_columns=self.unknown_columns or other.unknown_columns,
        )

    def read_again(self, scanned: str) -> FileRecord:
        """Return the record of a file that the lake has as it is and that was read anew, or could not be."""
        return replace(self, scanned=scanned, status="refused" if self.status == "refused" else "replaced")

    @property
    def origin(self) -> str:
        """The file's name in the source."""
        return self.scanned or self.name

    @property
    def is_taken(self) -> bool:
        """Whether the lake holds what this run read of the file."""
        return self.status in ("new", "replaced")

    @property
    def is_conserved(self) -> bool:
        """Whether every row of the file is accounted for."""
        return self.rows_in == self.rows_out + self.rows_quarantined + self.rows_merged + self.rows_unchanged


def as_known(known: Known, kind: str, scanned: str, *, reason: str = "", detail: str = "") -> FileRecord:
    """Return the record of a file of which stays what the lake has: it is as it was, or refused with a reason code.

    Its rows are those that were counted when the lake took them, not those of a file that is refused.

    Parameters
    ----------
    scanned : its name in the source
    """
    status = "refused" if reason else "unchanged"
    record = FileRecord(known.name, kind, status, known.size, known.checksum, reason=reason, detail=detail)
    return replace(record, rows_in=known.rows_in, rows_unchanged=known.rows_in, scanned=scanned)


def refusal(name: str, kind: str, reason: str, detail: str, rows: int) -> FileRecord:
    """Return the record of a file that is refused whole; its rows (0 where they were not counted) are quarantined."""
    return FileRecord(name, kind, "refused", rows_in=rows, rows_quarantined=rows, reason=reason, detail=detail)


@dataclass(frozen=True, slots=True)
class Part:
    """One staged or committed Parquet file."""

    table: str
    path: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a scan task did: records of its files, parts it wrote, pieces (a Parquet file of its own), counts.

    ``bytes_read`` are those of its files as they are stored (as they are read, where a file's size is not known).
    """

    files: tuple[FileRecord, ...]
    parts: tuple[Part, ...]
    pieces: str
    counts: Mapping[CountKey, int]
    bytes_read: int
    part: str
    null_cells: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlanSpec:
    """What to plan for."""

    source: str
    lake: str
    staging: str
    workers: int
    head: Head
    cluster: str | None = None
    anonymous: bool = False
    force: bool = False
    max_member_bytes: int = DEFAULT_MAX_MEMBER_BYTES
    smi: SmiOptions = UNTOLD


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """Tasks for an archive. ``verify`` are large files that the lake has already: hashed first, and read if changed.

    ``records`` are of files that are settled without a task: refused ones, and ``tres-mapping.txt``. ``found`` is what
    reading the latter staged.
    """

    cluster: str
    specs: tuple[ScanSpec, ...]
    verify: tuple[ScanSpec, ...]
    records: tuple[FileRecord, ...]
    found: tuple[ScanResult, ...]
    ignored: tuple[str, ...]
    total_bytes: int
    template: ScanSpec

    @property
    def files(self) -> dict[str, ScanFile]:
        """Every file that has a task, by its name in the source."""
        return {file.name: file for spec in (*self.specs, *self.verify) for file in spec.files}

    def find(self, records: Iterable[FileRecord], names: Collection[str]) -> dict[str, ScanFile]:
        """Return the files that the lake knows by some names, by these names."""
        files = self.files
        return {record.name: files[record.origin] for record in records if record.name in names}


@dataclass(frozen=True, slots=True)
class RewriteSpec:
    """One part to be written anew: its table, the file that says from which pieces, where the output goes.

    ``bytes`` are those of the parts that the pieces lie in, as far as they lie in them.
    """

    table: str
    pieces: str
    staging: str
    part: str
    bytes: int


@dataclass(frozen=True, slots=True)
class RewriteResult:
    """Parts and pieces as of a scan; by input: rows merged, rows whose time was taken, extended rows without a base."""

    part: str
    parts: tuple[Part, ...]
    pieces: str
    counts: Mapping[CountKey, int]
    merged: Mapping[str, int]
    repeated: Mapping[str, int]
    orphaned: Mapping[str, int]
    bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """Why a file cannot be taken: a reason code, its detail, its name as it was scanned, and as the lake knows it."""

    reason: str
    detail: str
    scanned: str
    known: str


@dataclass(frozen=True, slots=True)
class CommitSpec:
    """What a run staged for one cluster. ``results`` are of scan tasks; ``records`` are of whole files.

    ``rewritten`` is None until the rewrites that the commit needs are done.
    ``tres_names`` is the cluster's mapping of TRES numbers from now on. ``forget`` are segments of a spool that are in
    the lake and nowhere else any more: their rows stay, their names go.
    """

    lake: str
    staging: str
    cluster: str
    head: Head
    results: tuple[ScanResult, ...]
    records: tuple[FileRecord, ...]
    line_shift: Mapping[str, int] = field(default_factory=dict)
    source_name: str = ""
    force: bool = False
    rewritten: tuple[RewriteResult, ...] | None = None
    tres_names: Mapping[int, str] = field(default_factory=dict)
    forget: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CommitResult:
    """The state after the run; or, with nothing committed, what must be done first.

    ``rescan`` are files that must be read again; ``held`` are files that must be left out;
    ``rewrites`` are parts to be written anew.
    """

    generation: int = 0
    rescan: tuple[str, ...] = ()
    held: tuple[Held, ...] = ()
    rewrites: tuple[RewriteSpec, ...] = ()
    records: tuple[FileRecord, ...] = ()
    tables: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    rows_replaced: int = 0
