from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import SourceError
from ingest.sources.sacct import Parsed, parse_text
from ingest.sources.sacct_json import parse_json, version

SAMPLES = Path(__file__).parents[2] / "samples" / "slurm"
NAMED = "JobIDRaw|JobName|State|ExitCode|Submit"
TWO_NAMES = "JobIDRaw|JobName|State|Comment|Submit"


def sample(name: str) -> str:
    return (SAMPLES / name).read_text("utf-8")


def rows(parsed: Parsed) -> list[dict[str, Any]]:
    return [row for _, _, row in parsed.rows]


def named(text: str) -> Parsed:
    return parse_text(f"{NAMED}\n{text}\n")


def by_attempt(parsed: Parsed) -> dict[tuple[int, int | None], dict[str, Any]]:
    return {(row["job_id"], row.get("submit_epoch_s")): row for row in rows(parsed)}


# -- what a real Slurm printed -----------------------------------------------------------------------------------------


def test_every_job_of_a_real_answer_is_read_whatever_columns_were_asked_for():
    ours, user = (parse_text(sample(f"22.05-{name}.sacct.txt")) for name in ("ours", "user"))
    assert ours.rejected == user.rejected == []
    assert by_attempt(ours).keys() == by_attempt(user).keys()
    for key, row in by_attempt(user).items():
        for column in row.keys() & {"state", "exit_code", "start_epoch_s", "end_epoch_s", "gpus", "array_task_id"}:
            if column == "gpus" and row["state"] == "PENDING":  # nothing allocated, and ReqTRES not asked for
                continue
            assert row[column] == by_attempt(ours)[key][column], (key, column)
    assert user.counts[None, "job_step", ""] > 10
    assert (None, "job_step", "") not in ours.counts


def test_text_and_json_of_a_real_slurm_tell_the_same_but_for_what_its_json_gets_wrong():
    text = by_attempt(parse_text(sample("22.05-ours.sacct.txt")))
    as_json = by_attempt(parse_json(sample("22.05.sacct.json")))
    assert text.keys() == as_json.keys()
    for key, row in text.items():
        for column in as_json[key].keys() - {"exit_code", "derived_exit_code", "flags"}:
            assert row.get(column) == as_json[key][column], (key, column)
        if row["state"] == "FAILED" and row["exit_code"] >= 256:
            assert as_json[key]["exit_code"] is None


def test_sacct_s_own_choice_of_columns_has_no_raw_ids_of_array_tasks_and_says_so():
    parsed = parse_text(sample("22.05-default.sacct.txt"))
    assert {(reason, detail.partition(":")[0]) for _, reason, detail, _ in parsed.rejected} == {
        ("missing_key", "JobIDRaw")
    }
    assert all("_" in raw.partition("|")[0] for *_, raw in parsed.rejected)
    assert {row["state"] for row in rows(parsed)} >= {"COMPLETED", "FAILED", "TIMEOUT"}


# -- names of anything -------------------------------------------------------------------------------------------------


def test_bars_and_lines_in_a_name_leave_the_other_columns_where_they_are():
    parsed = named("7|a|b\n\nc|\nd|FAILED|3:0|1700000000\n8|x|COMPLETED|0:0|1700000001")
    assert [(row["job_id"], row["state"], row["exit_code"]) for row in rows(parsed)] == [
        (7, "FAILED", 768),
        (8, "COMPLETED", 0),
    ]
    assert [number for number, *_ in parsed.rows] == [2, 6]


@given(st.text(st.sampled_from("ab|\n \"'%[]\\"), max_size=12), st.text(st.sampled_from("ab|\n"), max_size=8))
def test_no_name_of_letters_bars_and_lines_changes_what_is_told_of_its_job_or_the_next(first, second):
    parsed = named(f"7|{first}|FAILED|3:0|1700000000\n8|{second}|COMPLETED|0:0|1700000001")
    assert parsed.rejected == []
    assert [(r["job_id"], r["state"], r["submit_epoch_s"]) for r in rows(parsed)] == [
        (7, "FAILED", 1700000000),
        (8, "COMPLETED", 1700000001),
    ]


