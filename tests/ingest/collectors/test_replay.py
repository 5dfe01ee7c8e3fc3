from __future__ import annotations

import time

import pytest

from ingest.collectors.hardware import GpuReading
from ingest.collectors.replay import ReplayBackend, read_recording, spin
from ingest.errors import GpuLostError, HardwareError
from tests.clocks import Clocks
from tests.recorded_gpus import write_recording
from tests.spools import open_spool


def play(series, clocks, **options):
    return ReplayBackend(series, wall=clocks.wall, monotonic=clocks.monotonic, **options)


def test_a_recording_is_read_with_its_extended_columns(tmp_path):
    series = read_recording(write_recording(tmp_path))
    assert {index: len(readings) for index, readings in series.items()} == {0: 100, 1: 70}
    assert series[0][1] == GpuReading(
        time_s=1795399433.1,
        gpu_util_pct=50,
        memory_util_pct=20,
        memory_free_mib=100000,
        memory_used_mib=43771,
        gpu_temp_c=41,
        power_w=400.0,
        pcie_link_width=16,
        power_avg_w=399.5,
        energy_mj=41000,
        sm_clock_mhz=1980,
        memory_clock_mhz=3201,
    )


def test_a_spool_can_be_played(tmp_path):
    spool = open_spool(tmp_path)
    spool.append("gpu", "1800000000.000000,n1,,3,10,20,1,2,41,,250.5,16,,77,1980,3201,700.0,4\n")
    spool.close()
    ((index, (reading,)),) = read_recording(tmp_path).items()
    assert (index, reading.power_w, reading.power_limit_w, reading.throttle_reasons) == (3, 250.5, 700.0, 4)


def test_the_recording_begins_anew_and_the_energy_counter_goes_on(tmp_path):
    clocks = Clocks()
    backend = play(read_recording(write_recording(tmp_path, seconds=5.0)), clocks)
    energies = []
    for _ in range(120):
        clocks.wait(0.1)
        energies.append(backend.read(0, with_energy=True).energy_mj)
    assert energies == sorted(energies)
    assert energies[-1] - energies[0] > 2 * 49 * 40_000


def test_the_counter_is_told_only_where_it_is_asked_and_rises_between_two_that_were_recorded(tmp_path):
    clocks = Clocks()
    spool = open_spool(tmp_path)
    for tenth in range(21):
        energy = {0: "1000", 10: "41000", 20: "7"}.get(tenth, "")
        spool.append("gpu", f"{1.8e9 + tenth / 10:.6f},n1,,0,10,20,1,2,41,,250.5,16,,{energy},1980,3201,700.0,4\n")
    spool.close()
    backend = play(read_recording(tmp_path), clocks)
    found = []
    for _ in range(4):
        assert backend.read(0, with_energy=False).energy_mj is None
        found.append(backend.read(0, with_energy=True).energy_mj)
        clocks.wait(0.501)
    assert found[::2] == [1000, 41000]
    assert found[1] == pytest.approx(21000, abs=4000)
    assert found[3] == pytest.approx(20500, abs=4000)  # a line is drawn where the counter fell, too


def test_a_gpu_is_lost_where_it_has_no_rows(tmp_path):
    clocks = Clocks()
    backend = play(read_recording(write_recording(tmp_path)), clocks)
    clocks.wait(2.0)
    assert backend.read(1, with_energy=True).power_w == 400.0
    clocks.wait(3.0)
    assert backend.read(0, with_energy=True).power_w == 400.0
    with pytest.raises(GpuLostError, match="GPU 1"):
        backend.read(1, with_energy=True)


def test_more_gpus_than_recorded_play_the_same(tmp_path):
    clocks = Clocks()
    backend = play(read_recording(write_recording(tmp_path)), clocks, gpus=8)
    assert backend.indices() == tuple(range(8))
    assert [backend.read(index, with_energy=True).gpu_util_pct for index in range(8)] == [50, 51] * 4


def test_nothing_to_play_is_one_clear_error(tmp_path):
    with pytest.raises(HardwareError, match="no GPU samples to play"):
        ReplayBackend(read_recording(tmp_path))
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(HardwareError, match="no column timestamp"):
        read_recording(tmp_path)
    (tmp_path / "x.csv").write_text("timestamp,power_draw_W\n1,much\n")
    with pytest.raises(HardwareError, match="cannot be played"):
        read_recording(tmp_path)


def test_calls_cost_the_cpu_time_that_they_are_said_to_cost(tmp_path):
    clocks = Clocks()
    costs = {"fields": 0.002, "power_limit": 0.010, "energy": 0.015}
    backend = play(read_recording(write_recording(tmp_path)), clocks, spin_s=costs)
    before_s = time.thread_time()
    for number in range(20):
        backend.read(0, with_energy=number % 10 == 0)
        clocks.wait(0.1)
    spent_s = time.thread_time() - before_s
    assert spent_s == pytest.approx(20 * 0.002 + 2 * 0.010 + 2 * 0.015, rel=0.6)
    assert spent_s >= 20 * 0.002 + 0.010 + 2 * 0.015


def test_spinning_takes_cpu_time():
    before_s = time.thread_time()
    spin(0.02)
    assert time.thread_time() - before_s >= 0.02
