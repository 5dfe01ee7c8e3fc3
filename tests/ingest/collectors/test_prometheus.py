"""A real Prometheus scrapes exporters whose every value is known; what comes back by range query is compared with them.

One server runs for all tests here, and one spool is filled from it.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.core import Metric

from ingest.collectors import prometheus
from ingest.collectors.prometheus import Options, collect
from ingest.collectors.prometheus_api import PrometheusApi
from tests.prometheus_server import Exporter, exporter, find_prometheus, instant, metric, wait_for
from tests.prometheus_server import prometheus as prometheus_server
from tests.small_sources import take

pytestmark = [
    pytest.mark.system,
    pytest.mark.prometheus,
    pytest.mark.skipif(find_prometheus() is None, reason="prometheus is not installed"),
]

BLANK = 9_223_372_036_854_775_794.0
"""What DCGM-exporter serves for a value that a GPU does not have."""

JOB_ENDS_AT, LOST_AT, ENOUGH = 6, 5, 14
Cells = dict[str, str]


def dcgm(n: int) -> list[Metric]:
    """GPU 0 runs job 101 for a while, GPU 1 is shared by two jobs, GPU 2 is a MIG instance."""
    job = {"hpc_job": "101"} if n < JOB_ENDS_AT else {}
    one = {"gpu": "0", "UUID": "GPU-0", "Hostname": "n1.example.org", **job}
    two = {"gpu": "1", "UUID": "GPU-1", "Hostname": "n1.example.org"}
    shared = [{**two, "hpc_job": "101"}, {**two, "hpc_job": "102"}]
    mig = {"gpu": "2", "UUID": "GPU-2", "Hostname": "n1.example.org", "GPU_I_ID": "1", "GPU_I_PROFILE": "1g.10gb"}
    return [
        metric("DCGM_FI_DEV_POWER_USAGE", (one, 100.5 + n), *((labels, 300) for labels in shared), (mig, 70)),
        metric("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", (one, 5_000_000_000_123 + 1000 * n), kind="unknown"),
        metric("DCGM_FI_DEV_GPU_UTIL", (one, 0), *((labels, float("nan")) for labels in shared)),
        metric("DCGM_FI_DEV_MEM_COPY_UTIL", (one, 12)),
        metric("DCGM_FI_DEV_FB_FREE", (one, 2000), (mig, 900)),
        metric("DCGM_FI_DEV_FB_USED", (one, 1000 + n)),
        metric("DCGM_FI_DEV_GPU_TEMP", (one, 41)),
        metric("DCGM_FI_DEV_MEMORY_TEMP", (one, BLANK)),
        metric("DCGM_FI_DEV_SM_CLOCK", (one, 1980)),
        metric("DCGM_FI_DEV_MEM_CLOCK", (one, 2619)),
        metric("DCGM_FI_DEV_POWER_MGMT_LIMIT", (one, 700)),
        metric("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", (one, 4)),
    ]


def lost(n: int) -> list[Metric] | None:
    """A node that stops answering."""
    return [metric("DCGM_FI_DEV_POWER_USAGE", ({"gpu": "0", "Hostname": "n2"}, 50))] if n < LOST_AT else None


def jobwatt(n: int) -> list[Metric]:
    """jobwatt's own exporter: GPU 0 has a job for a while, GPU 1 has two."""
    labels = [{"gpu": gpu, "uuid": f"GPU-{gpu}", "node": "n3"} for gpu in ("0", "1")]
    jobs = [({"jobid": "555", **labels[0]}, 1.0)] if n < JOB_ENDS_AT else []
    jobs += [({"jobid": job, **labels[1]}, 1.0) for job in ("555", "556")]
    values: Mapping[str, float] = {
        "jobwatt_gpu_power_watts": 200.25 + n,
        "jobwatt_gpu_energy_joules_total": 1234.5,
        "jobwatt_gpu_utilization_ratio": 0.57,
        "jobwatt_gpu_memory_used_bytes": 3 * 2**20,
        "jobwatt_gpu_memory_free_bytes": 5 * 2**30,
        "jobwatt_gpu_temperature_celsius": 44,
        "jobwatt_gpu_sm_clock_hertz": 1.41e9,
        "jobwatt_gpu_power_limit_watts": 400,
    }
    return [
        *(
            metric(name, *((one, value) for one in labels), kind="counter" if name.endswith("_total") else "gauge")
            for name, value in values.items()
        ),
        metric("jobwatt_job_info", *jobs),
    ]


