from __future__ import annotations

import copy
import csv
import io
import threading
import time

import pynvml as nv
import pytest

from ingest.collectors.gpu import GpuCollector, GpuRow, Inventory, JobTable
from ingest.collectors.hardware import GpuReading, NvmlBackend
from ingest.collectors.replay import ReplayBackend, read_recording
from ingest.collectors.schedule import Events
from ingest.collectors.spool import HEADERS
from tests.clocks import Clocks
from tests.nvml_driver import H200, PlayedDriver
from tests.recorded_gpus import write_recording
from tests.recorded_proc import Told, write_process
from tests.spools import open_spool, read_rows


class Rig:
    """A spool, a clock, a table of jobs and a collector on some backend."""

    def __init__(self, root, backend, clocks, energy_s=10.0):
        self.root, self.clocks, self.jobs = root, clocks, JobTable()
        self.spool = open_spool(root, clocks)
        self.said: list[str] = []
        self.events = Events(self.spool, wall=clocks.wall, monotonic=clocks.monotonic, say=self.said.append)
        self.collector = GpuCollector(
            backend, self.spool, self.events, self.jobs, monotonic=clocks.monotonic, energy_s=energy_s
        )
        self.inventory = Inventory(
            backend,
            self.spool,
            self.events,
            self.jobs,
            proc=root / "proc",
            wall=clocks.wall,
            monotonic=clocks.monotonic,
        )

    def run(self, seconds: float) -> None:
        """Tick ten times a second."""
        for _ in range(round(seconds * 10)):
            self.collector.tick()
            self.clocks.wait(0.1)

    def rows(self, kind: str) -> list[dict[str, str]]:
        self.spool.sync()
        return read_rows(self.root, kind, "*.csv*")


@pytest.fixture
def replayed(tmp_path):
    """Two recorded GPUs of which one falls silent for three seconds."""
    clocks = Clocks()
    series = read_recording(write_recording(tmp_path / "recording", seconds=30.0))
    backend = ReplayBackend(series, wall=clocks.wall, monotonic=clocks.monotonic)
    return Rig(tmp_path / "spool", backend, clocks)


@pytest.fixture
def driver(monkeypatch):
    played = PlayedDriver([copy.deepcopy(H200), {**copy.deepcopy(H200), "UUID": "GPU-bbbb"}])
    monkeypatch.setattr(nv, "nvmlLib", played)
    monkeypatch.setattr(nv, "_nvmlGetFunctionPointer_cache", {})
    return played


@pytest.fixture
def live(driver, tmp_path):
    """Two GPUs of a played driver."""
    clocks = Clocks()
    return Rig(tmp_path / "spool", NvmlBackend(wall=clocks.wall, monotonic=clocks.monotonic), clocks)


def test_a_row_is_in_the_order_of_the_header_and_leaves_empty_what_is_missing():
    reading = GpuReading(1.5, 1, 2, 3, 4, 5, None, 7.25, 8, 9.0, 10, 11, 12, 13.0, 0)
    (cells,) = csv.DictReader(io.StringIO(HEADERS["gpu"] + "\n" + str(GpuRow(reading, "n1", 77, 0))))
    assert cells == {
        "timestamp": "1.500000",
        "node": "n1",
        "job_id": "77",
        "gpu_index": "0",
        "utilization_gpu_pct": "1",
        "utilization_memory_pct": "2",
        "memory_free_MiB": "3",
        "memory_used_MiB": "4",
        "temperature_gpu": "5",
        "temperature_memory": "",
        "power_draw_W": "7.25",
        "pcie_link_width_current": "8",
        "power_average_W": "9.0",
        "energy_mJ": "10",
        "clock_sm_MHz": "11",
        "clock_memory_MHz": "12",
        "enforced_power_limit_W": "13.0",
        "throttle_reasons": "0",
    }


def test_a_row_without_the_counter_has_an_empty_cell_for_it_and_a_node_may_be_called_none():
    reading = GpuReading(1.5, 1, 2, 3, 4, 5, 6, 7.25, 8, 9.0, None, 11, 12, 13.0, 0)
    assert str(GpuRow(reading, "None", None, 3)) == "1.500000,None,,3,1,2,3,4,5,6,7.25,8,9.0,,11,12,13.0,0\n"


def test_every_gpu_has_a_row_a_tick_with_what_was_recorded(replayed):
    replayed.run(2.0)
    rows = replayed.rows("gpu")
    assert len(rows) == 40
    assert {(row["gpu_index"], row["utilization_gpu_pct"]) for row in rows} == {("0", "50"), ("1", "51")}
    assert {row["power_draw_W"] for row in rows} == {"400.0"}
    assert {row["job_id"] for row in rows} == {""}
    assert float(rows[-1]["timestamp"]) == pytest.approx(1_800_000_001.9)