def test_a_name_that_plays_another_job_is_not_taken_for_one():
    parsed = named("7|x\n9|y|COMPLETED|0:0|1700000002|FAILED|3:0|1700000000\n8|x|COMPLETED|0:0|1700000001")
    assert [row["job_id"] for row in rows(parsed)] == [8]
    assert [reason for _, reason, *_ in parsed.rejected] == ["too_many_fields"]


def test_bars_in_two_columns_are_settled_by_what_stands_between_them():
    parsed = parse_text(f"{TWO_NAMES}\n7|a|b|FAILED|c|d|1700000000\n")
    assert [(row["state"], row["submit_epoch_s"]) for row in rows(parsed)] == [("FAILED", 1700000000)]


def test_bars_that_fit_in_two_ways_are_not_taken():
    parsed = parse_text(f"{TWO_NAMES}\n7|a|FAILED|COMPLETED|c|1700000000\n")
    assert rows(parsed) == []
    assert [(reason, detail[:6]) for _, reason, detail, _ in parsed.rejected] == [("too_many_fields", "6 of 5")]


def test_constraints_that_may_end_in_two_places_are_null_and_the_job_is_kept():
    parsed = parse_text("JobIDRaw|State|Constraints|Comment\n7|FAILED|a|b|c\n")
    assert [(row["state"], row["constraints"]) for row in rows(parsed)] == [("FAILED", None)]
    assert parsed.counts == {(7, "cell_ambiguous", "constraints"): 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x|n|FAILED|3:0|1700000000", "wrong_type"),
        ("7|n|EXPLODED|3:0|1700000000", "wrong_type"),
        ("7|n|FAILED|3|1700000000", "wrong_type"),
        ("7|n|FAILED|3:0|yesterday", "wrong_type"),
        ("7|n|FAILED|3:0|99999999999", "wrong_type"),
        ("7|n|FAILED", "too_few_fields"),
        ("sacct: error: slurm_persist_conn_open: Connection refused", "too_few_fields"),
    ],
)
def test_a_line_that_cannot_be_true_is_set_aside_with_its_reason_and_the_others_are_read(line, reason):
    parsed = named(f"6|n|COMPLETED|0:0|1700000000\n{line}")
    assert [row["job_id"] for row in rows(parsed)] == [6]
    assert [(number, why, raw) for number, why, _, raw in parsed.rejected] == [(3, reason, line)]


def test_without_columns_of_free_text_the_number_of_fields_is_strict():
    parsed = parse_text("JobIDRaw|State\n7|FAILED|x\n8\n9|FAILED\n")
    assert [(number, reason) for number, reason, *_ in parsed.rejected] == [
        (2, "too_many_fields"),
        (3, "too_few_fields"),
    ]
    assert [row["job_id"] for row in rows(parsed)] == [9]


# -- cells -------------------------------------------------------------------------------------------------------------


def test_times_with_an_offset_are_taken_and_local_ones_are_null_and_counted():
    parsed = parse_text(
        "JobIDRaw|Submit|Start|End\n7|2026-11-24T23:00:00+01:00|2026-11-24T22:00:00Z|Unknown\n8|2026-11-24T23:00:00|0|None\n"
    )
    first, second = rows(parsed)
    assert first["submit_epoch_s"] == first["start_epoch_s"] == 1795557600
    assert (first["end_epoch_s"], second["submit_epoch_s"], second["start_epoch_s"]) == (None, None, None)
    assert parsed.counts == {(8, "time_zone_unknown", "submit"): 1}


def test_an_array_that_waits_tells_how_many_of_its_tasks_do():
    (row,) = rows(parse_text("JobIDRaw|JobID|State\n17|17_[1-5,8%2]|PENDING\n"))
    assert (row["job_id"], row["array_job_id"], row["array_tasks_pending"], row["array_max_tasks"]) == (17, 17, 6, 2)


