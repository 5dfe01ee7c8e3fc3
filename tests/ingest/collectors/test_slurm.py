from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli import run
from ingest.collectors.sacct_command import Sacct, text_cells
from ingest.collectors.slurm import SlurmCollector
from ingest.errors import SourceError
from ingest.sources.sacct import Parsed, parse_header, parse_rows
from ingest.sources.sacct_files import FORMAT
from ingest.sources.sacct_json import parse_json

SAMPLES = Path(__file__).parents[2] / "samples" / "slurm"
OURS = (SAMPLES / "22.05-ours.sacct.txt").read_text("utf-8")
DAY_S = 86_400
NOW_S = 1_795_600_000
SNAPSHOT = "test-2026-11-24.sacct.txt"

_SACCT = """#!{python}
# sacct as far as the collector knows it: what it says lies beside it
import os, sys, time
folder = os.path.dirname(os.path.abspath(__file__))
with open(folder + "/asked", "a") as file:
    print(*sys.argv[1:], file=file)
if "--helpformat" in sys.argv:
    print(open(folder + "/helpformat").read())
    sys.exit()
kind = "json" if "--json" in sys.argv else "jobs" if "--jobs" in sys.argv else "text"
exec(open(folder + "/" + kind).read())
"""

Say = Callable[..., None]


@pytest.fixture
def sacct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a sacct first that says what files in its folder tell it to; give the folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sacct").write_text(_SACCT.format(python=sys.executable))
    (folder / "sacct").chmod(0o755)
    (folder / "helpformat").write_text("  ".join(FORMAT))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    says(folder, text=OURS, jobs=header())
    return folder


def says(folder: Path, **texts: str) -> None:
    """Have it print these texts: to ``text`` a question for a span of time, to ``jobs`` one for jobs, to ``json``."""
    for kind, text in texts.items():
        (folder / kind).write_text(f"sys.stdout.write({text!r})")


def does(folder: Path, code: str, *kinds: str) -> None:
    for kind in kinds or ("text", "jobs", "json"):
        (folder / kind).write_text(code)


def header() -> str:
    return "|".join(FORMAT) + "\n"


def job(number: int, submit: int, state: str = "COMPLETED", end: object = None) -> str:
    cells = dict.fromkeys(FORMAT, "")
    cells |= {"JobIDRaw": str(number), "JobID": str(number), "Cluster": "test", "State": state, "Submit": str(submit)}
    cells |= {"Start": str(submit + 1), "End": str(submit + 2 if end is None else end), "ExitCode": "0:0"}
    return "|".join(cells[name] for name in FORMAT) + "\n"


def look(spool: Path, *options: str) -> int:
    return run(["collect-slurm", "--spool", str(spool), "--once", *options])


def files(spool: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((spool / "jobs").glob("*"))}


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_what_sacct_says_is_kept_word_for_word_in_the_snapshot_of_its_day(sacct, tmp_path):
    assert look(tmp_path / "spool") == 0
    assert list(files(tmp_path / "spool")) == [SNAPSHOT]
    kept = files(tmp_path / "spool")[SNAPSHOT].decode()
    assert sorted(kept.splitlines()) == sorted(OURS.splitlines())
    assert json.loads((tmp_path / "spool" / "spool.json").read_text()) == {"format": "jobwatt-spool", "version": 1}


def test_a_snapshot_is_written_again_only_when_something_changed(sacct, tmp_path):
    spool = tmp_path / "spool"
    assert look(spool) == 0
    before = (spool / "jobs" / SNAPSHOT).stat()
    assert look(spool) == 0
    after = (spool / "jobs" / SNAPSHOT).stat()  # its time of access may be another: it was read
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def test_sacct_is_asked_in_utc_and_in_seconds_whatever_the_user_s_settings(sacct, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "America/St_Johns")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    does(
        sacct,
        f"open(folder + '/env', 'a').write(str([os.environ.get(n) for n in ('TZ', 'SLURM_TIME_FORMAT')]))\n"
        f"sys.stdout.write({OURS!r})",
        "text",
    )
    assert look(tmp_path / "spool") == 0
    assert (sacct / "env").read_text() == "['UTC', '%s']"


