"""Run labelled workloads on the GPUs of this machine and record them with jobwatt's own collectors.

    python data/record/record.py OUT --batch first --seconds 76 --rounds 0:7 --seed 20261124

leaves in OUT a spool (what the collectors wrote) and ``jobs.jsonl`` (what ran, when, and what it got done);
``pack.py`` makes an archive of one or several such folders. No clock, limit or mode of a GPU is changed.

What runs is drawn from the seed alone, so that ``--rounds`` of one batch can be run in several calls; a batch needs a
seed of its own. The ids are of the seed and the time, so that a round that is run again gives other ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import plan
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where jobwatt is not installed

from ingest.collectors.hardware import NvmlBackend
from ingest.collectors.service import Plan, Service
from ingest.collectors.spool import Spool

CHILD = Path(__file__).with_name("child.py")
WARM_UP_S = 14.0
"""A child is started so long before its turn."""

GRACE_S = 10.0
"""A job that runs on for so long after its time is killed."""

READY_WITHIN_S = 60.0
"""A child that is not ready so long after its turn has come is killed, and its job is recorded as failed."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job as it ran: ``gpus`` are indices, times are epoch seconds, ``steps`` is its figure of merit."""

    job_id: int
    workload: str
    gpus: tuple[int, ...]
    params: dict[str, Any]
    submitted: float
    started: float
    ended: float
    exit_code: int
    steps: int | None
    peak_memory_gib: float | None
    error: str


