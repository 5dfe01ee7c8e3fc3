"""Rows of Slurm's log with something odd in them: decoded exactly, or null, or in quarantine, under a reason."""

from __future__ import annotations

import polars as pl

from tests.small_sources import LOG_HEADER, START_S, gpu_file, gpu_row, lines, log_row, take, take_twice, write

PER_CPU = 2**63


def take_log(tmp_path, *rows: str, header: str = LOG_HEADER):
    write(tmp_path, "in/slurm-log.csv", lines(header, *rows))
    return take_twice(tmp_path / "in", tmp_path / "lake")


MEMORY = {
    "384000": (384_000, False, 0),
    "0": (0, False, 0),
    str(PER_CPU + 8000): (8000, True, 0),
    str(-PER_CPU + 8000): (8000, True, 0),
    "9.223372036854784e+18": (None, None, 1),
    "8.0e3": (8000, False, 0),
    "8000.0": (8000, False, 0),
    "8000.5": (None, None, 1),
    str(2**64 - 1): (None, True, 0),
    str(2**64 - 2): (None, True, 0),
    str(2**32 - 1): (None, False, 0),
    "": (None, None, 0),
    "\\N": (None, None, 0),
    "1e400": (None, None, 1),
    "lots": (None, None, 0),
}


def test_requested_memory_is_exact_per_node_or_per_cpu_and_null_where_its_digits_are_lost(tmp_path):
    taken = take_log(tmp_path, *[log_row(1000 + i, mem_req=written) for i, written in enumerate(MEMORY)])
    found = taken.rows("jobs", "job_id", "mem_mib", "mem_per_cpu")
    assert found == [(1000 + i, mib, per_cpu) for i, (mib, per_cpu, _) in enumerate(MEMORY.values())]
    lost = taken.lake.scan("quality").filter(pl.col("reason") == "digits_lost").select("job_id", "detail").collect()
    assert sorted(lost.rows()) == [(1000 + i, "mem_req") for i, (*_, lost) in enumerate(MEMORY.values()) if lost]
    assert taken.counted()["wrong_type", "mem_req"] == 1
    assert taken.rejected() == []


NODE_LISTS = {
    "['n1']": ("n1", 0),
    "\"['n1', 'n2']\"": ("n1,n2", 0),
    '"[""n1"", ""n2""]"': ("n1,n2", 0),
    "[]": ("", 0),
    "n[1-3]": ("n[1-3]", 0),
    "None assigned": ("None assigned", 0),
    "\"['n1', __import__('os').system('touch /tmp/x')]\"": ("['n1', __import__('os').system('touch /tmp/x')]", 1),
    "[n1": ("[n1", 1),
    "['n1'": ("['n1'", 1),
    "\"['n1'], ['n2']\"": ("['n1'], ['n2']", 1),
    "": (None, 0),
}


def test_a_stringified_node_list_is_read_as_names_and_never_as_code(tmp_path):
    taken = take_log(tmp_path, *[log_row(1000 + i, nodelist=written) for i, written in enumerate(NODE_LISTS)])
    assert taken.rows("jobs", "job_id", "node_list") == [
        (1000 + i, stored) for i, (stored, _) in enumerate(NODE_LISTS.values())
    ]
    odd = taken.lake.scan("quality").filter(pl.col("reason") == "node_list_unreadable").select("job_id").collect()
    assert sorted(odd["job_id"]) == [1000 + i for i, (_, odd) in enumerate(NODE_LISTS.values()) if odd]


BAD_IDS = {
    "1.01922647820325E+13": "id_not_exact",
    "101.0": "id_not_exact",
    "1e3": "id_not_exact",
    str(2**63): "id_not_exact",
    "": "missing_key",
    "N/A": "missing_key",
    "job": "wrong_type",
    "-7": "out_of_range",
    str(2**62 + 2**20): "out_of_range",
}


def test_a_row_without_a_job_id_or_with_one_whose_digits_may_be_lost_is_quarantined(tmp_path):
    rows = [log_row(job_id) for job_id in BAD_IDS]
    taken = take_log(tmp_path, log_row(101), *rows)
    expected = [("slurm-log.csv", 3 + i, reason, rows[i]) for i, reason in enumerate(BAD_IDS.values())]
    assert taken.rejected() == expected
    assert taken.rows("jobs", "job_id") == [(101,)]


