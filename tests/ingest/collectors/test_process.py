from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.collectors.process import Process, ProcessCollector, Usage, read_process, spent, tree
from ingest.collectors.spool import Spool
from ingest.errors import HardwareError
from tests.recorded_proc import Told, remove_process, write_cgroup, write_process, write_uptime
from tests.spools import open_spool, read_rows

STEP = "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0"
CGROUP = "fs/cgroup/system.slice/slurmstepd.scope/job_7/step_0/user/task_0"


class Node:
    """A recorded node on which a test lets time pass."""

    def __init__(self, root: Path) -> None:
        self.root, self.proc, self.sys = root, root / "proc", root / "sys"
        self.spool = open_spool(root / "spool")
        self.collector = ProcessCollector(self.spool, self.proc, self.sys, wall=lambda: 1_800_000_000.25)

    def at(self, uptime_s: float, *processes: Told) -> None:
        """Write how the node looks at a time."""
        write_uptime(self.proc, uptime_s)
        for told in processes:
            write_process(self.proc, told)

    def rows(self) -> list[dict[str, str]]:
        """Close the spool and return its rows."""
        self.spool.close()
        return read_rows(self.spool.root, "process")


@pytest.fixture
def node(tmp_path):
    """A node that has been up for 1000 s, its collector begun."""
    found = Node(tmp_path)
    found.at(1000.0)
    found.collector.begin()
    return found


def test_a_slurm_task_is_told_in_the_units_of_slurms_profile(node):
    write_cgroup(node.sys, CGROUP, [10])
    (node.sys / "devices/system/cpu/cpu3/cpufreq").mkdir(parents=True)
    (node.sys / "devices/system/cpu/cpu3/cpufreq/scaling_cur_freq").write_text("2100000\n")
    node.at(1010.0, Told(10, started_s=500.0, cpu_s=90.0, faults=3, read=10 * 2**20, write=0, cgroup=STEP, core=3))
    node.collector.tick()
    told = Told(10, started_s=500.0, cpu_s=105.0, faults=5, read=12 * 2**20, write=2**19, cgroup=STEP, core=3)
    node.at(1020.0, told)
    node.collector.tick()
    first, second = node.rows()
    assert second == {
        "id_job": "7",
        "Step": "0",
        "Node": "n1",
        "Series": "Task_0",
        "ElapsedTime": "520.000",
        "EpochTime": "1800000000.250",
        "CPUFrequency": "2100000",
        "CPUTime": "15.00",
        "CPUUtilization": "150.0",
        "RSS": "8192",
        "VMSize": "40960",
        "Pages": "5",
        "ReadMB": "2.000",
        "WriteMB": "0.500",
    }
    # what an older job used before the collector came is not its to tell: missing, not 0
    assert [first[name] for name in ("CPUTime", "CPUUtilization", "ReadMB", "WriteMB")] == ["", "", "", ""]
    assert first["RSS"] == "8192"


def test_a_job_that_began_since_the_last_look_is_told_from_its_beginning(node):
    write_cgroup(node.sys, CGROUP, [10])
    node.at(1010.0, Told(10, started_s=1006.0, cpu_s=2.0, read=2**20, cgroup=STEP))
    node.collector.tick()
    (row,) = node.rows()
    assert (row["ElapsedTime"], row["CPUTime"], row["CPUUtilization"], row["ReadMB"]) == (
        "4.000",
        "2.00",
        "50.0",
        "1.000",
    )


def test_a_child_that_ends_makes_neither_a_spike_nor_a_negative_value(node):
    node.collector.add(1, 10)
    parent = Told(10, started_s=1000.0, cpu_s=1.0, read=100 * 2**20)
    child = Told(11, parent=10, started_s=1001.0, cpu_s=50.0, faults=9, read=500 * 2**20)
    node.at(1010.0, parent, child)
    node.collector.tick()
    remove_process(node.proc, 11)
    # the kernel hands the reaped child's 51 s, 10 faults and 501 MiB to its parent's totals
    reaped = Told(10, started_s=1000.0, cpu_s=2.0, children_cpu_s=51.0, children_faults=10, read=601 * 2**20)
    node.at(1020.0, reaped)
    node.collector.tick()
    first, second = node.rows()
    assert (first["CPUTime"], first["ReadMB"], first["Pages"]) == ("51.00", "600.000", "9")
    assert (second["CPUTime"], second["ReadMB"], second["Pages"]) == ("2.00", "1.000", "10")


