"""What is believed of a value, and the stable reason codes under which anything else is counted.

Three ends for a bad value, and no fourth. A value that says it is missing (``N/A``, a blank, a driver's sentinel)
becomes null and is counted in ``quality``. A value that cannot be true, or a row that cannot be read, goes to
``quarantine`` with its raw line. A file that cannot be taken at all is refused under its name. Nothing is dropped
without a code.
"""

from __future__ import annotations

from typing import Final

MAX_GAP_S: Final = 10.0
"""Two samples further apart than this have a gap between them: no energy and no coverage is counted across it."""

CLOCK_JUMP_S: Final = 3600.0
"""A step this long within one series is counted as a clock jump as well as a gap."""

NULL_TOKENS: Final = frozenset(
    (
        *("", "N/A", "n/a", "NA", "[N/A]", "[Not Supported]", "[Unknown Error]", "nan", "NaN", "NAN"),
        *("null", "NULL", "None", "\\N", "-", "Unknown"),
    )
)
"""What sources write for a value that they do not have (nvidia-smi, Slurm's exports, pandas, MySQL)."""

SENTINELS: Final = frozenset(
    [2.0**63, 2.0**63 - 1, -(2.0**63), 2.0**64 - 1, 2.0**64 - 2, 2.0**32 - 1, 2.0**32 - 2, 2.0**31 - 1, -(2.0**31)]
)
"""Unsigned or signed 'no value' of drivers and Slurm (NO_VAL, INFINITE); compared as float64."""

LIMITS: Final[dict[str, tuple[float, float]]] = {
    "time_epoch_s": (0.0, 4_102_444_800.0),  # 1970 to 2100; a release with relative times starts at 0
    **dict.fromkeys(("submit_epoch_s", "eligible_epoch_s", "start_epoch_s", "end_epoch_s"), (0.0, 4_102_444_800.0)),
    "gpu_index": (0, 1023),
    "gpu_util_pct": (0, 100),
    "memory_util_pct": (0, 100),
    "memory_free_mib": (0, 4_194_304),
    "memory_used_mib": (0, 4_194_304),
    "gpu_temp_c": (-20, 150),
    "memory_temp_c": (-20, 150),
    "power_w": (0, 2000),
    "power_avg_w": (0, 2000),
    "power_limit_w": (0, 5000),
    "energy_counter_mj": (0, 1e16),
    "energy_counter_j": (0, 1e13),
    "sm_clock_mhz": (0, 10_000),
    "mem_clock_mhz": (0, 50_000),
    "pcie_link_width": (0, 64),
    "elapsed_s": (0, 1e9),
    "cpu_freq_khz": (0, 1e9),
    "cpu_time_s": (0, 1e9),
    "cpu_util_pct": (0, 1e7),
    "rss_kib": (0, 1e13),
    "vm_kib": (0, 1e15),
    "page_faults": (0, 1e15),
    "read_mib": (0, 1e12),
    "write_mib": (0, 1e12),
    "load": (0, 1e6),
    "fs_latency_s": (0, 1e6),
    "lustre_rpcs": (0, 1e15),
    "mem_free_raw": (0, 1e13),
    "mem_free_kib": (0, 1e13),
    "job_id": (0, 2.0**62),
    "energy_j": (0, 1e13),
    "run_s": (0, 1e9),
    "power_min_w": (0, 2000),
    "power_max_w": (0, 2000),
}
"""Column to the least and greatest value that can be true; a value outside sends its row to quarantine."""

DEFECT: Final = "defect"
NOTICE: Final = "notice"

