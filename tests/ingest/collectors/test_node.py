from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ingest.collectors.node import (
    NodeCollector,
    Rapl,
    parse_lustre_stats,
    parse_mountstats,
    rapl_energy_j,
    read_rapl,
    rise,
)
from tests.clocks import Clocks
from tests.recorded_proc import Told, write_process
from tests.spools import open_spool, read_rows

LUSTRE = """snapshot_time             1523008010.817348638 secs.nsecs
req_waittime              {count} samples [usec] 38 12345 2000 900000
req_active                {count} samples [reqs] 1 9 1100 1300
read_bytes                7 samples [bytes] 4096 4194304 8392704
obd_ping                  81 samples [usec] 100 200 9000 9000
"""

MOUNTSTATS = """device proc mounted on /proc with fstype proc
device server:/home mounted on /home with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.2
\tage:\t100
\tevents:\t1 2 3
\tper-op statistics
\t        NULL: 1 1 0 44 24 0 0 0 0
\t        READ: {reads} 5 0 800 90000 0 1 2 0
\t       WRITE: 4 4 0 800 400 0 1 2 0

device /dev/vda mounted on / with fstype ext4
device other:/data mounted on /data with fstype nfs statvers=1.1
\tper-op statistics
\t     GETATTR: 10 10 0 1000 1000 0 1 1 0
"""


def write_rapl(root: Path, zone: str, name: str, energy_uj: int, range_uj: int = 262_143_328_850) -> None:
    folder = root / "sys/class/powercap" / zone
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")


@pytest.fixture
def root(tmp_path):
    """The /proc and /sys of a node with Lustre, NFS and energy counters."""
    proc = tmp_path / "root" / "proc"
    proc.mkdir(parents=True)
    (proc / "loadavg").write_text("1.25 0.50 0.10 2/345 6789\n")
    (proc / "meminfo").write_text(
        "MemTotal:  100000 kB\nMemFree:  30000 kB\nActive: 5 kB\nInactive:  12000 kB\nInactive(anon): 7 kB\n"
    )
    write_process(proc, Told(10))
    write_process(proc, Told(11))
    (proc / "self").mkdir()
    return tmp_path / "root"


