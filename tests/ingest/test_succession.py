"""Several recordings in one cluster of one lake: whose log is it, and what of it is new."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ingest.synthetic_files import pack
from tests.gpu_files import HEADER
from tests.small_sources import (
    LOG_HEADER,
    NODE_HEADER,
    START_S,
    gpu_file,
    gpu_row,
    lines,
    log_row,
    read_in_pieces,
    read_in_shares,
    snapshot,
    take,
    take_twice,
    write,
)

TABLES = ("jobs", "labels", "job_parameters", "node_samples", "gpu_samples", "job_stats", "quarantine")


def record(root: Path, jobs: range, *, gpu_type: str = "volta", bad: str = "") -> Path:
    """A recording of some jobs, one after another, with every file that each recording has under the same name."""
    span = range(jobs.start * 10, jobs.stop * 10, 5)
    for job in jobs:
        write(root, f"gpu/0001/{job}-n1.csv", gpu_file(*[gpu_row(job * 10 + i, job) for i in range(5)]))
    nodes = [f"{i},n1,{START_S + s},u:1|,0.1,3.5,263551496,7" for i, s in enumerate(span)]
    write(root, "slurm-log.csv", lines(LOG_HEADER, *[log_row(job) for job in jobs], *([bad] if bad else [])))
    write(root, "labelled_jobids.csv", lines("id_job,model", *[f"{job},vgg16" for job in jobs]))
    write(root, "job-parameters.csv", lines("id_job,workload,batch_size", *[f"{job},vgg16,{job}" for job in jobs]))
    write(root, "node-data.csv", lines(NODE_HEADER, *nodes))
    write(root, "tres-mapping.txt", f"1,cpu\n1002,gpu:{gpu_type}\n")
    return root


@pytest.mark.parametrize("forms", [("", ""), (".tar.zst", ".tar.gz"), ("", ".tar")])
def test_two_recordings_come_into_one_lake_whole_in_any_order(tmp_path, forms):
    folders = [
        record(tmp_path / "a" / "recording", range(101, 106)),
        record(tmp_path / "b" / "recording", range(106, 109)),
    ]
    sources = [
        pack(f, tmp_path / f"h200-0{i}{form}") if form else f
        for i, (f, form) in enumerate(zip(folders, forms, strict=True))
    ]
    record(tmp_path / "all", range(101, 109))
    whole = take(tmp_path / "all", tmp_path / "whole").contents(*TABLES)
    for number, order in enumerate(itertools.permutations(sources)):
        lake = tmp_path / f"lake-{number}"
        for source in order:
            taken = take_twice(source, lake)
            assert (taken.report.files_refused, taken.report.files_replaced, taken.report.rows_replaced) == (0, 0, 0)
        before = snapshot(lake)
        for source in sources:
            again = take(source, lake)
            assert again.report.rows_unchanged == again.report.rows_in
            assert not again.report.partial
        assert snapshot(lake) == before
        assert taken.contents(*TABLES) == whole


def test_a_recording_that_was_a_folder_and_is_packed_now_under_any_name_is_the_same(tmp_path):
    first, second = record(tmp_path / "a", range(101, 106)), record(tmp_path / "b", range(106, 109))
    take(first, tmp_path / "lake")
    take(second, tmp_path / "lake")
    before = snapshot(tmp_path / "lake")
    for folder in (first, second):
        taken = take(pack(folder, tmp_path / f"packed-{folder.name}.tar.gz"), tmp_path / "lake")
        assert taken.report.files_unchanged == taken.report.files
    assert snapshot(tmp_path / "lake") == before


def test_each_recording_grows_by_itself_whatever_it_is_called(tmp_path):
    take(record(tmp_path / "a", range(101, 104)), tmp_path / "lake")
    take(record(tmp_path / "b", range(110, 112)), tmp_path / "lake")
    grown = record(tmp_path / "b", range(110, 115))
    taken = take_twice(pack(grown, tmp_path / "other-name.tar"), tmp_path / "lake")
    assert taken.rows("jobs", "job_id") == [(job,) for job in (101, 102, 103, *range(110, 115))]
    assert taken.rows("labels", "job_id") == taken.rows("jobs", "job_id")
    assert (taken.report.files_refused, taken.report.files_replaced, taken.report.rows_replaced) == (0, 4, 10)
    names = taken.lake.inputs()["name"].to_list()
    assert [name for name in names if name.startswith("slurm-log")] == ["slurm-log.csv", "slurm-log.csv@b"]
    grown = record(tmp_path / "a", range(101, 107))
    taken = take_twice(grown, tmp_path / "lake")
    assert taken.rows("jobs", "job_id") == [(job,) for job in (*range(101, 107), *range(110, 115))]


def test_a_log_that_has_lost_jobs_is_refused_with_what_helps_and_the_other_files_are_taken(tmp_path):
    take(record(tmp_path / "a", range(101, 105)), tmp_path / "lake")
    record(tmp_path / "b", range(103, 109))
    taken = take_twice(tmp_path / "b", tmp_path / "lake")
    names = ["job-parameters.csv", "labelled_jobids.csv", "node-data.csv", "slurm-log.csv"]
    assert taken.refused() == [(name, "keys_lost", 0) for name in names]
    assert (
        "2 of 4 jobs are not in it any more, as 101; --force drops them, another --cluster keeps both",
    ) in taken.rows("quarantine", "detail")
    assert taken.rows("jobs", "job_id") == [(job,) for job in range(101, 105)]
    assert taken.rows("job_stats", "job_id") == [(job,) for job in range(101, 109)]
    apart = take_twice(tmp_path / "b", tmp_path / "lake", cluster="other")
    assert apart.lake.scan("jobs", "other").collect()["job_id"].sort().to_list() == list(range(103, 109))
    forced = take_twice(tmp_path / "b", tmp_path / "lake", force=True)
    assert forced.lake.scan("jobs", "recording").collect()["job_id"].sort().to_list() == list(range(103, 109))
    assert [row for row in forced.refused() if row[1] == "keys_lost"] == []


def test_a_log_that_has_the_jobs_of_several_recordings_takes_the_place_of_all_of_them(tmp_path):
    take(record(tmp_path / "a", range(101, 104)), tmp_path / "lake")
    take(record(tmp_path / "b", range(104, 106)), tmp_path / "lake")
    taken = take_twice(record(tmp_path / "all", range(101, 108)), tmp_path / "lake")
    assert taken.rows("jobs", "job_id") == [(job,) for job in range(101, 108)]
    assert taken.rows("labels", "job_id") == [(job,) for job in range(101, 108)]
    assert taken.lake.inputs().filter(kind="jobs")["name"].to_list() == ["slurm-log.csv"]
    assert taken.report.files_refused == 0


def test_a_log_under_its_other_name_takes_the_place_of_the_first_and_keeps_its_name_in_the_lake(tmp_path):
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, log_row(101)))
    take(tmp_path / "in", tmp_path / "lake")
    (tmp_path / "in/slurm-log.csv").rename(tmp_path / "in/scheduler-log.csv")
    assert take_twice(tmp_path / "in", tmp_path / "lake").report.files_unchanged == 1
    write(tmp_path, "in/scheduler-log.csv", lines(LOG_HEADER, log_row(101), log_row(102)))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.rows("jobs", "job_id", "attempt") == [(101, 0), (102, 0)]
    assert taken.lake.inputs()["name"].to_list() == ["slurm-log.csv"]


def test_what_is_wrong_with_the_second_log_is_noted_under_its_own_name_and_goes_when_it_is_mended(tmp_path):
    take(record(tmp_path / "a", range(101, 104), bad="prose"), tmp_path / "lake")
    taken = take_twice(record(tmp_path / "b", range(104, 106), bad="verse"), tmp_path / "lake")
    assert [row for row in taken.rejected() if row[0].startswith("slurm")] == [
        ("slurm-log.csv", 5, "too_few_fields", "prose"),
        ("slurm-log.csv@b", 4, "too_few_fields", "verse"),
    ]
    files = {file for (file,) in taken.rows("quality", "file") if file.startswith("slurm")}
    assert files == {"slurm-log.csv", "slurm-log.csv@b"}
    mended = take_twice(record(tmp_path / "b", range(104, 107)), tmp_path / "lake")
    assert [row[0] for row in mended.rejected() if row[0].startswith("slurm")] == ["slurm-log.csv"]


def test_each_recording_has_its_own_names_of_resources(tmp_path):
    take(record(tmp_path / "a", range(101, 103), gpu_type="volta"), tmp_path / "lake")
    take_twice(record(tmp_path / "b", range(104, 105), gpu_type="h100"), tmp_path / "lake")
    both = [(101, "volta"), (102, "volta"), (104, "h100")]
    for folder in ("a", "b"):
        taken = take_twice(tmp_path / folder, tmp_path / "lake")
        assert taken.report.rows_unchanged == taken.report.rows_in
        assert taken.rows("jobs", "job_id", "gpu_type") == both
    taken = take_twice(record(tmp_path / "b", range(104, 105), gpu_type="h200"), tmp_path / "lake")
    assert taken.rows("jobs", "job_id", "gpu_type") == [*both[:2], (104, "h200")]
    assert taken.lake.inputs().filter(kind="tres").height == 2


def test_a_recording_without_labels_stands_beside_one_that_has_some(tmp_path):
    take(record(tmp_path / "a", range(101, 103)), tmp_path / "lake")
    record(tmp_path / "b", range(104, 105))
    write(tmp_path / "b", "labelled_jobids.csv", "id_job,model\n")
    taken = take_twice(tmp_path / "b", tmp_path / "lake")
    assert taken.rows("labels", "job_id") == [(101,), (102,)]
    assert taken.report.files_refused == 0


@pytest.mark.parametrize("is_large", [False, True])
def test_two_periods_of_one_interleaved_file_stand_beside_each_other_and_lose_no_row(tmp_path, is_large, monkeypatch):
    if is_large:
        read_in_pieces(monkeypatch, piece=700, batch=2000)
        read_in_shares(monkeypatch, block=1500)

    def put(folder: str, seconds: range) -> Path:
        rows = [f"{gpu_row(i, 100)},101,n1" for i in seconds]
        return write(tmp_path, f"{folder}/nvidia_smi.csv", lines(f"{HEADER},id_job,node", *rows)).parent

    take_twice(put("a", range(60)), tmp_path / "lake")
    taken = take_twice(put("b", range(60, 120)), tmp_path / "lake")
    assert [at for at, _ in taken.series()] == [float(i) for i in range(120)]
    assert taken.report.files_refused == 0
    shrunken = take_twice(put("b", range(60, 100)), tmp_path / "lake")
    assert [reason for _, reason, _ in shrunken.refused()] == ["keys_lost"]
    assert len(shrunken.series()) == 120


def test_a_file_of_the_same_jobs_that_is_shorter_is_refused_as_before(tmp_path):
    write(tmp_path, "in/labelled_jobids.csv", lines("id_job,model", "101,ResNet50", "102,vgg16"))
    take(tmp_path / "in", tmp_path / "lake")
    write(tmp_path, "in/labelled_jobids.csv", lines("id_job,model", "101,vgg16", "102,vgg16"))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [("labelled_jobids.csv", "shrunken", 0)]
    assert taken.rows("labels", "job_id", "label") == [(101, "ResNet50"), (102, "vgg16")]


def test_the_report_says_what_was_replaced(tmp_path):
    record(tmp_path / "a", range(101, 103))
    first = take(tmp_path / "a", tmp_path / "lake")
    assert (first.report.files_replaced, first.report.rows_replaced) == (0, 0)
    write(tmp_path / "a", "gpu/0001/101-n1.csv", gpu_file(*[gpu_row(1010 + i, 7) for i in range(9)]))
    taken = take_twice(tmp_path / "a", tmp_path / "lake")
    assert (taken.report.files_replaced, taken.report.rows_replaced, taken.report.rows_out) == (1, 5, 9)
