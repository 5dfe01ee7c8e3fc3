"""What ``jobwatt lake ingest`` says of bad input: an exit code, one clear line, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli import run
from ingest.synthetic_files import pack
from tests.gpu_files import HEADER
from tests.small_sources import GPU_FILE, gpu_file, gpu_row, lines, write

ROWS = [gpu_row(i, 100 + i) for i in range(20)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """The current folder, with a sound source in it."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*ROWS))
    return tmp_path


def ingest(capfd: pytest.CaptureFixture[str], source: str = "in", *options: str) -> tuple[int, dict[str, object], str]:
    """Exit code, report and what was said on standard error."""
    capfd.readouterr()
    code = run(["lake", "ingest", source, "--lake", "lake", "--workers", "1", "--format", "json", *options])
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    return code, json.loads(out or "{}"), err


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("gpu/0001/102-n1.csv", gpu_file(*ROWS, "prose"), "too_few_fields"),
        ("gpu/0001/102-n1.csv", gpu_file(*ROWS, gpu_row(30, "N/A")), "missing_value"),
        ("gpu/0001/102-n1.csv", gpu_file(*ROWS[::-1]), "out_of_order"),
        ("gpu/0001/102-n1.csv", gpu_file(*ROWS, gpu_row(30, 2**63)), "sentinel"),
        ("gpu/0001/102-n1.csv", gpu_file(*ROWS, gpu_row(9000)), "clock_jump"),
        ("gpu/0001/102-n1.csv", "", "empty_file"),
        ("gpu/0001/nonsense.csv", gpu_file(*ROWS), "bad_file_name"),
        ("other.csv", "a,b\n", "unknown_file"),
        ("gpu/0001/102-n1.csv.gz", "no gzip", "truncated"),
        ("labelled_jobids.csv", lines("id_job,model", "999,vgg16"), "label_without_job"),
        ("slurm-log.csv", lines("id_job,state", "1e3,3"), "id_not_exact"),
    ],
)
def test_what_is_bad_in_one_file_ends_in_code_3_with_its_reason_in_the_report(here, capfd, name, content, reason):
    write(here, f"in/{name}", content)
    code, report, err = ingest(capfd)
    assert code == 3
    assert err.startswith("partly done (")
    assert f"{reason} {report['reasons'][reason]}" in err
    assert err.endswith("); `jobwatt lake reasons --lake lake` says where and why\n")
    assert report["tables"]["gpu_samples"] >= 20


def reasons(capfd: pytest.CaptureFixture[str], *options: str) -> list[dict[str, object]]:
    capfd.readouterr()
    assert run(["lake", "reasons", "--lake", "lake", "--format", "json", *options]) == 0
    return json.loads(capfd.readouterr().out)


def test_the_reasons_of_an_ingest_name_file_line_and_text_and_what_the_code_means(here, capfd):
    bad = gpu_row(21, "abc")
    write(here, "in/gpu/0001/102-n1.csv", gpu_file(*ROWS, gpu_row(20, "N/A"), bad, gpu_row(22, "xyz"), gpu_row(900)))
    write(here, "in/gpu/0001/103-n1.csv", gpu_file(*ROWS).replace("timestamp", "when"))
    ingest(capfd)
    whole, rows, cells = reasons(capfd)
    assert (whole["file"], whole["reason"], whole["detail"]) == ("gpu/0001/103-n1.csv", "missing_column", "timestamp")
    assert (whole["count"], whole["rows_quarantined"], whole["line"], whole["raw"]) == (20, 20, None, None)
    assert (rows["file"], rows["reason"], rows["detail"]) == ("gpu/0001/102-n1.csv", "wrong_type", "power_w abc")
    assert (rows["count"], rows["rows_quarantined"], rows["line"], rows["raw"]) == (2, 2, 23, bad)
    assert rows["meaning"].startswith("a cell is not a number where one is due")
    assert (cells["reason"], cells["detail"], cells["count"]) == ("missing_value", "power_w", 1)
    assert (cells["rows_quarantined"], cells["line"]) == (0, None)


def test_what_is_worth_a_remark_only_is_shown_where_it_is_asked_for(here, capfd):
    write(here, "in/gpu/0001/102-n1.csv", gpu_file(gpu_row(0), gpu_row(60), "prose"))
    ingest(capfd)
    assert [each["reason"] for each in reasons(capfd)] == ["too_few_fields"]
    assert [each["reason"] for each in reasons(capfd, "--reason", "gap")] == ["gap"]
    assert {each["reason"] for each in reasons(capfd, "--notices")} == {"gap", "too_few_fields"}
    assert reasons(capfd, "--notices", "--cluster", "elsewhere") == []
    assert run(["lake", "reasons", "--lake", "lake", "--reason", "no_code"]) == 2


def test_rows_that_were_found_out_when_series_were_joined_are_told_once(here, capfd):
    write(here, "in/gpu/0002/101-n1.csv", gpu_file(*ROWS[5:8]))
    ingest(capfd)
    found = {(each["file"], each["reason"]): each["count"] for each in reasons(capfd)}
    assert found["gpu/0002/101-n1.csv", "repeated_time"] == 3
    assert len(reasons(capfd)) == len(found) == 3  # and that two files have the series, of each