def test_a_job_id_of_any_length_that_fits_is_exact(tmp_path):
    ids = [0, 1, 2**53 + 1, 10192264782032, 2**62]
    assert take_log(tmp_path, *[log_row(i) for i in ids]).rows("jobs", "job_id") == [(i,) for i in sorted(ids)]


def test_a_requeued_job_has_an_attempt_a_row_and_an_exact_repeat_is_quarantined(tmp_path):
    first = log_row(101, state=7, time_end=START_S + 10)
    second = log_row(101, time_start=START_S + 100)
    taken = take_log(tmp_path, first, log_row(102), second, first)
    assert taken.rows("jobs", "job_id", "attempt", "state") == [
        (101, 0, "NODE_FAIL"),
        (101, 1, "COMPLETED"),
        (102, 0, "COMPLETED"),
    ]
    assert taken.rejected() == [("slurm-log.csv", 5, "repeated_row", first)]
    assert taken.counted() == {("requeued", ""): 1, ("repeated_row", ""): 1}


def test_times_that_never_came_are_null_and_impossible_orders_are_kept_and_counted(tmp_path):
    rows = [
        log_row(1, time_start=0, time_end=0),
        log_row(2, time_end=START_S - 50),
        log_row(3, time_submit=START_S + 500),
        log_row(4, time_start=2**32 - 2, time_end=2**32 - 1),
    ]
    taken = take_log(tmp_path, *rows)
    times = taken.lake.scan("jobs").sort("job_id").select(pl.col("^(start|end)_time$").dt.epoch("s")).collect().rows()
    usual = (START_S - 10, START_S + 1000)
    assert times == [(None, None), (START_S - 10, START_S - 50), usual, (None, None)]
    assert taken.counted() == {
        ("end_before_start", "time_end"): 1,
        ("start_before_submit", "time_start"): 1,
        ("sentinel", "start_time"): 1,
        ("sentinel", "end_time"): 1,
    }


def test_a_row_with_an_absurd_time_is_quarantined(tmp_path):
    bad = [log_row(102, time_start=time) for time in (-1, 5 * 10**9, 1e18, "1e300")]
    taken = take_log(tmp_path, log_row(101), *bad)
    assert taken.rejected() == [("slurm-log.csv", 3 + i, "out_of_range", row) for i, row in enumerate(bad)]
    assert taken.rows("jobs", "job_id") == [(101,)]


def test_numbers_that_no_column_could_hold_are_null_and_counted_or_quarantined_but_never_wrapped(tmp_path):
    bad = log_row(2, priority=10**30)
    taken = take_log(tmp_path, log_row(1, timelimit=2**62), bad, log_row(3, tres_alloc=f"1002={10**30}", tres_req=""))
    assert taken.rows("jobs", "job_id", "time_limit_s", "gpus") == [(1, None, 2), (3, 3600, None)]
    assert taken.rejected() == [("slurm-log.csv", 3, "out_of_range", bad)]
    assert taken.counted() == {
        ("out_of_range", "timelimit"): 1,
        ("out_of_range", ""): 1,
        ("wrong_type", "tres_alloc"): 1,
    }


STATES: dict[object, tuple[str | None, int | None]] = {
    3: ("COMPLETED", 0),
    0x8000 + 1: ("RUNNING", 0x8000),
    11: ("OUT_OF_MEMORY", 0),
    99: (None, 0),
    "FAILED": ("FAILED", None),
    "cancelled by 7": ("CANCELLED", None),
    "": (None, None),
}


def test_a_state_is_decoded_from_its_number_or_word_and_an_unknown_one_counted(tmp_path):
    taken = take_log(tmp_path, *[log_row(1000 + i, state=state) for i, state in enumerate(STATES)])
    assert taken.rows("jobs", "job_id", "state", "state_flags") == [
        (1000 + i, *decoded) for i, decoded in enumerate(STATES.values())
    ]
    assert taken.counted() == {("wrong_type", "state"): 1}


def test_a_number_column_with_a_word_in_it_quarantines_that_row_alone(tmp_path):
    bad = log_row(102, cpus_req="many")
    taken = take_log(tmp_path, log_row(101), bad, log_row(103))
    assert taken.rejected() == [("slurm-log.csv", 3, "wrong_type", bad)]
    assert taken.rows("jobs", "job_id") == [(101,), (103,)]


def test_no_value_of_slurm_is_null_in_array_and_limit(tmp_path):
    row = log_row(101, id_array_task=2**32 - 2, timelimit=2**32 - 1)
    assert take_log(tmp_path, row).rows("jobs", "array_task_id", "time_limit_s") == [(None, None)]