class Job:
    """One job of a round: its processes wait with everything imported until `start`."""

    def __init__(self, name: str, gpus: tuple[int, ...], params: dict[str, Any], job_id: int, log: IO[str]) -> None:
        self.name, self.gpus, self.params, self.job_id = name, gpus, params, job_id
        self._submitted = time.time()
        self._children = [self._spawn(gpu, log) for gpu in gpus]
        self._port = _free_port()

    def _spawn(self, gpu: int, log: IO[str]) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": str(gpu),
            "PYTHONWARNINGS": "ignore",
        }
        return subprocess.Popen(
            [sys.executable, str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )

    def run(self, seconds: float, service: Service) -> JobRecord:
        """Run it, watched by the collectors, and return what became of it; no process is left behind."""
        late = self._killer(READY_WITHIN_S)
        said = [_pipe(child.stdout).readline() for child in self._children]  # nothing, where it died
        late.cancel()
        started = time.time()
        if set(said) != {"ready\n"}:
            for child in self._children:
                _kill(child)
            codes = [child.wait() for child in self._children]
            return self._record(started, codes, {"error": f"a process was not ready for its turn, exit {codes}"})
        overdue = self._killer(seconds + GRACE_S)
        try:
            for child in self._children:
                service.begin_job(self.job_id, child.pid, self.gpus)
            self._give_orders(seconds)
            answers = [_pipe(child.stdout).readline() for child in self._children]  # nothing, where it died
        finally:
            service.end_job(self.job_id)
            codes = [_wait(child, GRACE_S) for child in self._children]
            overdue.cancel()
        return self._record(started, codes, read_answer(answers[0], codes))

    def _killer(self, seconds: float) -> threading.Timer:
        """Kill the processes after so long, unless cancelled."""
        timer = threading.Timer(seconds, lambda: [_kill(child) for child in self._children])
        timer.daemon = True
        timer.start()
        return timer

    def _give_orders(self, seconds: float) -> None:
        for rank, child in enumerate(self._children):
            orders = {"name": self.name, "params": self.params, "seconds": seconds, "rank": rank}
            orders |= {"world": len(self._children), "port": self._port}
            with contextlib.suppress(BrokenPipeError):  # it died since: no answer will come
                _pipe(child.stdin).write(json.dumps(orders) + "\n")
                _pipe(child.stdin).flush()

    def _record(self, started: float, codes: list[int], answer: dict[str, Any]) -> JobRecord:
        """Return what became of it; an answer with an error is a failure whatever the exit codes are."""
        return JobRecord(
            self.job_id,
            self.name,
            self.gpus,
            self.params | ({"batch": answer["batch"]} if "batch" in answer else {}),
            self._submitted,
            started,
            time.time(),
            max(codes, key=abs) or int("error" in answer),
            answer.get("steps"),
            answer.get("peak_memory_gib"),
            str(answer.get("error", "")),
        )

    def dismiss(self) -> None:
        """Let the processes go without having run."""
        for child in self._children:
            with contextlib.suppress(BrokenPipeError):
                _pipe(child.stdin).close()
        for child in self._children:
            _wait(child, GRACE_S)


def read_answer(line: str, codes: list[int]) -> dict[str, Any]:
    """Return what a child told of its job in one line of JSON; an error where it died before or within that line."""
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    said = f"answered {line[:80]!r}" if line else "no answer"
    return {"error": f"{said}, exit {codes}"}


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise TypeError("the child was started without pipes")
    return pipe


def _wait(child: subprocess.Popen[str], seconds: float) -> int:
    try:
        return child.wait(max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        _kill(child)
        return child.wait()


def _kill(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(child.pid).children(recursive=True):
            process.kill()
    child.kill()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def make_ids(seed: int, batch: str, first: int, time_ns: int) -> random.Random:
    """Return what job ids are drawn from: the same round run again at another time has other ones."""
    return random.Random(f"{seed} {batch} {first} {time_ns}")


class Recorder:
    """Runs rounds of jobs and writes one line for each job."""

    def __init__(self, out: Path, seconds: float, ids: random.Random, service: Service) -> None:
        self._out = out
        self._service = service
        self._seconds = seconds
        self._ids = ids
        self._lock = threading.Lock()
        self.failed = 0

    def prepare(self, jobs: plan.Round, log: IO[str]) -> list[Job]:
        """Start the processes of a round; they wait."""
        found: list[Job] = []
        gpu = 0
        for name, gpus, params in jobs:
            job_id = self._ids.randint(10**8, 10**14)
            found.append(Job(name, tuple(range(gpu, gpu + gpus)), params, job_id, log))
            gpu += gpus
        return found

    def run(self, rounds: list[plan.Round], budget_s: float) -> int:
        """Run as many rounds as fit into the budget and return how many they were."""
        began = time.monotonic()
        with (self._out / "children.log").open("a") as log:
            waiting = self.prepare(rounds[0], log)
            for number, _ in enumerate(rounds):
                threads = [threading.Thread(target=self._run_job, args=(job,)) for job in waiting]
                for thread in threads:
                    thread.start()
                self._service.stopping.wait(max(self._seconds - WARM_UP_S, 0))
                left_s = budget_s - (time.monotonic() - began)
                is_last = number + 1 == len(rounds) or left_s < WARM_UP_S + self._seconds + GRACE_S
                is_last |= self._service.stopping.is_set()  # a collector failed: nothing is recorded any more
                waiting = [] if is_last else self.prepare(rounds[number + 1], log)
                for thread in threads:
                    thread.join()
                if is_last or self._service.stopping.is_set():
                    for job in waiting:
                        job.dismiss()
                    return number + 1
        return len(rounds)

    def _run_job(self, job: Job) -> None:
        record = job.run(self._seconds, self._service)
        if self._service.stopping.is_set():
            record = replace(record, exit_code=record.exit_code or 1, error=record.error or "a collector had stopped")
        with self._lock:
            self.failed += record.exit_code != 0
            with (self._out / "jobs.jsonl").open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")
            print(
                f"{time.strftime('%H:%M:%S')} gpu {record.gpus} {record.workload:14s} "
                f"{record.ended - record.started:6.1f} s exit {record.exit_code} steps {record.steps} "
                f"{record.peak_memory_gib} GiB {record.error}",
                flush=True,
            )


def main() -> int:
    """Return 0 if every job ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", choices=["first", "mixed"], default="mixed")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each job")
    parser.add_argument("--rounds", default="0:1000", help="which rounds of the batch, FIRST:STOP")
    parser.add_argument("--budget", type=float, default=560.0, help="seconds for all")
    parser.add_argument("--seed", type=int, required=True, help="another for each batch, or its jobs are drawn again")
    parser.add_argument("--node", default="r2910417-n318642", help="made-up name of this machine")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    first, stop = (int(number) for number in arguments.rounds.split(":"))
    every = plan.first_batch(arguments.seed) if arguments.batch == "first" else plan.mixed_batch(arguments.seed, 1000)
    # the counter with every sample, as in the batches before; nobody else's jobs pay for it here
    intervals = Plan(gpu_interval_s=0.1, process_interval_s=1.0, node_interval_s=5.0, energy_interval_s=0.05)
    with Service(Spool(arguments.out / "spool", arguments.node), NvmlBackend(), intervals) as service:
        ids = make_ids(arguments.seed, arguments.batch, first, time.time_ns())
        recorder = Recorder(arguments.out, arguments.seconds, ids, service)
        done = recorder.run(every[first:stop], arguments.budget)
    print(f"rounds {first}:{first + done} done, {recorder.failed} jobs failed")
    return 1 if recorder.failed else 0


if __name__ == "__main__":
    sys.exit(main())