def test_a_gpu_that_disappears_has_no_rows_and_the_others_go_on(replayed):
    replayed.run(20.0)
    by_gpu = {index: [row for row in replayed.rows("gpu") if row["gpu_index"] == index] for index in "01"}
    assert len(by_gpu["0"]) == 200
    times = [float(row["timestamp"]) - 1_800_000_000 for row in by_gpu["1"]]
    assert [time for time in times if 4.1 < time < 13.9] == []
    assert max(times) == pytest.approx(19.9)
    lost, back = replayed.rows("events")
    assert (lost["event"], back["event"]) == ("sensor_lost", "sensor_back")
    assert lost["detail"].startswith("gpu_lost: GPU 1")
    assert lost["time"] == "1800000004.000000"


def test_a_lost_gpu_is_not_in_what_is_shown(replayed):
    replayed.run(5.0)
    assert set(replayed.collector.latest) == {0}


def test_nvml_losing_a_gpu_is_one_event_until_it_is_back(live, driver):
    live.run(1.0)
    driver.refuse(1, nv.NVML_ERROR_GPU_IS_LOST)
    live.run(15.0)
    driver.codes.clear()
    live.run(15.0)
    events = [(row["event"], row["detail"]) for row in live.rows("events")]
    assert events == [
        ("sensor_lost", "gpu_lost: GPU 1: GPU is lost"),
        ("sensor_back", "gpu_back: GPU 1 is back"),
    ]
    counts = [sum(row["gpu_index"] == index for row in live.rows("gpu")) for index in "01"]
    assert counts[0] == 310
    assert 10 + 95 <= counts[1] <= 10 + 155  # it is looked for every ten seconds


def test_a_lost_gpu_one_that_is_back_and_a_refused_permission_are_each_said_in_one_line(live, driver):
    driver.refuse(0, nv.NVML_ERROR_NO_PERMISSION, "MemoryInfo")
    live.run(1.0)
    driver.refuse(1, nv.NVML_ERROR_GPU_IS_LOST)
    live.run(15.0)
    driver.codes.clear()
    live.run(15.0)
    assert live.said == [
        "GPU 0, memory: Insufficient Permissions [no_permission]",
        "GPU 1: GPU is lost [gpu_lost]",
        "GPU 1 is back [gpu_back]",
    ]


def test_a_sensor_that_falls_silent_and_speaks_again_is_reported_and_missing_between(live, driver):
    live.run(0.5)
    driver.refuse(0, nv.NVML_ERROR_UNKNOWN, "Temperature")
    live.run(0.5)
    driver.codes.clear()
    live.run(0.5)
    events = [(row["event"], row["detail"]) for row in live.rows("events") if row["event"] != "error"]
    assert events == [("sensor_lost", "GPU 0 gpu_temp_c"), ("sensor_back", "GPU 0 gpu_temp_c")]
    assert [row["temperature_gpu"] for row in live.rows("gpu") if row["gpu_index"] == "0"] == ["41"] * 5 + [""] * 5 + [
        "41"
    ] * 5


def test_a_sensor_that_was_never_there_is_no_event(live, driver):
    del driver.gpus[0]["fields"][82]
    live.run(1.0)
    assert live.rows("events") == []


def test_a_refused_permission_is_recorded_once(live, driver):
    driver.refuse(0, nv.NVML_ERROR_NO_PERMISSION, "MemoryInfo")
    live.run(2.0)
    (event,) = live.rows("events")
    assert (event["event"], event["detail"]) == (
        "error",
        "no_permission: GPU 0, memory: Insufficient Permissions",
    )
    assert {row["memory_used_MiB"] for row in live.rows("gpu") if row["gpu_index"] == "0"} == {""}


def test_a_gpu_carries_the_job_whose_processes_use_it(live, driver, tmp_path):
    slurm = "0::/system.slice/slurmstepd.scope/job_{}/step_0/user/task_0"
    proc = tmp_path / "spool" / "proc"
    for pid, job in ((100, 7), (101, 7), (102, 8)):
        write_process(proc, Told(pid, cgroup=slurm.format(job)))
    write_process(proc, Told(103, environment=b"HOME=/\0"))
    for pids, expected in (((100, 101), "7"), ((100, 102), ""), ((100, 103), "7"), ((103,), ""), ((), "")):
        driver.gpus[0]["ComputeRunningProcesses_v3"] = pids
        live.inventory.tick()
        live.collector.tick()
        assert live.rows("gpu")[-2]["job_id"] == expected, pids
    driver.gpus[0]["ComputeRunningProcesses_v3"] = (100, 102)
    live.inventory.tick()
    assert live.jobs.jobs_of(0) == {7, 8}