GPUS: dict[tuple[str, str], tuple[int | None, str | None]] = {
    ('"1=40,1002=2"', '"1=40,1002=4"'): (2, "volta"),
    ("", '"1=40,1001=1"'): (1, "tesla"),
    ('"1=40,2=5"', '"1=40"'): (0, None),
    ("", ""): (None, None),
    ('"1=40,21002=9"', ""): (None, None),
    ("1002=two", ""): (None, None),
}


def test_gpus_are_those_that_were_allocated_else_requested(tmp_path):
    rows = [log_row(1000 + i, tres_alloc=alloc, tres_req=req) for i, (alloc, req) in enumerate(GPUS)]
    taken = take_log(tmp_path, *rows)
    assert taken.rows("jobs", "job_id", "gpus", "gpu_type") == [
        (1000 + i, *found) for i, found in enumerate(GPUS.values())
    ]
    assert taken.counted() == {("tres_unknown", "21002"): 1, ("wrong_type", "tres_alloc"): 1}
    assert taken.report.partial


def test_a_log_with_few_columns_is_taken_and_each_missing_one_is_counted(tmp_path):
    taken = take_log(tmp_path, "101,3", "102,5", header="id_job,state")
    assert taken.rows("jobs", "job_id", "state", "start_time", "mem_mib") == [
        (101, "COMPLETED", None, None),
        (102, "FAILED", None, None),
    ]
    missing = [detail for reason, detail in taken.counted() if reason == "missing_column"]
    assert len(missing) == len(LOG_HEADER.split(",")) - 2
    assert "nodelist" in missing


def test_a_log_of_ids_alone_is_taken_too(tmp_path):
    assert take_log(tmp_path, "101", "102", header="id_job").rows("jobs", "job_id") == [(101,), (102,)]


def test_a_quoted_field_with_a_line_break_inside_is_not_joined_with_the_next_line(tmp_path):
    taken = take_log(tmp_path, log_row(101), '102,"a', 'b",3', log_row(103), header=LOG_HEADER)
    assert taken.rows("jobs", "job_id") == [(101,), (103,)]
    assert [(line, reason) for _, line, reason, _ in taken.rejected()] == [(3, "too_few_fields"), (4, "too_few_fields")]


def test_words_for_a_missing_value_are_null_in_every_text_column_of_the_log(tmp_path):
    clean = take_log(tmp_path / "a", log_row(101, partition="N/A", constraints="", job_type=" BATCH "))
    careful = take_log(tmp_path / "b", log_row(101, partition="N/A", constraints="", job_type=" BATCH "), "prose")
    columns = ("partition", "constraints", "job_type")
    assert clean.rows("jobs", *columns) == careful.rows("jobs", *columns) == [(None, None, "BATCH")]


def test_samples_outside_their_job_are_kept_and_counted(tmp_path):
    write(tmp_path, "in/gpu/0001/101-n1.csv", gpu_file(gpu_row(0), gpu_row(1), gpu_row(5000)))
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, log_row(101, tres_alloc="1002=1")))
    taken = take(tmp_path / "in", tmp_path / "lake")
    assert taken.counted() == {("outside_job", ""): 1, ("gap", ""): 1, ("clock_jump", ""): 1}
    assert len(taken.powers()) == 3


def test_allocated_gpus_without_samples_are_counted_and_not_taken_for_covered(tmp_path):
    for job in (101, 102, 103):
        rows = [gpu_row(i, gpu=gpu) for gpu in range(job - 100) for i in range(11)]
        write(tmp_path, f"in/gpu/0001/{job}-n1.csv", gpu_file(*rows))
    run = {"time_start": START_S, "time_end": START_S + 10}
    log = [log_row(job, tres_alloc='"1=40,1002=4"', **run) for job in (101, 104)]  # of 104 nothing was recorded
    log += [log_row(102, tres_alloc='"1=40,1002=2"', **run), log_row(103, tres_alloc='"1=40,1002=1"', **run)]
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, *log))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.rows("job_stats", "job_id", "gpus", "coverage") == [(101, 1, 0.25), (102, 2, 1.0), (103, 3, 1.0)]
    unseen = taken.lake.scan("quality").filter(pl.col("reason") == "gpus_not_seen").select("job_id", "count")
    assert unseen.collect().rows() == [(101, 3)]
    assert not taken.report.partial