def test_a_child_that_lived_between_two_looks_counts(node):
    node.collector.add(1, 10)
    node.at(1010.0, Told(10, started_s=1000.0, cpu_s=1.0))
    node.collector.tick()
    node.at(1020.0, Told(10, started_s=1000.0, cpu_s=1.0, children_cpu_s=7.0))
    node.collector.tick()
    assert node.rows()[1]["CPUTime"] == "7.00"


def test_a_new_process_under_an_old_number_counts_from_its_own_beginning(node):
    node.collector.add(1, 10)
    node.at(1010.0, Told(10, started_s=1000.0, cpu_s=1.0), Told(11, parent=10, started_s=1001.0, cpu_s=30.0))
    node.collector.tick()
    node.at(
        1020.0,
        Told(10, started_s=1000.0, cpu_s=1.0, children_cpu_s=30.0),
        Told(11, parent=10, started_s=1015.0, cpu_s=2.0),
    )
    node.collector.tick()
    assert node.rows()[1]["CPUTime"] == "2.00"


def test_what_another_user_hides_is_missing_not_zero(node):
    node.collector.add(1, 10)
    node.at(1010.0, Told(10, started_s=1005.0, cpu_s=1.0, read=None, write=None))
    node.collector.tick()
    (row,) = node.rows()
    assert (row["CPUTime"], row["ReadMB"], row["WriteMB"]) == ("1.00", "", "")


def test_a_job_is_looked_at_a_last_time_as_a_zombie_without_memory(node):
    node.collector.add(1, 10)
    node.at(1010.0, Told(10, started_s=1005.0, cpu_s=1.0))
    node.collector.tick()
    node.at(1012.0, Told(10, started_s=1005.0, cpu_s=2.5, state="Z", vm=0, rss=0))
    node.collector.finish(1)
    node.at(1020.0)
    node.collector.tick()
    _, last = node.rows()
    assert (last["CPUTime"], last["RSS"], last["VMSize"]) == ("1.50", "", "")


def test_a_job_whose_processes_are_gone_has_no_row(node):
    node.collector.add(1, 10)
    node.collector.tick()
    assert node.rows() == []


def test_a_process_name_with_spaces_and_brackets_is_read(node):
    node.at(1010.0, Told(10, command="a) b (c", cpu_s=3.0))
    process = read_process(10, node.proc)
    assert process is not None
    assert process.usage.cpu_s == 3.0


def test_the_frequency_comes_from_cpuinfo_where_cpufreq_is_absent(node):
    (node.proc / "cpuinfo").write_text("processor\t: 0\nmodel name\t: x\ncpu MHz\t\t: 1996.248\n")
    node.collector.add(1, 10)
    node.at(1010.0, Told(10, started_s=1005.0))
    node.collector.tick()
    assert node.rows()[0]["CPUFrequency"] == "1996248"


def test_the_tree_of_a_process_is_all_that_descends_from_it(node):
    for pid, parent in ((10, 1), (11, 10), (12, 11), (13, 1), (14, 13)):
        write_process(node.proc, Told(pid, parent=parent))
    assert sorted(tree(10, node.proc)) == [10, 11, 12]


def test_without_proc_the_collector_says_so(tmp_path):
    collector = ProcessCollector(Spool(tmp_path / "spool", "n1"), tmp_path / "no", tmp_path)
    with pytest.raises(HardwareError, match=r"uptime cannot be read .* is .*no mounted"):
        collector.begin()
    collector.spool.close()