@pytest.mark.parametrize(
    "content",
    [
        gpu_file(*[gpu_row(i, "[Not Supported]") for i in range(5)]),
        gpu_file(*[row + ",7" for row in ROWS], header=f"{HEADER},fan_pct"),
        gpu_file(gpu_row(0), gpu_row(60)),
        gpu_file(*ROWS).replace("\n", "\r\n"),
        "\ufeff" + gpu_file(*ROWS),
        gpu_file(),
    ],
)
def test_what_is_merely_worth_a_remark_ends_in_code_0(here, capfd, content):
    write(here, "in/gpu/0001/102-n1.csv", content)
    assert ingest(capfd)[0] == 0


def test_a_refused_file_makes_every_ingest_end_in_code_3_and_changes_the_lake_once(here, capfd):
    write(here, "in/other.csv", "a,b\n1,2\n")
    first = ingest(capfd)
    again = ingest(capfd)
    assert (first[0], again[0]) == (3, 3)
    assert first[1]["generation"] == again[1]["generation"] == 1
    assert (first[1]["reasons"], again[1]["reasons"]) == ({"unknown_file": 1}, {"unknown_file": 1})
    assert (again[1]["rows_unchanged"], again[1]["rows_in"]) == (21, 21)


def test_a_quarantined_row_makes_the_ingest_that_met_it_end_in_code_3_and_the_next_in_code_0(here, capfd):
    write(here, "in/gpu/0001/102-n1.csv", gpu_file("prose"))
    assert [ingest(capfd)[0] for _ in range(2)] == [3, 0]


def test_a_shrunken_file_ends_in_code_3_and_by_force_in_code_0(here, capfd):
    ingest(capfd)
    write(here, f"in/{GPU_FILE}", gpu_file(*ROWS[:5]))
    code, report, _ = ingest(capfd)
    assert (code, report["reasons"], report["tables"]["gpu_samples"]) == (3, {"shrunken": 1}, 20)
    code, report, _ = ingest(capfd, "in", "--force")
    assert (code, report["tables"]["gpu_samples"]) == (0, 5)


def test_an_archive_cut_short_ends_in_code_3_and_one_cut_at_its_start_in_code_1(here, capfd):
    whole = pack(here / "in", here / "in.tar.zst").read_bytes()
    (here / "half.tar").write_bytes(pack(here / "in", here / "in.tar").read_bytes()[:1000])
    code, report, _ = ingest(capfd, "half.tar")
    assert (code, "truncated" in report["reasons"]) == (3, True)
    (here / "cut.tar.zst").write_bytes(whole[:20])
    code, report, err = ingest(capfd, "cut.tar.zst")
    assert (code, report) == (1, {})
    assert "cut.tar.zst: cannot be read as a tar archive (the file ends inside a zstd frame)" in err


def test_a_member_over_the_limit_is_refused_with_code_3(here, capfd):
    code, _, err = ingest(capfd, "in", "--max-member-gib", "0.000001")
    assert (code, err.count("\n")) == (1, 1)
    assert "none of its 1 files can be taken: gpu/0001/101-n1.csv (too_large: 1167 bytes, the limit is 1073)" in err
    write(here, "in/gpu/0001/102-n1.csv", gpu_file(ROWS[0]))
    code, report, _ = ingest(capfd, "in", "--max-member-gib", "0.000001")
    assert (code, report["reasons"], report["tables"]["gpu_samples"]) == (3, {"too_large": 1}, 1)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("empty", "no table of the Datacenter Challenge or HPCA'22 layout found"),
        ("prose.tar.gz", "prose.tar.gz: cannot be read as a tar archive"),
        ("prose.tar", "prose.tar: cannot be read as a tar archive"),
        ("prose.txt", "no table of the Datacenter Challenge"),
        ("nowhere.tar", "nowhere.tar: no such file or folder"),
    ],
)
def test_a_source_that_is_none_ends_in_code_1_and_one_line_and_leaves_no_lake(here, capfd, source, says):
    (here / "empty").mkdir()
    for name in ("prose.tar", "prose.tar.gz", "prose.txt"):
        (here / name).write_text("It was a dark and stormy night.\n" * 50)
    code, report, err = ingest(capfd, source)
    assert (code, report) == (1, {})
    assert says in err
    assert err.count("\n") == 1
    assert not (here / "lake").exists()


def test_a_changed_file_whose_companion_is_not_at_hand_ends_in_code_3_and_its_old_rows_stay(here, capfd):
    write(here, "in/gpu/0002/101-n1.csv", gpu_file(gpu_row(30)))
    ingest(capfd)
    (here / "in/gpu/0002/101-n1.csv").unlink()
    write(here, f"in/{GPU_FILE}", gpu_file(*ROWS, gpu_row(25)))
    code, report, _ = ingest(capfd)
    assert (code, report["reasons"], report["tables"]["gpu_samples"]) == (3, {"companion_missing": 1}, 21)
    assert run(["lake", "check", "--lake", "lake"]) == 0
