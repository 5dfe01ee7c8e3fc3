from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli import cli, run
from app.commands.collect import systemd_units
from tests.recorded_gpus import write_recording
from tests.spools import read_rows

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def collect(tmp_path):
    """A function that runs ``jobwatt collect`` on a recording as a process of its own, and returns how it ended."""
    recording = write_recording(tmp_path / "recording", silent=(9e9, 9e9))

    def run_collect(*words: str) -> subprocess.CompletedProcess[str]:
        start = "import sys; from app.cli import main; main()"
        options = ["--spool", str(tmp_path / "spool"), "--replay", str(recording), "--node", "n1"]
        return subprocess.run(
            [sys.executable, "-c", start, "collect", *options, *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    return run_collect


def test_it_collects_for_as_long_as_it_is_told(collect, tmp_path):
    done = collect("--duration", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert 5 <= sum(row["gpu_index"] == "0" for row in read_rows(tmp_path / "spool", "gpu")) <= 15


def test_a_labelled_run_gives_its_report_as_json_and_the_commands_exit_code(collect, tmp_path):
    done = collect(
        "--label",
        "resnet50",
        "--gpus",
        "1",
        "--output",
        str(tmp_path / "report.json"),
        "--format",
        "json",
        "--",
        "sh",
        "-c",
        "sleep 1; exit 5",
    )
    assert done.returncode == 5
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["label"], report["exit_code"]) == ("resnet50", 5)
    (energy,) = report["energy"]
    assert energy["gpu_index"] == 1
    assert energy["counter_j"] > 100
    assert energy["integral_j"] == pytest.approx(400 * energy["covered_s"], rel=0.01)
    assert energy["gap_ratio"] == pytest.approx(energy["integral_j"] / energy["counter_j"] - 1)
    assert re.search(r"GPU 1: [\d.,]+ J by counter, [\d.,]+ J by integral, gap [+-]\d", done.stderr)


def test_what_a_command_prints_is_not_mixed_with_the_report(collect):
    done = collect("--label", "x", "--", "echo", "mine")
    assert done.stdout == "mine\n"
    assert "job " in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Missing option '--spool'"),
        (["--spool", "s", "--label", "x"], "needs the COMMAND"),
        (["--spool", "s", "--label", " ", "--", "true"], "the label is empty"),
        (["--spool", "s", "--", "true"], "need --label NAME"),
        (["--spool", "s", "--gpus", "0"], "need --label NAME"),
        (["--spool", "s", "--label", "x", "--", "no-such-command-anywhere"], "no such command"),
        (["--spool", "s", "--label", "x", "--duration", "3", "--", "true"], "--duration is for"),
        (["--spool", "s", "--node", "a/b"], "give letters, digits"),
        (["--spool", "s", "--prometheus", "here"], "give HOST:PORT"),
        (["--spool", "s", "--gpus", "a", "--label", "x", "--", "true"], "give numbers"),
        (["--spool", "s", "--gpu-interval", "-1"], "gpu-interval"),
        (["--spool", "s", "--gpu-interval", "1e-6"], "an interval is below 0.001 s"),
        (["--spool", "s", "--gpu-interval", "0", "--process-interval", "0", "--node-interval", "0"], "give one of"),
    ],
)
def test_wrong_usage_ends_in_code_2_with_what_to_give(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["collect", *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_the_units_run_the_collector_as_it_was_called_and_the_follower(tmp_path):
    words = ["collect", "--spool", "/var/spool/job watt", "--gpu-interval", "1", "--prometheus", "127.0.0.1:9500"]
    result = CliRunner().invoke(cli, [*words, "--lake", "/data/lake", "--systemd"])
    assert result.exit_code == 0
    jobwatt = Path(sys.executable).with_name("jobwatt")
    collector = (
        f'ExecStart={jobwatt} collect --spool "/var/spool/job watt" --gpu-interval 1.0 --prometheus 127.0.0.1:9500'
    )
    assert collector in result.output.splitlines()
    follower = f'ExecStart={jobwatt} lake ingest "/var/spool/job watt" --follow --lake /data/lake --keep-samples 30d'
    assert follower in result.output.splitlines()
    assert "ReadWritePaths=/data/lake" in result.output


def test_the_follower_s_unit_has_its_cluster_its_age_and_the_time_it_needs():
    words = ["collect", "--spool", "/s", "--lake", "/l", "--systemd", "--cluster", "hall-2", "--keep-samples", "90d"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0
    collector, follower = result.output.split("# /etc/systemd/system/jobwatt-follow.service")
    assert "--lake /l --cluster hall-2 --keep-samples 90d\n" in follower
    assert "--cluster" not in collector
    for unit in (collector, follower):
        assert "Wants=time-sync.target\n" in unit
    assert "After=local-fs.target remote-fs.target time-sync.target\n" in collector
    assert "After=local-fs.target remote-fs.target time-sync.target jobwatt-collect.service\n" in follower
    assert ("TimeoutStopSec=30\n" in collector, "TimeoutStopSec=120\n" in follower) == (True, True)


@pytest.mark.parametrize("words", [["--cluster", "a"], ["--keep-samples", "3d"], ["--systemd", "--keep-samples", "3"]])
def test_what_is_for_the_follower_s_unit_is_refused_elsewhere(words, tmp_path):
    assert run(["collect", "--spool", str(tmp_path / "spool"), *words]) == 2
    assert not (tmp_path / "spool").exists()


def test_systemd_takes_percent_signs_and_quotes_literally():
    units = systemd_units(["--node", 'a%b$c"'], Path("/s"), Path("/l"))
    assert '--node a%%b$$c\\"\n' in units


@pytest.mark.system
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units(tmp_path):
    units = re.split(
        r"^# /etc/systemd/system/(\S+)\n", systemd_units([], Path("/var/spool/jobwatt"), Path("/l")), flags=re.M
    )
    for name, text in zip(units[1::2], units[2::2], strict=True):
        (tmp_path / name).write_text(text.replace(str(Path(sys.executable).with_name("jobwatt")), "/bin/true"))
        done = subprocess.run(
            ["systemd-analyze", "verify", str(tmp_path / name)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