def node(n: int) -> list[Metric]:
    """node-exporter: 50 W of a package that is told twice, and 10 W of memory."""
    package, twice = {"index": "0", "path": "/sys/intel-rapl:0"}, {"index": "0", "path": "/sys/intel-rapl-mmio:0"}
    return [
        metric("node_uname_info", ({"nodename": "n1.example.org", "sysname": "Linux"}, 1)),
        metric("node_load1", ({}, 0.25 + n)),
        metric("node_memory_MemFree_bytes", ({}, 1024 * 1000)),
        metric("node_memory_Inactive_bytes", ({}, 1024 * 24)),
        metric("node_rapl_package_joules_total", (package, 50 * n), (twice, 50 * n), kind="counter"),
        metric("node_rapl_dram_joules_total", ({"index": "0", "path": "/sys/intel-rapl:0:0"}, 10 * n), kind="counter"),
    ]


@dataclass(frozen=True, slots=True)
class Site:
    """The server, what it scrapes, and a spool that was filled from it."""

    url: str
    exporters: Mapping[str, Exporter]
    spool: Path
    start_s: float
    end_s: float
    found: Mapping[str, prometheus.Collected]

    def collect(self, spool: Path, preset: str, step_s: float | None = None, **options: str) -> prometheus.Collected:
        """Collect the same time again."""
        return collect(PrometheusApi(self.url), spool, self.start_s, self.end_s, Options(preset, step_s, **options))

    def rows(self, preset: str, spool: Path | None = None) -> list[Cells]:
        """Every row of one preset, by time."""
        return [row for path in self.files(preset, spool) for row in csv.DictReader(path.read_text().splitlines())]

    def files(self, preset: str, spool: Path | None = None) -> list[Path]:
        """Every file of one preset."""
        return sorted((spool or self.spool).glob(f"*/prometheus-*-{preset}-*.csv"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that has been scraped for a while."""
    folder = tmp_path_factory.mktemp("prometheus")
    start_s = time.time()
    with ExitStack() as stack:
        tells = {"dcgm": dcgm, "lost": lost, "jobwatt": jobwatt, "node": node}
        exporters = {name: stack.enter_context(exporter(tell)) for name, tell in tells.items()}
        url = stack.enter_context(prometheus_server(folder, {name: e.port for name, e in exporters.items()}))
        counts = [f'count_over_time({name}{{job="{job}",gpu!="1"}}[5m])' for job, name in FIRST_METRIC.items()]
        wait_for(lambda: all(instant(url, f"max({count})") >= ENOUGH for count in counts))
        end_s = time.time()
        api, spool = PrometheusApi(url), folder / "spool"
        found = {preset: collect(api, spool, start_s, end_s, Options(preset)) for preset in ("dcgm", "jobwatt", "node")}
        yield Site(url, exporters, spool, start_s, end_s, found)


FIRST_METRIC = {"dcgm": "DCGM_FI_DEV_POWER_USAGE", "jobwatt": "jobwatt_gpu_power_watts", "node": "node_load1"}


def of(rows: list[Cells], node: str, gpu: str) -> list[Cells]:
    """Rows of one GPU."""
    return [row for row in rows if (row["node"], row["gpu_index"]) == (node, gpu)]


def test_every_scrape_of_dcgm_is_one_row_with_its_own_time_and_values(site):
    rows = of(site.rows("dcgm"), "n1", "0")
    scrapes = site.exporters["dcgm"].scrapes
    numbers = [round(float(row["power_draw_W"]) - 100.5) for row in rows]
    assert numbers == list(range(len(rows)))
    assert len(rows) >= ENOUGH
    assert all(abs(float(row["timestamp"]) - scrapes[n]) < 0.5 for n, row in zip(numbers, rows, strict=True))
    expected = {
        "energy_mJ": "5000000000123",
        "utilization_gpu_pct": "0",
        "utilization_memory_pct": "12",
        "memory_free_MiB": "2000",
        "memory_used_MiB": "1000",
        "temperature_gpu": "41",
        "temperature_memory": "",
        "pcie_link_width_current": "",
        "power_average_W": "",
        "clock_sm_MHz": "1980",
        "clock_memory_MHz": "2619",
        "enforced_power_limit_W": "700",
        "throttle_reasons": "4",
    }
    assert {name: rows[0][name] for name in expected} == expected
    assert [row["energy_mJ"] for row in rows] == [str(5_000_000_000_123 + 1000 * n) for n in numbers]
    assert site.found["dcgm"].problem == ""
    assert site.found["dcgm"].step_s == 1.0


def test_a_job_has_the_rows_of_its_scrapes_and_a_shared_or_idle_gpu_has_none(site):
    jobs = [row["job_id"] for row in of(site.rows("dcgm"), "n1", "0")]
    assert jobs == ["101"] * JOB_ENDS_AT + [""] * (len(jobs) - JOB_ENDS_AT)
    shared = of(site.rows("dcgm"), "n1", "1")
    assert {(row["job_id"], row["power_draw_W"], row["utilization_gpu_pct"]) for row in shared} == {("", "300", "")}
    assert len(shared) == len(jobs)


def test_of_a_mig_instance_only_what_is_true_of_the_whole_gpu_is_taken(site):
    rows = of(site.rows("dcgm"), "n1", "2")
    assert {(row["power_draw_W"], row["memory_free_MiB"]) for row in rows} == {("70", "")}


def test_a_node_that_is_gone_has_no_rows_after_its_last_scrape(site):
    assert len(of(site.rows("dcgm"), "n2", "0")) == LOST_AT
    assert len(site.exporters["lost"].scrapes) > LOST_AT + 3


def test_jobwatts_own_metrics_come_back_in_the_units_of_the_spool_with_their_jobs(site):
    rows = of(site.rows("jobwatt"), "n3", "0")
    assert [row["power_draw_W"] for row in rows] == [str(200.25 + n) for n in range(len(rows))]
    expected = {
        "energy_mJ": "1234500",
        "utilization_gpu_pct": "57",
        "memory_used_MiB": "3",
        "memory_free_MiB": "5120",
        "temperature_gpu": "44",
        "clock_sm_MHz": "1410",
        "enforced_power_limit_W": "400",
        "utilization_memory_pct": "",
    }
    assert {name: rows[-1][name] for name in expected} == expected
    assert [row["job_id"] for row in rows] == ["555"] * JOB_ENDS_AT + [""] * (len(rows) - JOB_ENDS_AT)
    assert {row["job_id"] for row in of(site.rows("jobwatt"), "n3", "1")} == {""}


def test_node_rows_have_the_name_that_the_node_gives_itself_and_power_from_its_meters(site):
    rows = site.rows("node")
    assert {row["Node"] for row in rows} == {"n1"}
    assert [row["LoadAvg"] for row in rows] == [str(0.25 + n) for n in range(len(rows))]
    assert {row["MemoryFreeInactiveKB"] for row in rows} == {"1024"}
    times = [float(row["Time"]) for row in rows]
    powers = [row["NodePowerW"] for row in rows]
    assert powers[0] == ""
    assert powers[1:] == [f"{60 / (now - before):.1f}" for before, now in pairwise(times)]


def test_collecting_the_same_again_changes_no_file(site):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in site.files("*")}
    again = [site.collect(site.spool, preset) for preset in site.found]
    assert [found.files_changed for found in again] == [0, 0, 0]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in site.files("*")} == before


def test_a_coarse_step_is_remarked_upon_and_a_finer_one_completes_the_same_file(site, tmp_path):
    coarse = site.collect(tmp_path, "dcgm", step_s=5.0)
    assert len(site.rows("dcgm", tmp_path)) < len(site.rows("dcgm")) / 2
    assert len(coarse.remarks) == 1
    assert "a step of 5 s is longer than their interval, and peaks between are not seen" in coarse.remarks[0]
    assert site.found["dcgm"].remarks == ()
    site.collect(tmp_path, "dcgm", step_s=0.5)
    assert [path.read_bytes() for path in site.files("dcgm", tmp_path)] == [p.read_bytes() for p in site.files("dcgm")]


def test_pieces_give_the_same_rows_as_one_answer(site, tmp_path, monkeypatch):
    monkeypatch.setattr(prometheus, "MAX_POINTS", 7)
    for preset in ("jobwatt", "node"):
        site.collect(tmp_path, preset, step_s=1.0)
        assert site.rows(preset, tmp_path) == site.rows(preset)


def test_auto_takes_each_gpu_by_one_exporter_and_says_so(site, tmp_path):
    found = site.collect(tmp_path, "auto")
    assert found.presets == ("jobwatt", "node")
    assert found.remarks == ("GPUs by DCGM and by jobwatt: jobwatt's are taken; --preset dcgm takes the others",)
    assert site.collect(tmp_path, "auto", match='job!="jobwatt"').presets == ("dcgm", "node")


def test_a_time_without_metrics_is_a_problem_that_names_them(site, tmp_path):
    api = PrometheusApi(site.url)
    found = collect(api, tmp_path, site.start_s - 90_000, site.start_s - 86_400, Options())
    assert "none of the metrics that jobwatt knows (as DCGM_FI_DEV_POWER_USAGE, " in found.problem
    assert found.rows == 0


def test_a_query_that_the_server_does_not_understand_is_told_by_its_own_words(site, tmp_path):
    found = site.collect(tmp_path, "dcgm", match="job=")
    assert "answered 400 Bad Request: " in found.problem
    assert "parse error" in found.problem


def test_following_takes_in_what_comes_until_it_is_asked_to_end(site, tmp_path):
    words = ["--spool", str(tmp_path), "--preset", "dcgm", "--follow", "--every", "1", "--start", str(site.start_s)]
    command = [sys.executable, "-c", "from app.cli import main; main()", "collect-prometheus", site.url, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, text=True)
    try:
        wait_for(lambda: bool(site.files("dcgm", tmp_path)))
        first = len(of(site.rows("dcgm", tmp_path), "n1", "0"))
        wait_for(lambda: len(of(site.rows("dcgm", tmp_path), "n1", "0")) >= first + 2)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, "")
    assert "files_changed" in out
    powers = [row["power_draw_W"] for row in of(site.rows("dcgm", tmp_path), "n1", "0")]
    assert powers == [str(100.5 + n) for n in range(len(powers))]


def test_rows_reach_the_lake_with_the_values_and_jobs_that_the_exporters_told(site, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    # the snapshots have the columns of these two tables of the Supercloud releases
    for name, preset in (("nvidia_smi.csv", "dcgm"), ("node-data.csv", "node")):
        texts = [path.read_text().splitlines(keepends=True) for path in site.files(preset)]
        (source / name).write_text("".join([texts[0][0], *(line for text in texts for line in text[1:])]))
    taken = take(source, tmp_path / "lake", cluster="site")
    rows = of(site.rows("dcgm"), "n1", "0")
    found = taken.rows("gpu_samples", "time", "node", "gpu_index", "job_id", "power_w", "energy_counter_j")
    assert [row for row in found if row[1:3] == ("n1", 0)] == [
        (
            datetime.fromtimestamp(round(float(row["timestamp"]), 3), UTC),
            "n1",
            0,
            101 if n < JOB_ENDS_AT else None,
            100.5 + n,
            5_000_000_000.123 + n,
        )
        for n, row in enumerate(rows)
    ]
    assert taken.rejected() == []
    loads = taken.lake.scan("node_samples").collect().sort("time")["load"].to_list()
    assert loads == [0.25 + n for n in range(len(loads))]
