"""What ``jobwatt collect`` and ``python -m ingest.collectors`` do: collect until stopped, or while a command runs."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ingest.collectors.clock import steady_time
from ingest.collectors.energy import EnergyTwice
from ingest.collectors.family import end_family
from ingest.collectors.hardware import GpuBackend, GpuDevice, NvmlBackend, calls_at
from ingest.collectors.replay import ReplayBackend, read_recording
from ingest.collectors.run_ids import RunId, choose, remember
from ingest.collectors.service import Plan, Service, check_intervals
from ingest.collectors.signals import ending_on_signals
from ingest.collectors.spool import HEADERS, Spool, default_node, row, write_whole
from ingest.errors import HardwareError, JobwattError, SpoolError

COMPLETED, CANCELLED, FAILED = 3, 4, 5
KILL_AFTER_S: Final = 10.0
"""What of a command, and of all that it started, has not ended so long after SIGTERM is killed."""

ENERGY_HELP: Final = "0: no energy counter (default: 30, or 300 GPU intervals where those are longer)"


@dataclass(frozen=True, slots=True)
class Options:
    """What a command line says."""

    spool: Path
    node: str | None = None
    plan: Plan = field(default_factory=Plan)
    replay: Path | None = None
    prometheus: str | None = None
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class RunReport:
    """One labelled run: its job id, the command's exit code as a shell counts it, and the energy of its GPUs, twice.

    ``notices`` say what is missing: a GPU of the run that gave no sample, or that no GPU is counted as the run's.
    """

    job_id: int
    label: str
    exit_code: int
    run_s: float
    energy: tuple[EnergyTwice, ...]
    problem: str = ""
    gpus: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()


def open_backend(options: Options) -> GpuBackend | None:
    """Return the GPUs that are to be read; None where none are to be.

    Raises
    ------
    HardwareError
        No driver answers.
    """
    if options.plan.gpu_interval_s <= 0:
        return None
    if options.replay is not None:
        return ReplayBackend(read_recording(options.replay))
    return NvmlBackend(calls=calls_at(options.plan.gpu_interval_s))


def say(line: str) -> None:
    """Write a line to standard error; where nobody reads it any more, collecting goes on."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"jobwatt: {line}\n")
        sys.stderr.flush()


@contextmanager
def collecting(options: Options) -> Iterator[Service]:
    """Give a service that collects, and end it cleanly; SIGTERM and SIGINT ask it to stop.

    What somebody should see at once (a GPU that is lost, a clock that was set) goes to standard error.
    """
    backend = open_backend(options)
    service = Service(Spool(options.spool, options.node or default_node()), backend, options.plan, say=say)
    with ending_on_signals(service.ask_to_stop), service:
        if options.prometheus is None:
            yield service
            return
        from ingest.collectors.exporter import serve

        with serve(service, options.prometheus):
            yield service


def collect(options: Options) -> None:
    """Collect until SIGTERM or SIGINT, or for ``duration_s``.

    Raises
    ------
    SpoolError
        The disk is full or refuses; what was written stays.
    HardwareError
        No driver answers.
    """
    with collecting(options) as service:
        service.stopping.wait(options.duration_s)


def check_run(label: str | None, command: Sequence[str], *, has_gpus: bool, has_duration: bool) -> None:
    """Check that what was asked for is either a labelled run or collecting until stopped.

    Raises
    ------
    ValueError
        It is neither, or both.
    """
    if label is None:
        if command or has_gpus:
            raise ValueError("a COMMAND and --gpus need --label NAME, which says what it is")
        return
    if not command:
        raise ValueError("--label needs the COMMAND that is to run, after --")
    if not label.strip():
        raise ValueError("the label is empty, so that nobody would know what ran; give --label NAME")
    if has_duration:
        raise ValueError("--duration is for collecting until stopped; a labelled run ends with its COMMAND")


def collect_run(options: Options, label: str, command: Sequence[str], gpus: Sequence[int] | None = None) -> RunReport:
    """Collect while a command runs, under a job id of its own, and label it; inside a Slurm job as `run_ids` says.

    Parameters
    ----------
    gpus
        The job's GPUs. Those of ``CUDA_VISIBLE_DEVICES`` unless given; all where that is not set.

    Raises
    ------
    JobwattError
        Collecting cannot begin. Where it fails later the command runs on, and the report names the problem.
    """
    run = choose(label, options.spool, os.environ, time.time())
    end: _End | None = None
    notices: tuple[str, ...] = (run.notice,) if run.notice else ()
    problem = ""
    try:
        # other Slurm jobs of this node are no concern of this run
        with collecting(replace(options, plan=replace(options.plan, with_slurm=False))) as service:
            devices = service.inventory.devices if service.inventory is not None else {}
            if gpus is not None:
                mine = _given_gpus(gpus, service.backend)
            else:
                mine = visible_gpus(os.environ, devices)
                notices += () if mine or service.gpu is None else (_no_gpu(os.environ, devices),)
            end = _run(service, run, label, command, mine)
            if run.is_slurms:
                remember(run.job_id, label, options.spool)
            else:
                _write_job(service, run.job_id, mine, end)
    except Exception as error:
        # whatever it is: a command that ran for hours has its exit code told
        if end is None:
            raise
        problem = _one_line(error)
    run_s, energy = end.ended_s - end.started_s, service.energy_of(run.job_id)
    notices += _unsampled(mine, energy, {} if service.gpu is None else service.gpu.lost)
    return RunReport(run.job_id, label, end.exit_code, run_s, energy, end.problem or problem, mine, notices)


