from __future__ import annotations

import re
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ingest.collectors.exporter import parse_address, serve
from ingest.collectors.gpu import GpuRow
from ingest.collectors.hardware import GpuReading
from ingest.collectors.prometheus_api import Series
from ingest.collectors.prometheus_metrics import JOBWATT, JOBWATT_JOBS, GpuRows, Scrapes
from ingest.collectors.replay import ReplayBackend, read_recording
from ingest.collectors.service import Plan, Service
from ingest.collectors.spool import HEADERS, Spool
from ingest.errors import HardwareError
from tests.recorded_gpus import write_recording


@pytest.fixture
def service(tmp_path):
    """A service that has taken one reading of each of two GPUs, and of the node; GPU 0 works for two jobs."""
    # the first sample is played however long the start takes
    backend = ReplayBackend(read_recording(write_recording(tmp_path / "recording")), monotonic=lambda: 0.0)
    made = Service(Spool(tmp_path / "spool", "n1"), backend, Plan())
    assert made.gpu is not None
    assert made.inventory is not None
    made.inventory.tick()
    made.gpu.tick()
    made.node.tick()
    made.jobs.found[0] = frozenset((7, 8))
    made.jobs.assigned[1] = 9
    yield made
    made.spool.close()


def scrape(service):
    """Return every sample that the service's exporter gives: (name, labels) to value."""
    with serve(service, "127.0.0.1:0") as port:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def of_gpu(samples, name, index):
    labels = (("gpu", str(index)), ("node", "n1"), ("uuid", f"GPU-replay-{index}"))
    return samples[name, labels]


def test_gpus_are_told_in_base_units(service):
    samples = scrape(service)
    assert of_gpu(samples, "jobwatt_gpu_power_watts", 0) == 400.0
    assert of_gpu(samples, "jobwatt_gpu_energy_joules_total", 0) == 1.0
    assert of_gpu(samples, "jobwatt_gpu_utilization_ratio", 1) == pytest.approx(0.51)
    assert of_gpu(samples, "jobwatt_gpu_memory_used_bytes", 0) == 43771 * 2**20
    assert of_gpu(samples, "jobwatt_gpu_sm_clock_hertz", 0) == 1.98e9
    assert of_gpu(samples, "jobwatt_gpu_temperature_celsius", 0) == 41


def test_what_a_gpu_does_not_tell_has_no_sample(service):
    names = {name for name, _ in scrape(service)}
    assert "jobwatt_gpu_memory_temperature_celsius" not in names
    assert "jobwatt_gpu_power_limit_watts" not in names


def test_a_lost_gpu_has_no_samples(service):
    service.gpu.latest.pop(1)
    known = {name for name, labels in scrape(service) if dict(labels).get("gpu") == "1"}
    assert known == {"jobwatt_gpu_up", "jobwatt_gpu_lost_total"}


def test_a_gpu_that_is_lost_is_down_and_counted_and_so_are_the_clock_s_steps(service):
    service.gpu._lose(1, "GPU 1: GPU is lost")
    service.events.record("clock", "clock_step", seconds=30.0)
    samples = scrape(service)
    assert [of_gpu(samples, "jobwatt_gpu_up", index) for index in (0, 1)] == [1, 0]
    assert [of_gpu(samples, "jobwatt_gpu_lost_total", index) for index in (0, 1)] == [0, 1]
    assert samples["jobwatt_clock_steps_total", (("node", "n1"),)] == 1


def test_jobs_come_through_one_info_metric_and_no_other_label(service):
    samples = scrape(service)
    jobs = {(dict(labels)["jobid"], dict(labels)["gpu"]) for name, labels in samples if name == "jobwatt_job_info"}
    assert jobs == {("7", "0"), ("8", "0"), ("9", "1")}
    for name, labels in samples:
        assert name == "jobwatt_job_info" or "jobid" not in dict(labels)