def test_jobs_go_to_the_day_of_their_submission_and_attempts_to_that_of_the_first(sacct, tmp_path):
    day = 20_000 * DAY_S
    says(sacct, text=header() + job(1, day - 1) + job(2, day) + job(3, day - 5, "REQUEUED") + job(3, day + 9))
    assert look(tmp_path / "spool") == 0
    by_file = {
        name: [line.split(b"|")[0] for line in text.splitlines()[1:]]
        for name, text in files(tmp_path / "spool").items()
    }
    assert by_file == {"test-2024-10-03.sacct.txt": [b"1", b"3", b"3"], "test-2024-10-04.sacct.txt": [b"2"]}


def test_a_job_that_runs_over_days_stays_in_its_snapshot_and_a_later_attempt_joins_it(sacct, tmp_path):
    spool, submit = tmp_path / "spool", 20_000 * DAY_S
    says(sacct, text=header() + job(5, submit, "REQUEUED"))
    assert look(spool) == 0
    says(sacct, text=header() + job(5, submit + 3 * DAY_S, "RUNNING", "Unknown"))
    assert look(spool) == 0
    says(sacct, text=header() + job(5, submit + 3 * DAY_S))
    assert look(spool) == 0
    assert list(files(spool)) == ["test-2024-10-04.sacct.txt"]
    assert files(spool)["test-2024-10-04.sacct.txt"].count(b"\n5|") == 2
    assert b"RUNNING" not in files(spool)["test-2024-10-04.sacct.txt"]


def test_a_job_that_ended_while_nobody_looked_is_asked_for_by_its_number(sacct, tmp_path):
    spool, submit = tmp_path / "spool", 20_000 * DAY_S
    says(sacct, text=header() + job(5, submit, "RUNNING", "Unknown") + job(6, submit))
    assert look(spool) == 0
    says(sacct, text=header(), jobs=header() + job(5, submit, "TIMEOUT"))
    assert look(spool) == 0
    assert "--jobs 5 " in (sacct / "asked").read_text()
    assert b"TIMEOUT" in files(spool)["test-2024-10-04.sacct.txt"]
    assert b"\n6|" in files(spool)["test-2024-10-04.sacct.txt"]


def test_after_a_pause_sacct_is_asked_from_before_it_on(sacct, tmp_path):
    spool = tmp_path / "spool"
    assert look(spool) == 0
    os.utime(spool / "jobs" / SNAPSHOT, (NOW_S - 9 * DAY_S, NOW_S - 9 * DAY_S))
    (sacct / "asked").unlink()
    collector = SlurmCollector(spool, Sacct(), since_s=60)
    collector.collect(NOW_S)
    collector.collect(NOW_S)
    starts = [line.split()[line.split().index("--starttime") + 1] for line in asked_spans(sacct)]
    assert starts == [in_utc(NOW_S - 9 * DAY_S - 3600), in_utc(NOW_S - 60)]


def in_utc(epoch_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(epoch_s))


@pytest.mark.parametrize("since", ["9999999d", f"{'9' * 400}d"], ids=["9999999d", "400 digits"])
def test_no_question_goes_back_to_before_there_was_slurm(sacct, tmp_path, since):
    assert look(tmp_path / "spool", "--since", since) == 0
    assert all("--starttime 1970-01-02T00:00:00 " in line for line in asked_spans(sacct))
    assert list(files(tmp_path / "spool")) == [SNAPSHOT]


def asked_spans(sacct: Path) -> list[str]:
    return [line for line in (sacct / "asked").read_text().splitlines() if "--starttime" in line]