def _unsampled(gpus: Sequence[int], energy: Sequence[EnergyTwice], lost: Mapping[int, str]) -> tuple[str, ...]:
    """Return a line for each GPU of a run that gave it no sample."""
    sampled = {told.gpu_index for told in energy}
    return tuple(
        f"GPU {index}: no sample ({f'lost: {lost[index]}' if index in lost else 'the run ended before one'})"
        for index in gpus
        if index not in sampled
    )


def _no_gpu(environment: Mapping[str, str], devices: Mapping[int, GpuDevice]) -> str:
    """Return the line that says why no GPU is counted as the run's."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    variable = "CUDA_VISIBLE_DEVICES is not set" if listed is None else f"CUDA_VISIBLE_DEVICES is {listed!r}"
    known = ", ".join(map(str, devices)) or "none"
    return f"no GPU is counted as the run's: {variable}, and those seen here are {known}; give --gpus"


def _one_line(error: Exception) -> str:
    """Return what went wrong, with its kind where it is none of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, JobwattError) else f"{type(error).__name__}: {text}"


@dataclass(frozen=True, slots=True)
class _End:
    """How a command ended; the exit code as a shell counts it (128 + signal), times in epoch seconds.

    ``problem`` is what the last look at it failed with.
    """

    exit_code: int
    wait_status: int
    state: int
    started_s: float
    ended_s: float
    problem: str = ""


def _run(service: Service, run: RunId, label: str, command: Sequence[str], gpus: tuple[int, ...]) -> _End:
    """Run a command as a job; what ends the service ends the command, but a collector's failure does not."""
    job_id = run.job_id
    started_s = steady_time()
    child = subprocess.Popen(command, env={**os.environ, "JOBWATT_JOB_ID": str(job_id)})
    try:
        service.begin_job(job_id, child.pid, gpus)
        is_written = run.is_labelled or service.label(job_id, label)
        if run.is_slurms and is_written:  # at once: a run that is killed has no end
            remember(job_id, label, service.spool.root)
    except Exception:
        end_family(child.pid, 0.0)
        child.wait()
        raise
    ended = threading.Event()

    def watch() -> None:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        ended.set()
        service.stopping.set()

    threading.Thread(target=watch, daemon=True).start()
    service.stopping.wait()
    while not ended.wait(0.2) and service.failed and not service.asked.is_set():
        pass  # the command goes on without the collector
    cancelled = not ended.is_set()
    if cancelled:
        end_family(child.pid, KILL_AFTER_S)
    ended.wait()
    ended_s = steady_time()
    problem = ""
    try:
        service.end_job(job_id)
    except Exception as error:  # noqa: BLE001 (whatever it is, the command's exit code is told)
        problem = _one_line(error)
    code = child.wait()
    state = CANCELLED if cancelled else COMPLETED if code == 0 else FAILED
    wait_status = -code if code < 0 else code << 8
    return _End(128 - code if code < 0 else code, wait_status, state, started_s, ended_s, problem)


def visible_gpus(environment: Mapping[str, str], devices: Mapping[int, GpuDevice]) -> tuple[int, ...]:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves to a command, by number or UUID; all where it is not set.

    As CUDA reads it, what follows something unknown does not count.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return tuple(devices)
    found: list[int] = []
    for word in filter(None, (word.strip() for word in listed.split(","))):
        by_uuid = [index for index, device in devices.items() if device.uuid.startswith(word)]
        if word.isdigit() and int(word) in devices:
            found.append(int(word))
        elif len(by_uuid) == 1:
            found += by_uuid
        else:
            break
    return tuple(dict.fromkeys(found))


def parse_gpus(text: str) -> tuple[int, ...]:
    """Return the GPUs of a list of numbers.

    Examples
    --------
    >>> parse_gpus("0,1")
    (0, 1)
    """
    words = [word for word in text.split(",") if word]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError(f"{text!r}; give numbers, as in 0,1")
    return tuple(map(int, words))


def _given_gpus(gpus: Sequence[int], backend: GpuBackend | None) -> tuple[int, ...]:
    """Return the GPUs that were given; raises `HardwareError` where one of them is not read here."""
    known = () if backend is None else backend.indices()
    strange = [str(index) for index in gpus if index not in known]
    if strange:
        has = f"has {', '.join(map(str, known))}" if known else "reads none"
        raise HardwareError(
            f"no GPU {', '.join(strange)} here; this collector {has}: give --gpus of those", reason="no_gpu"
        )
    return tuple(dict.fromkeys(gpus))


