from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.collectors.spool import HEADERS, SYNC_S, Lock, check_node, default_node, is_spool, recover, row, write_whole
from ingest.errors import SpoolBusyError, SpoolError
from tests.clocks import Clocks
from tests.spools import open_spool, read_rows

EVENT = "1.0,n1,gpu,late,1,0.02,\n"


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.glob("*/*"))


def test_rows_are_on_disk_after_a_sync_and_the_segment_gets_its_name_when_it_is_closed(tmp_path):
    spool = open_spool(tmp_path)
    spool.append("events", EVENT)
    spool.sync()
    (opened,) = tmp_path.glob("events/*")
    assert re.fullmatch(r"n1-20270115T080000\.000000Z-000001\.csv\.open", opened.name)
    assert opened.read_text() == HEADERS["events"] + "\n" + EVENT
    spool.close()
    assert names(tmp_path) == [f"events/{opened.name.removesuffix('.open')}"]
    assert read_rows(tmp_path, "events")[0]["event"] == "late"


def test_a_segment_is_closed_when_it_is_old_enough(tmp_path):
    clocks = Clocks()
    spool = open_spool(tmp_path, clocks, segment_s=20.0)
    for _ in range(5):
        spool.append("events", EVENT)
        spool.sync()
        clocks.wait(10.0)
    assert [name.endswith(".open") for name in names(tmp_path)] == [False, True]
    spool.close()
    assert [len(read_rows(tmp_path, "events", pattern)) for pattern in ("*1.csv", "*2.csv")] == [3, 2]


def test_a_segment_is_closed_when_nothing_more_comes(tmp_path):
    clocks = Clocks()
    spool = open_spool(tmp_path, clocks)
    spool.append("labels", "1,x\n")
    spool.sync()
    clocks.wait(20.0)
    spool.sync()
    assert [name.endswith(".csv") for name in names(tmp_path)] == [True]
    spool.close()


def test_a_segment_is_closed_when_it_is_large_enough(tmp_path):
    spool = open_spool(tmp_path, segment_bytes=1000)
    for _ in range(100):
        spool.append("events", EVENT)
        spool.sync()
    spool.close()
    sizes = [path.stat().st_size for path in tmp_path.glob("events/*.csv")]
    assert len(sizes) > 2
    assert max(sizes) < 1000 + len(EVENT)
    assert len(read_rows(tmp_path, "events")) == 100


def test_a_spool_without_rows_has_no_segments(tmp_path):
    spool = open_spool(tmp_path)
    spool.sync()
    spool.close()
    assert names(tmp_path) == []
    assert json.loads((tmp_path / "spool.json").read_text()) == {"format": "jobwatt-spool", "version": 1}