def test_a_version_of_slurm_that_lacks_a_column_is_asked_for_the_others(sacct, tmp_path):
    columns = [name for name in FORMAT if name not in ("Flags", "Constraints")]
    (sacct / "helpformat").write_text(" ".join(columns))
    row = dict(zip(FORMAT, job(4, NOW_S).strip().split("|"), strict=True))
    says(sacct, text="|".join(columns) + "\n" + "|".join(row[name] for name in columns) + "\n")
    assert look(tmp_path / "spool") == 0
    assert files(tmp_path / "spool")[SNAPSHOT.replace("24", "25")].decode() == header() + job(4, NOW_S)


# -- what sacct does not say -------------------------------------------------------------------------------------------

FAULTS = {
    "an error": ("print('sacct: error: Connection refused', file=sys.stderr); sys.exit(1)", "Connection refused"),
    "a silent end": ("sys.exit(3)", "exit code 3"),
    "a hang": ("time.sleep(60)", "did not answer within 0.5 s"),
    "a child that hangs": ("import subprocess; subprocess.run(['sleep', '60'])", "did not answer within 0.5 s"),
    "half a line": (f"sys.stdout.write({OURS[:-9]!r})", "ends in the middle of a line"),
    "another header": ("print('JobID|State')", "header"),
    "nothing": ("pass", "header"),
    "no text": ("sys.stdout.buffer.write(bytes(range(256)))", "header"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_sacct_is_one_line_and_what_was_gathered_stays(fault, sacct, tmp_path, capfd):
    spool = tmp_path / "spool"
    assert look(spool) == 0
    before = files(spool)
    capfd.readouterr()
    does(sacct, FAULTS[fault][0])
    began = time.monotonic()
    assert look(spool, "--timeout", "0.5") == 1
    assert time.monotonic() - began < 10
    said = capfd.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("jobwatt: sacct")
    assert FAULTS[fault][1] in said.err
    assert files(spool) == before


def test_no_sacct_is_said_in_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look(tmp_path / "spool") == 1
    assert capfd.readouterr().err == "jobwatt: there is no sacct on this machine; run it where Slurm is [no_sacct]\n"


def test_json_is_taken_where_the_text_cannot_be_read_and_means_the_same(sacct, tmp_path, capfd):
    answer = (SAMPLES / "24.05.sacct.json").read_text()
    does(sacct, "print('sacct: error: Invalid field requested', file=sys.stderr); sys.exit(1)", "text", "jobs")
    says(sacct, json=answer)
    assert look(tmp_path / "spool") == 0
    assert "Invalid field requested; its JSON was taken" in capfd.readouterr().err
    (name,) = files(tmp_path / "spool")
    assert name == "big-2025-04-09.sacct.txt"
    head, *lines = files(tmp_path / "spool")[name].decode().splitlines()
    parsed = Parsed()
    parse_rows(parse_header(head), enumerate(lines, 2), parsed)
    assert parsed.rejected == []
    for (_, _, kept), (_, _, told) in zip(parsed.rows, parse_json(answer).rows, strict=True):
        for column in told.keys() - {"kill_user", "array_max_tasks", "restarts"}:
            assert kept.get(column) == told[column], column


def test_lines_of_the_text_that_make_no_sense_are_left_out_where_there_is_no_json(sacct, tmp_path, capfd):
    says(sacct, text=header() + job(1, NOW_S) + "slurm says hello\n" + job(2, NOW_S))
    does(sacct, "sys.exit(1)", "json")
    assert look(tmp_path / "spool") == 0
    assert "1 of sacct's lines cannot be read" in capfd.readouterr().err
    (text,) = files(tmp_path / "spool").values()
    assert [line.split(b"|")[0] for line in text.splitlines()[1:]] == [b"1", b"2"]


def test_a_snapshot_that_somebody_damaged_is_said_and_left_alone(sacct, tmp_path, capfd):
    assert look(tmp_path / "spool") == 0
    (tmp_path / "spool" / "jobs" / SNAPSHOT).write_text("no|snapshot\n1|2\n")
    assert look(tmp_path / "spool") == 1
    assert "is no snapshot of this collector" in capfd.readouterr().err
    assert files(tmp_path / "spool")[SNAPSHOT] == b"no|snapshot\n1|2\n"


def test_a_folder_of_other_files_is_not_made_a_spool(sacct, tmp_path, capfd):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    assert look(tmp_path / "home") == 1
    assert "holds other files and no spool.json; give an empty folder" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.tex"]


# -- as a service ------------------------------------------------------------------------------------------------------


def start(spool: Path, *options: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("jobwatt")), "collect-slurm", "--spool", str(spool), "--every", "1"]
    return subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)


