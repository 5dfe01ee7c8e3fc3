"""One job, told of by Slurm, by Prometheus and by a collector: in the lake it is one, without a step by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from ingest.collectors.gpu import GpuCollector, JobTable
from ingest.collectors.hardware import GpuReading
from ingest.collectors.prometheus_api import Series
from ingest.collectors.prometheus_metrics import DCGM, GpuRows, Scrapes
from ingest.collectors.replay import ReplayBackend
from ingest.collectors.schedule import Events
from ingest.collectors.snapshots import write_hours
from ingest.collectors.spool import Spool
from ingest.lake import Lake
from ingest.pipeline import ingest
from ingest.runner import SerialRunner
from tests.clocks import Clocks
from tests.spool_files import START_S, make_spool, write_segment

JOB_ID, NODE, RUN_S = 4711, "n1", 300
SACCT = f"""JobIDRaw|JobID|Cluster|State|ExitCode|Submit|Start|End|AllocNodes|NodeList|AllocTRES
{JOB_ID}|{JOB_ID}|site|COMPLETED|0:0|{START_S - 60}|{START_S}|{START_S + RUN_S}|1|{NODE}|cpu=8,gres/gpu:h100=2,node=1
"""


def write_accounting(spool: Path) -> None:
    """Write what `jobwatt collect-slurm` keeps of sacct's text."""
    path = make_spool(spool) / "jobs" / "site-2026-11-24.sacct.txt"
    path.parent.mkdir()
    path.write_text(SACCT)


def write_scrapes(spool: Path) -> None:
    """Write what DCGM-exporter tells of the job's two GPUs every 10 s, node names with their domain."""
    times = range(START_S, START_S + RUN_S + 1, 10)
    labels = [
        {"__name__": "DCGM_FI_DEV_POWER_USAGE", "gpu": gpu, "Hostname": f"{NODE}.example.org", "hpc_job": str(JOB_ID)}
        for gpu in ("0", "1")
    ]
    rows = GpuRows(DCGM)
    scrapes = Scrapes.read(Series(one, [(float(t), f"{t + 0.25:.3f}") for t in times]) for one in labels)
    rows.add([Series(one, [(float(t), "300") for t in times]) for one in labels], scrapes)
    write_hours(make_spool(spool), "gpu", "site-dcgm", rows.finish())


def write_collected(spool: Path, seconds: int) -> None:
    """Collect GPU 0 ten times a second, from the job's start on, and its processes every 10 s."""
    clocks = Clocks(START_S)
    readings = [GpuReading(time_s=n / 10, power_w=300.0, energy_mj=n * 30_000) for n in range(10 * RUN_S)]
    backend = ReplayBackend({0: readings}, wall=clocks.wall, monotonic=clocks.monotonic)
    open_spool = Spool(spool, NODE, wall=clocks.wall, monotonic=clocks.monotonic)
    events = Events(open_spool, wall=clocks.wall)
    collector = GpuCollector(backend, open_spool, events, JobTable({0: JOB_ID}), monotonic=clocks.monotonic)
    for _ in range(10 * seconds):
        collector.tick()
        clocks.wait(0.1)
    open_spool.close()
    profile = [JOB_ID, "batch", NODE, "0", 10, START_S + 10, 2_000_000, 9.5, 95.0, 1024, 4096, 12, 0.5, 0.25]
    write_segment(spool, "process", 1, [profile])


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake of three spools; the collector died in the middle of the job."""
    write_accounting(tmp_path / "slurm")
    write_scrapes(tmp_path / "prometheus")
    write_collected(tmp_path / "node", seconds=150)
    for name in ("prometheus", "slurm", "node"):
        report = ingest(str(tmp_path / name), tmp_path / "lake", runner=SerialRunner())
        assert (report.files_refused, report.rows_quarantined) == (0, 0)
    return Lake(tmp_path / "lake")


def test_rows_of_slurm_prometheus_and_collector_join_on_job_node_gpu_and_time(lake):
    jobs = lake.scan("jobs").select("cluster", "job_id", "node_list", "start_time", "end_time", "gpus")
    samples = lake.scan("gpu_samples").with_columns(pl.col("node").cast(pl.String))
    within = pl.col("time").is_between("start_time", pl.col("end_time") + pl.duration(seconds=1))
    joined = (
        samples.join(jobs, left_on=["cluster", "job_id", "node"], right_on=["cluster", "job_id", "node_list"])
        .filter(within)
        .collect()
    )
    assert joined.height == samples.collect().height == 1500 + 16 + 31
    assert joined["gpus"].unique().to_list() == [2]
    by_collector = joined.filter(pl.col("energy_counter_j").is_not_null())
    assert set(by_collector["gpu_index"]) == {0}
    assert set(joined["gpu_index"]) == {0, 1}
    begins = datetime.fromtimestamp(START_S, UTC)
    assert joined["time"].min() == begins
    processes = lake.scan("cpu_samples").select("job_id", "node", "time").collect()
    assert processes.rows() == [(JOB_ID, NODE, datetime.fromtimestamp(START_S + 10, UTC))]


def test_the_energy_of_a_gpu_that_two_sources_tell_of_counts_once(lake):
    stats = lake.scan("job_stats").select("job_id", "nodes", "gpus", "coverage", "energy_j", "covered_gpu_s").collect()
    ((job_id, nodes, gpus, coverage, energy_j, covered_s),) = stats.rows()
    assert (job_id, nodes, gpus) == (JOB_ID, 1, 2)
    assert energy_j == pytest.approx(300.0 * covered_s, rel=1e-6)
    assert covered_s == pytest.approx(2 * RUN_S, abs=0.5)
    assert coverage == pytest.approx(1.0, abs=0.001)