REASONS: Final[dict[str, tuple[str, str]]] = {
    # rows, in quarantine
    "too_few_fields": (DEFECT, "the line has fewer fields than the header"),
    "too_many_fields": (DEFECT, "the line has more fields than the header"),
    "not_utf8": (DEFECT, "the line has bytes that are not UTF-8"),
    "wrong_type": (DEFECT, "a cell is not a number where one is due, or not one of the allowed words"),
    "out_of_range": (DEFECT, "a value lies outside what can be true"),
    "missing_key": (DEFECT, "a time, index or id that the row needs is missing"),
    "id_not_exact": (DEFECT, "an id is in exponent or decimal form, its digits are lost"),
    "repeated_time": (DEFECT, "the series has a sample at this very time already; the first is kept"),
    "repeated_row": (DEFECT, "the key of this row is taken already; the first is kept"),
    "header_changed": (DEFECT, "the row stands below a header that differs from its file's first"),
    "ambiguous_time": (DEFECT, "a local time that the clock of its zone showed twice, or never; record in UTC"),
    "no_base_sample": (DEFECT, "an extended sample without the sample that it would extend"),
    "other_cluster": (DEFECT, "a job of another cluster than the file's first; ids of two clusters never mix"),
    # whole files, in quarantine
    "bad_file_name": (DEFECT, "the file's name does not say which job and node it belongs to, or cannot be stored"),
    "missing_column": (DEFECT, "a column is not in the header; without a needed one the file is refused"),
    "empty_file": (DEFECT, "the file holds nothing, not even a header"),
    "no_header": (DEFECT, "the file begins without the names of its columns; give them with --columns"),
    "bad_line_ends": (DEFECT, "the lines of the file end with carriage returns alone"),
    "shrunken": (DEFECT, "the file is shorter than what was taken from it before; --force takes it all the same"),
    "keys_lost": (DEFECT, "jobs, nodes or series that were taken from the file are not in it any more; its rows stay"),
    "series_from_other_file": (DEFECT, "another file has the rows of this job (or the log) already"),
    "companion_missing": (
        DEFECT,
        "the file changed, but another of its series is refused or not here; its old rows stay",
    ),
    "unreadable": (DEFECT, "the file cannot be opened"),
    "unsafe_member": (DEFECT, "an archive member with an absolute path, '..', or that is a link or a device"),
    "repeated_member": (DEFECT, "a file of a name that the source has already"),
    "too_large": (DEFECT, "the file, or a line of it, inflates past the limit"),
    "unknown_file": (DEFECT, "a CSV that is no table of a known layout"),
    "truncated": (DEFECT, "the stream ends early or is damaged; the lines before that are kept"),
    # observations, in quality alone
    "missing_value": (DEFECT, "cells that say they are missing, in a column that has values elsewhere in the file"),
    "column_empty": (NOTICE, "every cell of the column says that it is missing"),
    "bad_extra_cell": (DEFECT, "a cell of a column beyond the release's own that cannot be read or be true; null"),
    "sentinel": (DEFECT, "a driver's or scheduler's 'no value' number; stored as null"),
    "repeated_column": (DEFECT, "two columns of one name; the first is taken"),
    "unknown_column": (NOTICE, "a column that the lake does not know; not stored"),
    "out_of_order": (DEFECT, "samples not in time order in the file; sorted"),
    "gap": (NOTICE, "steps longer than MAX_GAP_S"),
    "clock_jump": (DEFECT, "steps longer than CLOCK_JUMP_S"),
    "time_zone_assumed": (NOTICE, "local times without a zone, taken as UTC; say which with --time-zone"),
    "two_collectors": (
        NOTICE,
        "rows of pieces that meet a time of which another run of a collector tells too; its energy may count twice: "
        "take a labelled run beside a service into another --cluster",
    ),
    "collector_has_them": (NOTICE, "rows of Prometheus of a time in which the GPU's own collector ran; not taken"),
    "outside_job": (NOTICE, "samples over a minute before the job's start or after its end"),
    "gpus_not_seen": (NOTICE, "GPUs that the log allocates to the job and no sample is of; they count as not covered"),
    "two_files_for_series": (DEFECT, "several files hold this job and node; joined by time"),
    "job_step": (NOTICE, "rows of sacct that are steps of a job; the lake keeps jobs"),
    "time_zone_unknown": (
        DEFECT,
        "a local time without its offset, stored as null; export with SLURM_TIME_FORMAT=%s",
    ),
    "cell_ambiguous": (DEFECT, "bars in several columns of sacct's text, which fit in several ways; stored as null"),
    "exit_code_unknown": (NOTICE, "a failed job with exit code 0 in an old sacct --json, which tells no other"),
    "requeued": (NOTICE, "the job has several rows in the log; kept as attempts"),
    "mem_unit_unknown": (
        DEFECT,
        "MemoryFreeInactiveKB is neither GB nor KiB by its size, or not what the rest of its file is; stored as null",
    ),
    "tres_unknown": (DEFECT, "a resource of a number that no tres-mapping.txt names; GPUs of such jobs are null"),
    "job_without_record": (NOTICE, "samples of a job that the scheduler's log does not have"),
    "label_without_job": (DEFECT, "a label for a job that neither the log nor the samples have"),
    "extended_lost": (DEFECT, "the samples that an extended file had completed were replaced; ingest it again"),
    "end_before_start": (DEFECT, "the log has an end before the start; times kept as written"),
    "digits_lost": (DEFECT, "a number in exponent form whose digits are lost; stored as null"),
    "node_list_unreadable": (DEFECT, "a node list that is no list of names; kept as written"),
    "start_before_submit": (DEFECT, "the log has a start before the submission; times kept as written"),
}
"""Reason code to its weight and its meaning. A defect makes the command's exit code 3; a notice does not."""


def is_defect(reason: str) -> bool:
    """Return whether a reason code counts as bad input (exit code 3) rather than as a remark.

    >>> is_defect("out_of_range"), is_defect("gap")
    (True, False)
    """
    return REASONS[reason][0] == DEFECT