def test_a_better_column_goes_before_its_like():
    (row,) = rows(parse_text("JobIDRaw|Timelimit|TimelimitRaw|NCPUS|ReqCPUS\n7|00:05:00|6|9|4\n"))
    assert (row["time_limit_s"], row["cpus"]) == (360, 4)


@pytest.mark.parametrize("header", ["State|JobName", "", "7|FAILED"])
def test_a_text_that_tells_no_job_ids_is_refused(header):
    with pytest.raises(ValueError, match="JobIDRaw"):
        parse_text(f"{header}\n7|FAILED\n")


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_wrapped_numbers_lists_of_states_and_no_values_are_decoded():
    text = sample("24.05.sacct.json")
    assert version(json.loads(text)) == (0, 0, 40)
    failed, waiting, killed = rows(parse_json(text))
    assert (failed["exit_code"], failed["time_limit_s"], failed["gpus"], failed["gpu_type"]) == (768, 5400, 8, "a100")
    assert (failed["mem_mib"], failed["mem_per_cpu"], failed["array_task_id"]) == (4000, True, 3)
    assert (failed["node_list"], failed["constraints"], failed["flags"]) == ("g01,g02", "a100|h100", 20)
    assert failed["tres_alloc"] == "cpu=16,gres/gpu=8,gres/gpu:a100=8"
    assert (waiting["state"], waiting["state_flags"], waiting["exit_code"]) == ("PENDING", 1024, None)
    assert (waiting["time_limit_s"], waiting["start_epoch_s"], waiting["gpus"]) == (None, None, None)
    assert (waiting["user"], waiting["kill_user"], waiting["mem_mib"], waiting["node_list"]) == (
        "bob",
        1001,
        2000,
        None,
    )
    assert (killed["state"], killed["exit_code"]) == ("OUT_OF_MEMORY", 9)


def test_a_per_cpu_bit_in_an_old_version_s_memory_is_decoded():
    document = json.loads(sample("22.05.sacct.json"))
    job = document["jobs"][0]
    job["required"]["memory"] = 2**63 + 300
    job["tres"]["requested"] = []
    row = rows(parse_json(json.dumps(document)))[0]
    assert (row["mem_mib"], row["mem_per_cpu"]) == (300, True)


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.9, 0.999])
def test_half_a_body_is_one_clear_error(cut):
    text = sample("22.05.sacct.json")
    with pytest.raises(SourceError, match="no JSON to its end"):
        parse_json(text[: int(len(text) * cut)])


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"jobs": {}}', '{"errors": [{"error": "x"}], "jobs": null}'])
def test_json_without_a_list_of_jobs_is_refused(text):
    with pytest.raises(SourceError, match="no list of jobs"):
        parse_json(text)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("job_id", None, "missing_key"),
        ("job_id", "seven", "wrong_type"),
        ("state", {"current": ["EXPLODED"]}, "wrong_type"),
        ("state", None, "wrong_type"),
        ("time", {"submission": 1e300}, "wrong_type"),
        ("tres", {"allocated": [{"count": 1}]}, "missing_key"),
        ("exit_code", {"return_code": {"set": True, "number": [1]}}, "wrong_type"),
    ],
)
def test_a_job_that_is_not_as_it_should_be_is_set_aside_alone(key, value, reason):
    document = json.loads(sample("24.05.sacct.json"))
    document["jobs"][1][key] = value
    parsed = parse_json(json.dumps(document))
    assert [row["job_id"] for row in rows(parsed)] == [70, 72]
    assert [(number, why) for number, why, *_ in parsed.rejected] == [(2, reason)]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda x: (
            st.lists(x) | st.dictionaries(st.sampled_from(["job_id", "state", "time", "current", "set", "number"]), x)
        ),
        max_leaves=8,
    )
)
def test_any_json_among_the_jobs_is_either_a_job_or_set_aside(value):
    parsed = parse_json(json.dumps({"jobs": [value]}))
    assert len(parsed.rows) + len(parsed.rejected) == 1
