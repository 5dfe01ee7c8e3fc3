"""Slurm's codes decoded, against values worked out from slurm.h by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from ingest.sources import slurm_log

TRES_NAMES = {1: "cpu", 1001: "gpu:tesla", 1002: "gpu:volta", 1003: "gpu:h200", 1004: "gpu", 1005: "license/matlab"}


def finish(**columns: list[object]) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    schema = {name: slurm_log.TYPES[name] for name in columns}
    frame = pl.DataFrame({"job_id": list(range(n)), **columns}, schema={"job_id": pl.Int64(), **schema}, strict=False)
    return slurm_log.finish(frame, TRES_NAMES)[0]


@pytest.mark.parametrize(
    ("raw", "mib", "per_cpu"),
    [
        ("170000", 170_000, False),
        (str(2**63 + 4000), 4000, True),  # MEM_PER_CPU
        (str(4000 - 2**63), 4000, True),  # the same bits read as a signed number
        ("4294967294", None, False),  # NO_VAL
        (str(2**64 - 2), None, True),  # NO_VAL64 has the top bit too
        ("1000.0", 1000, False),
        ("9.22337e18", None, None),  # digits lost
        (None, None, None),
    ],
)
def test_the_top_bit_of_mem_req_means_per_cpu(raw: str | None, mib: int | None, per_cpu: bool | None) -> None:
    row = finish(mem_req_raw=[raw]).row(0, named=True)
    assert (row["mem_mib"], row["mem_per_cpu"]) == (mib, per_cpu)


def test_a_memory_request_in_exponent_form_is_counted_as_lost_digits() -> None:
    frame = pl.DataFrame({"job_id": [7], "mem_req_raw": ["9.22337e18"]})
    assert slurm_log.finish(frame, {})[1] == {(7, "digits_lost", "mem_req"): 1}


@pytest.mark.parametrize(
    ("raw", "state", "flags"),
    [
        ("3", "COMPLETED", 0),
        ("11", "OUT_OF_MEMORY", 0),
        ("1027", "COMPLETED", 1024),  # requeued
        ("1024", "PENDING", 1024),
        ("99", None, 0),
        ("CANCELLED by 1234", "CANCELLED", None),
    ],
)
def test_the_state_is_the_low_byte_and_the_rest_are_flags(raw: str, state: str | None, flags: int | None) -> None:
    row = finish(state_raw=[raw]).row(0, named=True)
    assert (row["state"], row["state_flags"]) == (state, flags)


def test_times_of_zero_and_no_value_are_never() -> None:
    done = finish(start_epoch_s=[1_612_000_000.0, 0.0, -5.0, 4_294_967_294.0])
    assert done["start_time"].to_list() == [datetime(2021, 1, 30, 9, 46, 40, tzinfo=UTC), None, None, None]


@pytest.mark.parametrize(
    ("submit", "eligible", "start", "end", "told"),
    [
        (0.0, 0.0, 12.0, 90.0, (0, 0, 12, 90)),  # the first job of a log that counts from its own beginning
        (0.0, 0.0, 0.0, 90.0, (0, 0, None, 90)),  # it may never have started
        (0.0, 4_294_967_294.0, 0.0, 0.0, (0, None, None, None)),
        (30.0, 0.0, 0.0, 0.0, (30, None, None, None)),  # held: not eligible before it was submitted
        (0.0, 0.0, 1.6e9, 1.6e9 + 5, (None, None, 1_600_000_000, 1_600_000_005)),  # no job is submitted in 1970
    ],
)
def test_zero_is_a_time_only_for_the_first_submission_of_a_log_that_counts_from_it(
    submit: float, eligible: float, start: float, end: float, told: tuple[int | None, ...]
) -> None:
    row = finish(submit_epoch_s=[submit], eligible_epoch_s=[eligible], start_epoch_s=[start], end_epoch_s=[end])
    columns = ("submit_time", "eligible_time", "start_time", "end_time")
    assert row.select(pl.col(columns).dt.epoch("s")).row(0) == told


def test_an_unlimited_job_has_no_time_limit() -> None:
    assert finish(time_limit_min=[60, 4_294_967_295, 4_294_967_294])["time_limit_s"].to_list() == [3600, None, None]


@pytest.mark.parametrize(
    ("alloc", "req", "gpus", "kind"),
    [
        ("1=20,2=170000,4=1,5=20,1002=2", "1=20,1002=1", 2, "volta"),
        (None, "1=4,1001=3", 3, "tesla"),
        ("1=4,1003=8", None, 8, "h200"),
        ("1=4,2=3", None, 0, None),
        ("1=4,1000=3,1005=1", None, 0, None),  # a licence is no GPU
        ("1=1,11002=5", None, None, None),  # 11002 is not 1002, and nobody says what it is
        ("1=1,1002=2,1009=5", None, None, None),  # 1009 may be a GPU too
        ("1=4,1004=2", None, 2, None),  # GPUs of no type
        ("1=4,1004=2,1002=2", None, 2, "volta"),  # the same two, with their type
        ("1=4,1004=3,1002=2", None, 3, "volta"),  # and one more of a type that the site does not count
        ("1=4,1002=two", None, None, None),
        (None, None, None, None),
    ],
)
def test_gpus_are_what_was_allocated_else_what_was_asked_for(
    alloc: str | None, req: str | None, gpus: int | None, kind: str | None
) -> None:
    row = finish(tres_alloc=[alloc], tres_req=[req]).row(0, named=True)
    assert (row["gpus"], row["gpu_type"]) == (gpus, kind)


def test_the_releases_own_numbers_hold_only_where_there_is_no_mapping() -> None:
    frame = pl.DataFrame({"job_id": [1, 2], "tres_alloc": ["1=4,1002=2", "1=4,1003=2"]})
    without, counts = slurm_log.finish(frame, {})
    assert without.select("gpus", "gpu_type").rows() == [(2, "volta"), (None, None)]
    assert counts == {(None, "tres_unknown", "1003"): 1}
    with_one, counts = slurm_log.finish(frame, {1003: "gpu:h200"})
    assert with_one.select("gpus", "gpu_type").rows() == [(None, None), (2, "h200")]
    assert counts == {(None, "tres_unknown", "1002"): 1}


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        ("['r9189566-n911952']", "r9189566-n911952"),
        ("['a', 'b']", "a,b"),
        ('["a","b"]', "a,b"),
        ("[]", ""),
        ("n[1-3]", "n[1-3]"),
        ("[__import__('os').system('true')]", "[__import__('os').system('true')]"),
        ("\\N", None),
    ],
)
def test_a_stringified_node_list_is_taken_apart_and_never_evaluated(raw: str, names: str | None) -> None:
    assert finish(node_list=[raw])["node_list"][0] == names


def test_impossible_times_are_kept_and_counted() -> None:
    frame = pl.DataFrame({"job_id": [1], "submit_epoch_s": [200.0], "start_epoch_s": [150.0], "end_epoch_s": [100.0]})
    done, counts = slurm_log.finish(frame, {})
    assert done["end_time"][0] == datetime(1970, 1, 1, 0, 1, 40, tzinfo=UTC)
    assert set(counts) == {(1, "end_before_start", "time_end"), (1, "start_before_submit", "time_start")}


def test_requeues_are_numbered_across_pieces_and_exact_repeats_set_apart() -> None:
    first = pl.DataFrame({"job_id": [1, 2, 1], "state": ["A", "B", "C"]})
    second = pl.DataFrame({"job_id": [1, 1, 3], "state": ["C", "D", "E"]})
    numbered, repeats, seen = slurm_log.number_attempts(first, slurm_log.empty_seen())
    assert numbered.select("job_id", "attempt").rows() == [(1, 0), (2, 0), (1, 1)]
    assert repeats.height == 0
    numbered, repeats, _ = slurm_log.number_attempts(second, seen)
    assert numbered.select("job_id", "attempt").rows() == [(1, 2), (3, 0)]
    assert repeats.rows() == [(1, "C")]