def test_names_have_the_prefix_and_a_base_unit_and_counters_end_in_total(service):
    units = (
        "watts|joules_total|ratio|bytes|celsius|hertz|seconds|seconds_total|ticks_total|rows_total|info|load|reasons"
        "|up|lost_total|steps_total"
    )
    for name, _ in scrape(service):
        assert re.fullmatch(rf"jobwatt_(gpu|node|collector|job|clock)(_[a-z]+)*_({units})", name), name


def test_what_the_exporter_tells_of_a_gpu_comes_back_by_prometheus_as_the_collector_s_own_row(service):
    reading = GpuReading(1.8e9, 51, 32, 1000, 43771, 41, 48, 400.25, None, 399.5, 7_000_500, 1980, 2619, 700.0, 4)
    service.gpu.latest[1], service.gpu.counters_mj[1] = reading, reading.energy_mj
    told = [
        Series({"__name__": name, **dict(labels)}, [(5.0, str(v))]) for (name, labels), v in scrape(service).items()
    ]
    times = [Series(one.labels, [(5.0, "1800000000")]) for one in told]
    rows = GpuRows(JOBWATT)
    rows.add(told, Scrapes.read(times), [one for one in told if one.labels["__name__"] == JOBWATT_JOBS])
    cells = dict(zip(HEADERS["gpu"].split(","), rows.finish()["n1", "1", "1800000000.000"], strict=True))
    collected = dict(zip(HEADERS["gpu"].split(","), str(GpuRow(reading, "n1", 9, 1)).strip().split(","), strict=True))
    assert {name: float(cell or "nan") for name, cell in cells.items() if name != "node"} == pytest.approx(
        {name: float(cell or "nan") for name, cell in collected.items() if name != "node"}, nan_ok=True
    )


def test_the_collector_tells_its_own_cost_and_losses(service):
    service.events.record("gpu", "late", seconds=0.02)
    service.events.record("gpu", "missed", count=3, seconds=0.3)
    service.spool.dropped["gpu"] = 5
    samples = scrape(service)
    assert samples["jobwatt_collector_late_ticks_total", (("collector", "gpu"), ("node", "n1"))] == 1
    assert samples["jobwatt_collector_missed_ticks_total", (("collector", "gpu"), ("node", "n1"))] == 3
    assert samples["jobwatt_collector_dropped_rows_total", (("kind", "gpu"), ("node", "n1"))] == 5
    assert samples["jobwatt_collector_cpu_seconds_total", (("node", "n1"),)] > 0
    assert 5e6 < samples["jobwatt_collector_resident_bytes", (("node", "n1"),)] < 1e10


def test_without_a_host_only_this_machine_is_served():
    assert parse_address("9500") == ("127.0.0.1", 9500)
    assert parse_address(":9500") == ("127.0.0.1", 9500)
    assert parse_address("0.0.0.0:9500") == ("0.0.0.0", 9500)
    for address in ("", "host", "host:", "host:x", "127.0.0.1:70000", "a:b:1"):
        with pytest.raises(ValueError, match="give HOST:PORT"):
            parse_address(address)


def test_an_address_that_is_taken_is_one_clear_error(service):
    with (
        serve(service, "127.0.0.1:0") as port,
        pytest.raises(HardwareError, match=r"nothing can listen at .* give another address \[cannot_listen\]"),
        serve(service, f"127.0.0.1:{port}"),
    ):
        pass


def test_it_ends_at_once_and_leaves_the_address_free(service):
    with serve(service, "127.0.0.1:0") as port:
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 5
    with serve(service, f"127.0.0.1:{port}") as again:
        assert again == port


def test_the_exporter_begins_without_asking_the_dns_for_this_machine_s_name(service, monkeypatch):
    def ask(*_):
        raise AssertionError("a dead DNS would hold up the start")

    for name in ("getfqdn", "gethostbyaddr", "gethostbyname"):
        monkeypatch.setattr(f"socket.{name}", ask)
    assert scrape(service)