def test_a_refusal_to_name_the_processes_leaves_the_gpu_its_job(live, driver):
    write_process(live.root / "proc", Told(100, cgroup="0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0"))
    driver.gpus[0]["ComputeRunningProcesses_v3"] = (100,)
    for code in (0, nv.NVML_ERROR_UNKNOWN, 0):
        driver.codes = {(0, "ComputeRunningProcesses_v3"): code}
        live.inventory.tick()
        assert live.jobs.job_of(0) == 7
    driver.gpus[0]["ComputeRunningProcesses_v3"] = ()
    live.inventory.tick()
    assert live.jobs.job_of(0) is None


@pytest.mark.parametrize("code", [nv.NVML_ERROR_UNKNOWN, nv.NVML_ERROR_UNINITIALIZED, nv.NVML_ERROR_INVALID_ARGUMENT])
def test_a_gpu_that_refuses_everything_has_no_rows_and_a_handful_of_events(live, driver, code):
    live.run(1.0)
    driver.refuse(0, code)
    live.run(60.0)
    assert set(live.collector.latest) == {1}
    assert sum(row["gpu_index"] == "0" for row in live.rows("gpu")) == 10
    assert len(live.rows("events")) < 20
    driver.codes.clear()
    live.run(20.0)
    last = live.rows("gpu")[-2]
    assert (last["gpu_index"], last["temperature_memory"], last["pcie_link_width_current"]) == ("0", "48", "16")


def test_an_assigned_job_goes_before_what_is_found(live, driver):
    live.jobs.assigned[1] = 99
    live.collector.tick()
    assert [row["job_id"] for row in live.rows("gpu")] == ["", "99"]


# -- the energy counter ------------------------------------------------------------------------------------------------


def test_the_counter_is_asked_seldom_and_of_no_two_gpus_at_once_and_is_never_held_between(live, driver):
    live.run(40.0)
    rows = live.rows("gpu")
    told = [(row["gpu_index"], f"{float(row['timestamp']) - 1_800_000_000:.1f}") for row in rows if row["energy_mJ"]]
    assert len(rows) == 800
    assert [time for index, time in told if index == "0"] == ["0.0", "2.5", "12.5", "22.5", "32.5"]
    assert [time for index, time in told if index == "1"] == ["0.0", "7.5", "17.5", "27.5", "37.5"]
    assert driver.asked.count((0, "TotalEnergyConsumption")) == 5


def test_a_counter_that_is_not_asked_is_not_reported_as_lost_and_one_that_does_not_answer_is(live, driver):
    live.run(7.0)
    driver.refuse(0, nv.NVML_ERROR_UNKNOWN, "TotalEnergyConsumption")
    live.run(10.0)
    driver.codes.clear()
    live.run(10.0)
    events = [(row["time"], row["event"], row["detail"]) for row in live.rows("events") if row["event"] != "error"]
    assert events == [
        ("1800000012.500000", "sensor_lost", "GPU 0 energy_mj"),
        ("1800000022.500000", "sensor_back", "GPU 0 energy_mj"),
    ]


def counted(live: Rig) -> list[tuple[str, str, str]]:
    """Return GPU 0's readings of the counter: seconds, job, millijoules."""
    rows = [row for row in live.rows("gpu") if row["gpu_index"] == "0" and row["energy_mJ"]]
    return [(f"{float(row['timestamp']) - 1_800_000_000:.1f}", row["job_id"], row["energy_mJ"]) for row in rows]


def test_a_job_that_processes_told_of_has_the_counter_from_its_first_row_to_its_last(live, driver):
    for seconds, found in ((0.5, ()), (0.5, (7,)), (0.5, (8,)), (0.5, ())):
        live.jobs.found[0] = frozenset(found)
        driver.gpus[0]["TotalEnergyConsumption"] += 1000
        live.run(seconds)
    first = H200["TotalEnergyConsumption"]
    assert counted(live) == [
        ("0.0", "", str(first + 1000)),
        ("0.5", "7", str(first + 2000)),
        ("1.0", "7", str(first + 3000)),
        ("1.0", "8", str(first + 3000)),
        ("1.5", "8", str(first + 4000)),
        ("1.5", "", str(first + 4000)),
    ]