# -- against a kernel of our own ---------------------------------------------------------------------------------------


class Kernel:
    """Processes that work, fork, end and are reaped, with the totals that Linux would show; CPU in whole units."""

    def __init__(self) -> None:
        self.alive: dict[int, list[int]] = {1: [0, 0, 0]}  # own CPU, children's CPU, read bytes with reaped children's
        self.parents = {1: 0}
        self.used = self.read = 0
        self._next = 2

    def fork(self, parent: int) -> None:
        self.alive[self._next], self.parents[self._next] = [0, 0, 0], parent
        self._next += 1

    def work(self, pid: int, amount: int) -> None:
        self.alive[pid][0] += amount
        self.alive[pid][2] += 3 * amount
        self.used += amount
        self.read += 3 * amount

    def end(self, pid: int) -> None:
        """End a process and its children first, each reaped by its parent."""
        for child in [child for child, parent in self.parents.items() if parent == pid]:
            self.end(child)
        own, children, read = self.alive.pop(pid)
        parent = self.parents.pop(pid)
        self.alive[parent][1] += own + children
        self.alive[parent][2] += read

    def look(self) -> dict[int, Process]:
        return {
            pid: Process(self.parents[pid], False, pid, Usage(own, children, own, children, read, 0), 0, 0, 0)
            for pid, (own, children, read) in self.alive.items()
        }


ACTIONS = st.lists(st.tuples(st.sampled_from(["fork", "work", "end", "look"]), st.integers(0, 9), st.integers(0, 100)))


@given(ACTIONS)
def test_whatever_processes_do_the_intervals_add_up_to_what_was_used(actions):
    kernel = Kernel()
    before = kernel.look()
    cpu_s = read = faults = 0.0
    for action, which, amount in [*actions, ("look", 0, 0)]:
        pid = sorted(kernel.alive)[which % len(kernel.alive)]
        if action == "fork":
            kernel.fork(pid)
        elif action == "work":
            kernel.work(pid, amount)
        elif action == "end" and pid != 1:
            kernel.end(pid)
        elif action == "look":
            now = kernel.look()
            interval = spent(before, now)
            assert min(interval.cpu_s, interval.read_bytes or 0, interval.faults) >= 0
            cpu_s, faults, read = cpu_s + interval.cpu_s, faults + interval.faults, read + (interval.read_bytes or 0)
            before = now
    assert (cpu_s, faults, read) == (kernel.used, kernel.used, kernel.read)


def test_the_real_kernel_agrees(tmp_path):
    """A shell whose children burn CPU one after another: what is told adds up to what the shell used in all."""
    burn = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.25: pass"
    shell = f"for i in 1 2 3; do {sys.executable} -c '{burn}'; done; head -c 3000000 /dev/zero | cat > /dev/null; "
    shell += "exec sleep 60"
    spool = Spool(tmp_path, "n1")
    collector = ProcessCollector(spool)
    collector.begin()
    child = subprocess.Popen(["/bin/sh", "-c", shell])
    try:
        collector.add(1, child.pid)
        deadline_s = time.monotonic() + 60
        while Path(f"/proc/{child.pid}/comm").read_text() != "sleep\n" and time.monotonic() < deadline_s:
            collector.tick()
            time.sleep(0.05)
        collector.finish(1)
        process = read_process(child.pid, Path("/proc"))
    finally:
        child.kill()
        child.wait()
    spool.close()
    rows = read_rows(tmp_path, "process")
    assert len(rows) > 5
    assert process is not None
    told_s = sum(float(row["CPUTime"]) for row in rows)
    assert told_s == pytest.approx(process.usage.cpu_s + process.usage.children_cpu_s, abs=0.011)
    assert told_s > 0.75
    told_mib = sum(float(row["ReadMB"]) for row in rows)
    assert process.usage.read_bytes is not None
    assert told_mib == pytest.approx(process.usage.read_bytes / 2**20, abs=0.001 * len(rows))
    assert told_mib > 5.7