def write_counters(root: Path, rpcs: int, reads: int, energy_uj: int) -> None:
    for target in ("osc/lustre-OST0000-osc-ffff8800", "mdc/lustre-MDT0000-mdc-ffff8800"):
        folder = root / "proc/fs/lustre" / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stats").write_text(LUSTRE.format(count=rpcs))
    (root / "proc/self/mountstats").write_text(MOUNTSTATS.format(reads=reads))
    write_rapl(root, "intel-rapl:0", "package-0", energy_uj)
    write_rapl(root, "intel-rapl:0:0", "core", energy_uj // 2)
    write_rapl(root, "intel-rapl:0:1", "dram", energy_uj // 10)
    write_rapl(root, "intel-rapl:1", "psys", energy_uj * 2)


def test_a_row_has_levels_and_what_rose_since_the_last(root, tmp_path):
    clocks = Clocks()
    spool = open_spool(tmp_path / "spool", clocks)
    node = NodeCollector(spool, tmp_path, root, wall=clocks.wall, monotonic=clocks.monotonic)
    write_counters(root, rpcs=100, reads=5, energy_uj=1_000_000_000)
    node.begin()
    clocks.wait(10.0)
    write_counters(root, rpcs=130, reads=25, energy_uj=3_000_000_000)
    node.tick()
    spool.close()
    (row,) = read_rows(tmp_path / "spool", "node")
    owner = (root / "proc/10").stat().st_uid
    assert row == {
        "Node": "n1",
        "Time": "1800000010.000",
        "UserPIDCount": f"{owner}:2|",
        "FSlatency": "0.000000",
        "LoadAvg": "1.25",
        "MemoryFreeInactiveKB": "42000",
        "LustreRPCTotals": "60",
        "NfsOps": "20",
        "NodePowerW": "220.0",
    }
    assert node.latest == {
        "load": 1.25,
        "memory_free_bytes": 42000 * 1024,
        "filesystem_latency_seconds": 0.0,
        "power_watts": 220.0,
    }


def test_what_a_node_does_not_have_is_missing(tmp_path):
    spool = open_spool(tmp_path / "spool")
    node = NodeCollector(spool, None, tmp_path / "nothing")
    node.begin()
    node.tick()
    spool.close()
    (row,) = read_rows(tmp_path / "spool", "node")
    assert {name for name, value in row.items() if value} == {"Node", "Time"}


def test_the_probe_times_a_real_write_and_leaves_nothing(tmp_path):
    (tmp_path / "fs").mkdir()
    spool = open_spool(tmp_path / "spool")
    node = NodeCollector(spool, tmp_path / "fs")
    node.tick()
    spool.close()
    assert 0 < float(read_rows(tmp_path / "spool", "node")[0]["FSlatency"]) < 10
    assert list((tmp_path / "fs").iterdir()) == []


def test_a_file_system_that_cannot_be_written_is_told_and_its_latency_missing(tmp_path):
    spool = open_spool(tmp_path / "spool")
    node = NodeCollector(spool, tmp_path / "gone")
    node.tick()
    spool.close()
    assert "gone cannot be timed: No such file or directory" in node.problem
    assert read_rows(tmp_path / "spool", "node")[0]["FSlatency"] == ""


@pytest.mark.system
def test_a_file_system_that_can_only_be_read_is_told_and_does_not_end_the_collector(tmp_path):
    probe = tmp_path / "fs"
    probe.mkdir()
    spool = open_spool(tmp_path / "spool")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(probe)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    try:
        node = NodeCollector(spool, probe)
        node.tick()
    finally:
        subprocess.run(["umount", str(probe)], check=True)
    spool.close()
    assert "fs cannot be timed: Read-only file system" in node.problem
    assert read_rows(tmp_path / "spool", "node")[0]["FSlatency"] == ""


def test_rpcs_are_the_samples_of_the_waiting_time():
    assert parse_lustre_stats(LUSTRE.format(count=1234)) == 1234
    assert parse_lustre_stats("snapshot_time 1 secs.nsecs\n") == 0


def test_operations_are_counted_for_each_nfs_mount_and_no_other():
    assert parse_mountstats(MOUNTSTATS.format(reads=5)) == {"/home": 10, "/data": 10}
    assert parse_mountstats("") == {}


def test_a_counter_that_was_cleared_counts_from_zero_and_a_first_reading_tells_nothing():
    assert rise({}, {"a": 100}) is None
    assert rise({"a": 100}, {"a": 160}) == 60
    assert rise({"a": 100}, {"a": 7}) == 7
    assert rise({"a": 100}, {"a": 100, "b": 5}) == 5
    assert rise({"a": 100}, {}) is None


def test_an_energy_counter_that_wraps_around_goes_on():
    before = {"intel-rapl:0": Rapl(262_143_000_000, 262_143_328_850)}
    assert rapl_energy_j(before, {"intel-rapl:0": Rapl(671_150, 262_143_328_850)}, 30.0) == pytest.approx(1.0)
    assert rapl_energy_j({}, before, 30.0) is None
    assert rapl_energy_j(before, {**before, "intel-rapl:1": Rapl(0, 10**12)}, 30.0) is None


EPYC_UJ = 65_532_610_987
"""Where the energy counter of an AMD EPYC goes round: at 400 W within 164 s."""


def test_a_counter_that_goes_round_twice_between_two_rows_is_told_in_full(root, tmp_path):
    clocks = Clocks()
    spool = open_spool(tmp_path / "spool", clocks)
    node = NodeCollector(spool, None, root, wall=clocks.wall, monotonic=clocks.monotonic)
    write_rapl(root, "intel-rapl:0", "package-0", 60_000_000_000, EPYC_UJ)
    node.begin()
    for seconds in range(30, 330, 30):
        clocks.wait(30.0)
        write_rapl(root, "intel-rapl:0", "package-0", (60_000_000_000 + seconds * 400_000_000) % EPYC_UJ, EPYC_UJ)
        node.meter()
    node.tick()
    clocks.wait(300.0)  # nobody looked meanwhile, so that nobody knows how often it went round
    node.tick()
    spool.close()
    assert [row["NodePowerW"] for row in read_rows(tmp_path / "spool", "node")] == ["400.0", ""]


def test_energy_is_that_of_packages_and_memory(root):
    write_counters(root, 0, 0, 1000)
    assert read_rapl(root / "sys/class/powercap") == {
        "intel-rapl:0": Rapl(1000, 262_143_328_850),
        "intel-rapl:0:1": Rapl(100, 262_143_328_850),
    }
    assert read_rapl(root / "nothing") == {}