def test_a_closed_gpu_has_one_more_row_of_its_job_with_the_counter_and_then_no_job(live, driver):
    live.jobs.assigned[0] = 7
    live.run(1.0)
    live.clocks.wait(0.05)
    live.collector.close([0])
    live.run(1.0)
    of_job = [row["timestamp"] for row in live.rows("gpu") if row["job_id"] == "7"]
    assert len(of_job) == 11
    times = [(time, job) for time, job, _ in counted(live)]
    assert times == [("0.0", "7"), ("1.0", "7"), ("1.0", "")]
    assert of_job[-1] == "1800000001.050000"


def test_the_energy_of_an_assigned_job_needs_no_segment_and_no_wall_clock(live, driver):
    """A follower takes the segments away while the job runs, and somebody sets the clock."""
    live.jobs.found[1] = frozenset({7})
    live.jobs.assigned[0] = 7
    for tick in range(400):
        driver.gpus[0]["TotalEnergyConsumption"] = int(61234.5 * tick)
        live.run(0.1)
        if tick == 200:
            live.clocks.offset_s += 3600.0
        if tick % 100 == 0:
            live.spool.sync()
    for path in live.root.glob("gpu/*.csv"):
        path.unlink()
    driver.gpus[0]["TotalEnergyConsumption"] = int(61234.5 * 400)
    live.collector.close([0])
    (energy,) = live.collector.energy_of(7)
    assert (energy.gpu_index, energy.covered_s) == (0, pytest.approx(40.0))
    assert (energy.counter_j, energy.integral_j) == (pytest.approx(24493.8), pytest.approx(24493.8))


def test_energy_goes_to_the_job_that_a_gpu_was_assigned_to(live, driver):
    for job in (7, 8):
        live.jobs.assigned[0] = job
        live.run(2.0)
        live.collector.close([0])
    told = [energy.covered_s for job in (7, 8, 9) for energy in live.collector.energy_of(job)]
    assert told == [pytest.approx(2.0), pytest.approx(2.0)]


def test_a_gpu_that_was_lost_or_never_read_has_no_closing_row(live, driver):
    live.collector.close()
    assert live.rows("gpu") == []
    live.run(1.0)
    driver.refuse(1, nv.NVML_ERROR_GPU_IS_LOST)
    live.run(1.0)
    live.collector.close()
    assert [row["gpu_index"] for row in live.rows("gpu")][-2:] == ["0", "0"]


def test_without_an_interval_the_counter_is_never_asked(driver, tmp_path):
    clocks = Clocks()
    rig = Rig(tmp_path / "spool", NvmlBackend(wall=clocks.wall, monotonic=clocks.monotonic), clocks, energy_s=0.0)
    rig.run(20.0)
    rig.collector.close()
    assert {row["energy_mJ"] for row in rig.rows("gpu")} == {""}
    assert (0, "TotalEnergyConsumption") not in driver.asked


def test_a_lost_gpu_that_is_back_tells_its_counter_at_once(live, driver):
    live.run(1.0)
    driver.refuse(0, nv.NVML_ERROR_GPU_IS_LOST)
    live.run(1.0)
    assert set(live.collector.counters_mj) == {1}
    driver.codes.clear()
    live.run(12.0)
    since = [row for row in live.rows("gpu") if row["gpu_index"] == "0"][10:]
    assert since[0]["energy_mJ"] != ""


def test_no_reading_begins_while_another_thread_reads(driver, tmp_path):
    """A closing sample, from the main thread, waits for the tick's reading and the other way round."""
    inside, most = 0, 0

    class Slow(NvmlBackend):
        def read(self, index: int, *, with_energy: bool) -> GpuReading:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.001)
            inside -= 1
            return super().read(index, with_energy=with_energy)

    rig = Rig(tmp_path / "spool", Slow(), Clocks())
    rig.collector.tick()
    ticking = threading.Thread(target=lambda: [rig.collector.tick() for _ in range(50)])
    ticking.start()
    while ticking.is_alive():
        rig.collector.close([0])
    assert most == 1


def test_devices_are_told_at_the_start_and_when_one_changes(live, driver):
    live.inventory.tick()
    for _ in range(10):
        live.clocks.wait(30.0)
        live.inventory.tick()
    driver.gpus[1]["EnforcedPowerLimit"] = 400_000
    live.clocks.wait(300.0)
    live.inventory.tick()
    rows = live.rows("devices")
    assert [(row["gpu_index"], row["power_limit_W"]) for row in rows] == [
        ("0", "700.0"),
        ("1", "700.0"),
        ("1", "400.0"),
    ]
    assert rows[0]["uuid"] == "GPU-aaaa"
    assert rows[0]["driver_version"] == "580.159"