def _write_job(service: Service, job_id: int, gpus: tuple[int, ...], end: _End) -> None:
    """Write the run as a scheduler would have logged it, in the columns that are known."""
    devices = service.inventory.devices if service.inventory is not None else {}
    cpus = len(os.sched_getaffinity(0))
    tres = [f"cpu={cpus}", "node=1"]
    if gpus:
        kinds = {gpu_kind(devices[index].name) for index in gpus if index in devices}
        kind = kinds.pop() if len(kinds) == 1 else ""
        tres.append(f"gres/gpu{':' if kind else ''}{kind}={len(gpus)}")
    start, stop = f"{end.started_s:.3f}", f"{end.ended_s:.3f}"
    node, spool = service.spool.node, service.spool
    values = (job_id, os.getuid(), 1, f"['{node}']", cpus, end.state, end.wait_status, start, start, start, stop)
    folder = spool.root / "jobs"
    try:
        folder.mkdir(exist_ok=True)
        write_whole(folder / spool.next_name(), HEADERS["jobs"] + "\n" + row((*values, ",".join(tres), "COLLECT")))
    except OSError as error:
        raise SpoolError(f"{folder}: the job's row cannot be written ({error.strerror}); its samples are") from error


def gpu_kind(name: str) -> str:
    """Return the model in a GPU's name, as Slurm sites name their GRES; empty where none is seen.

    Examples
    --------
    >>> gpu_kind("NVIDIA H200"), gpu_kind("Tesla V100-PCIE-32GB"), gpu_kind("NVIDIA H100 80GB HBM3")
    ('h200', 'v100', 'h100')
    """
    found = re.search(r"\b[A-Z]{1,3}\d{1,4}[A-Z]?\b", name)
    return found.group().lower() if found else ""


def report_lines(report: RunReport) -> list[str]:
    """Return what is told at the end of a run: one line for the job and one for each GPU's energy, twice."""
    lines = [f"job {report.job_id} ({report.label}): {report.run_s:.1f} s, exit code {report.exit_code}"]
    for energy in report.energy:
        gap = "no gap known" if energy.gap_ratio is None else f"gap {100 * energy.gap_ratio:+.2f} %"
        lines.append(
            f"GPU {energy.gpu_index}: {energy.counter_j:,.1f} J by counter, {energy.integral_j:,.1f} J by integral, "
            f"{gap}, over {energy.covered_s:.1f} s"
        )
    lines += report.notices
    if report.problem:
        lines.append(f"collecting failed: {report.problem}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m ingest.collectors`` and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    words, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = _parser()
    told = parser.parse_args(words)
    intervals = (told.gpu_interval, told.process_interval, told.node_interval)
    plan = Plan(*intervals, energy_interval_s=told.energy_interval, probe=told.probe)
    try:
        check_run(told.label, command, has_gpus=told.gpus is not None, has_duration=told.duration is not None)
        check_intervals(plan)
    except ValueError as error:
        parser.error(str(error))
    options = Options(told.spool, told.node, plan, told.replay, told.prometheus, told.duration)
    try:
        if told.label is None:
            collect(options)
            return 0
        gpus = None if told.gpus is None else parse_gpus(told.gpus)
        report = collect_run(options, told.label, command, gpus)
    except (JobwattError, OSError, ValueError) as error:
        sys.stderr.write(f"jobwatt: {' '.join(str(error).split())}\n")
        return 1
    sys.stderr.write("".join(f"{line}\n" for line in report_lines(report)))
    return report.exit_code or (1 if report.problem else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ingest.collectors",
        description="Collect telemetry of this node into a spool until stopped, or (-- COMMAND) while a command runs.",
    )
    parser.add_argument("--spool", type=Path, required=True, help="folder to write to")
    parser.add_argument("--gpu-interval", type=float, default=0.1, metavar="S", help="0: no GPUs (default: 0.1)")
    parser.add_argument("--energy-interval", type=float, metavar="S", help=ENERGY_HELP)
    parser.add_argument("--process-interval", type=float, default=10.0, metavar="S", help="0: none (default: 10)")
    parser.add_argument("--node-interval", type=float, default=300.0, metavar="S", help="0: none (default: 300)")
    parser.add_argument("--node", metavar="NAME", help="this node's name (default: the host's)")
    parser.add_argument("--probe", type=Path, metavar="DIR", help="whose file system to time (default: the spool's)")
    parser.add_argument("--prometheus", metavar="HOST:PORT", help="serve metrics there")
    parser.add_argument("--replay", type=Path, metavar="PATH", help="play recorded GPU files instead of NVML")
    parser.add_argument("--duration", type=float, metavar="S", help="stop after so long")
    parser.add_argument("--label", metavar="NAME", help="what the command is; collects while it runs")
    parser.add_argument("--gpus", metavar="N,N", help="the command's GPUs (default: $CUDA_VISIBLE_DEVICES)")
    return parser