def wait_for(is_true: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_service_outlives_faults_tells_each_once_and_ends_cleanly_when_told(sacct, tmp_path):
    spool = tmp_path / "spool"
    does(sacct, FAULTS["an error"][0])
    with start(spool) as process:
        try:
            wait_for(lambda: (sacct / "asked").exists() and len(asked_spans(sacct)) >= 2)
            says(sacct, text=OURS, jobs=header())
            wait_for((spool / "jobs" / SNAPSHOT).exists)
            assert look(spool) == 1  # one collector at a time
            wait_for(lambda: len(asked_spans(sacct)) >= 5)
        finally:
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
    assert process.returncode == 0
    assert (
        said
        == "jobwatt: sacct failed: sacct: error: Connection refused [sacct_failed]\njobwatt: sacct answers well again\n"
    )


def test_a_full_disk_ends_it_with_one_line_that_names_the_file_and_what_was_gathered_stays(sacct, tmp_path):
    spool = tmp_path / "spool"
    assert look(spool) == 0
    before = files(spool)
    says(sacct, text=OURS + "".join(job(900_000 + n, NOW_S - DAY_S // 2) for n in range(200)))
    words = [str(Path(sys.executable).with_name("jobwatt")), "collect-slurm", "--spool", str(spool), "--every", "1"]
    # a limit on the size of files stands for a full disk
    limited = ["bash", "-c", 'ulimit -f 12; exec "$@"', "bash", *words]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"jobwatt: {spool / 'jobs' / SNAPSHOT}: no space left (File too large); ")
    assert done.stderr.endswith(" [disk_full]\n")
    assert done.stderr.count("\n") == 1
    assert files(spool) == before


def test_a_killed_collector_leaves_whole_snapshots_and_the_next_one_goes_on(sacct, tmp_path):
    spool = tmp_path / "spool"
    says(sacct, text=header() + "".join(job(n, NOW_S + n) for n in range(2000)))
    for number in range(6):
        asked = (sacct / "asked").read_text() if (sacct / "asked").exists() else ""
        with start(spool) as process:
            wait_for(lambda asked=asked: (sacct / "asked").exists() and (sacct / "asked").read_text() != asked)
            time.sleep(0.05 * number)
            process.kill()
            process.communicate()
        for text in files(spool).values() if (spool / "jobs").exists() else []:
            assert text.endswith(b"\n")
    assert look(spool) == 0
    (text,) = [text for name, text in files(spool).items() if name.endswith(".txt")]
    assert text.count(b"\n") == 2001


def test_the_collector_runs_without_any_frame_library():
    heavy = {"polars", "pyarrow", "numpy", "dask", "click"}
    code = f"import sys, ingest.collectors.slurm; print(sorted({heavy} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True).stdout
    assert said == "[]\n"


def test_every_cell_of_our_columns_is_there_when_a_row_came_as_json():
    rows = [text_cells(row) for _, _, row in parse_json((SAMPLES / "22.05.sacct.json").read_text()).rows]
    assert {tuple(row) for row in rows} == {FORMAT}
    with pytest.raises(SourceError):
        Sacct(("no-such-sacct",)).ask(0)