@given(cut=st.integers(min_value=0, max_value=len(HEADERS["events"]) + 1 + 3 * len(EVENT)), zeros=st.booleans())
def test_a_segment_cut_anywhere_is_recovered_with_every_whole_row(tmp_path_factory, cut, zeros):
    root = tmp_path_factory.mktemp("spool")
    whole = HEADERS["events"] + "\n" + 3 * EVENT
    folder = root / "events"
    folder.mkdir()
    tail = b"\0" * 512 if zeros else b""
    (folder / "n1-x-000001.csv.open").write_bytes(whole.encode()[:cut] + tail)
    closed = recover(root)
    rows = max(0, (cut - len(HEADERS["events"]) - 1) // len(EVENT))
    assert [path.name for path in closed] == (["n1-x-000001.csv"] if rows else [])
    assert len(read_rows(root, "events")) == rows
    assert not list(root.glob("*/*.open"))
    assert recover(root) == []


def test_a_new_collector_recovers_what_a_killed_one_left(tmp_path):
    killed = open_spool(tmp_path)
    killed.append("events", EVENT)
    killed.sync()
    os.close(killed._lock._file)  # the kernel does so for a killed process
    with next(tmp_path.glob("events/*.open")).open("a") as file:
        file.write("1.0,n1,gp")
    spool = open_spool(tmp_path, Clocks(wall_s=1_800_000_100.0))
    assert [path.suffix for path in spool.recovered] == [".csv"]
    assert len(read_rows(tmp_path, "events")) == 1
    spool.close()


def test_a_second_collector_is_refused_and_told_who_has_the_spool(tmp_path):
    spool = open_spool(tmp_path)
    with pytest.raises(SpoolBusyError, match=rf'another collector.*"pid": {os.getpid()}'):
        open_spool(tmp_path)
    spool.close()
    open_spool(tmp_path).close()


def test_a_collector_waits_for_a_follower_that_has_the_lock_for_a_moment(tmp_path):
    open_spool(tmp_path).close()
    held = Lock(tmp_path)
    threading.Timer(0.3, held.release).start()
    open_spool(tmp_path).close()


def test_a_folder_of_other_files_is_not_made_a_spool(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(SpoolError, match=r"no spool\.json; give an empty folder"):
        open_spool(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_start_that_was_killed_left_half_made_does_not_hinder_the_next(tmp_path):
    for name in (".spool.json.part", ".spool.json.77.part", "LOCK", "LOCK-follower"):
        (tmp_path / name).write_text("")
    open_spool(tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LOCK", "LOCK-follower", "spool.json"]


def test_two_that_start_at_once_in_a_new_folder_do_not_refuse_it(tmp_path):
    problems: list[Exception] = []

    def start(root: Path, together: threading.Barrier) -> None:
        together.wait()
        try:
            open_spool(root).close()
        except Exception as error:  # noqa: BLE001 (whatever it is, the test tells it)
            problems.append(error)

    for number in range(30):
        together = threading.Barrier(2)
        threads = [threading.Thread(target=start, args=(tmp_path / str(number), together)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []


@pytest.mark.parametrize("content", ['{"format": "jobwatt-spool", "version": 2}', "not JSON", "[]"])
def test_a_spool_of_another_version_is_left_alone(tmp_path, content):
    (tmp_path / "spool.json").write_text(content)
    with pytest.raises(SpoolError, match=r"spool\.json"):
        open_spool(tmp_path)


def test_a_folder_that_may_not_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="file"):
        open_spool(tmp_path / "file" / "spool")


def test_nothing_is_lost_between_threads_that_append_and_one_that_syncs(tmp_path):
    spool = open_spool(tmp_path)

    def work(number: int) -> None:
        for place in range(500):
            spool.append("labels", f"{number},{place}\n")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        spool.sync()
    spool.close()
    found = [(row["id_job"], row["model"]) for row in read_rows(tmp_path, "labels")]
    assert sorted(found) == sorted((str(n), str(p)) for n in range(4) for p in range(500))


def test_rows_that_find_no_room_in_memory_are_dropped_and_counted(tmp_path):
    spool = open_spool(tmp_path, most_pending=3)
    for number in range(5):
        spool.append("labels", f"{number},x\n")
    assert spool.dropped["labels"] == 2
    spool.close()
    assert [row["id_job"] for row in read_rows(tmp_path, "labels")] == ["0", "1", "2"]


def test_a_full_disk_is_said_and_every_whole_row_up_to_there_stays(tmp_path):
    # a limit on the size of files stands for a full disk: a write stops in the middle of a row
    program = """
import resource, sys
from pathlib import Path
from ingest.collectors.spool import Spool
from ingest.errors import SpoolError
spool = Spool(Path(sys.argv[1]), "n1")
spool.append("labels", "0,first\\n"); spool.sync()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for number in range(1, 200):
    spool.append("labels", f"{number},{'x' * 20}\\n")
try:
    spool.sync()
except SpoolError as error:
    print(error)
spool.append("labels", "999,x\\n")
spool.close()
print(spool.dropped["labels"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "no space left" in done.stdout
    assert "what was written stays" in done.stdout
    rows = read_rows(tmp_path, "labels")
    assert 20 < len(rows) < 60
    assert [row["id_job"] for row in rows] == [str(number) for number in range(len(rows))]
    assert not list(tmp_path.glob("*/*.open"))
    assert int(done.stdout.split()[-1]) == 201 - len(rows)


@given(st.lists(st.none() | st.text() | st.integers(), min_size=2, max_size=5))
def test_a_row_is_read_back_as_it_was_on_one_line(values):
    line = row(values)
    assert line.count("\n") == 1
    (cells,) = csv.reader(io.StringIO(line))
    plain = ["" if value is None else str(value) for value in values]
    expected = ["".join(letter if letter.isprintable() else " " for letter in text) for text in plain]
    assert cells == expected


def test_a_file_that_is_written_whole_leaves_nothing_beside_it(tmp_path):
    write_whole(tmp_path / "a.csv", "one\n")
    write_whole(tmp_path / "a.csv", "two\n")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["two\n"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "-n", "n" * 101])
def test_a_node_name_that_cannot_stand_in_a_file_name_is_refused(name):
    with pytest.raises(ValueError, match="give letters, digits"):
        check_node(name)


def test_the_default_node_is_a_name_that_is_taken():
    assert check_node(default_node())


def test_two_runs_in_one_spool_never_use_one_name(tmp_path):
    first = open_spool(tmp_path)
    taken = {first.next_name() for _ in range(3)}
    first.close()
    second = open_spool(tmp_path, Clocks(wall_s=1_800_000_000.000001))
    assert taken.isdisjoint({second.next_name() for _ in range(3)})
    second.close()


def test_numbers_begin_anew_under_a_new_start_before_they_outgrow_six_digits(tmp_path):
    clocks = Clocks()
    spool = open_spool(tmp_path, clocks)
    spool._seq = 999_998
    clocks.wait(5.0)
    names = [spool.next_name().removeprefix("n1-20270115T") for _ in range(2)]
    assert names == ["080000.000000Z-999999.csv", "080005.000000Z-000001.csv"]
    spool.close()


def test_collectors_import_only_the_standard_library_until_a_gpu_or_metrics_are_asked_for():
    program = "import sys, ingest.collectors.run; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"polars", "pyarrow", "numpy", "dask", "click", "pynvml", "prometheus_client", "psutil", "xxhash"}
    assert "ingest" in loaded
    assert not loaded & heavy


def test_the_root_of_a_file_system_of_its_own_can_be_a_spool(tmp_path):
    (tmp_path / "lost+found").mkdir(mode=0o700)
    open_spool(tmp_path).close()
    assert is_spool(tmp_path)


def test_the_readme_says_how_often_rows_are_synced():
    readme = " ".join((Path(__file__).parents[3] / "README.md").read_text("utf-8").split())
    assert f"Rows are synced to disk every {SYNC_S:g} s" in readme
