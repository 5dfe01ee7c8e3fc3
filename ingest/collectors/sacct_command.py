"""Asking ``sacct``: the columns of `FORMAT` as text, from its JSON where its text cannot be read; bounded in time."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ingest.errors import SourceError
from ingest.sources import sacct, sacct_values
from ingest.sources.sacct_columns import Row
from ingest.sources.sacct_files import FORMAT
from ingest.sources.sacct_json import parse_json
from ingest.units import S_PER_MINUTE

Cells = dict[str, str]
"""One job's attempt by column of `FORMAT`, as sacct writes it."""

EARLIEST_EPOCH_S: Final = 86_400.0
"""No question goes farther back: there was no Slurm, and a start of 0 is none to sacct, which means this midnight."""

_NEEDED: Final = frozenset({"JobIDRaw", "Submit", "State"})
_KILL_WAIT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What sacct told; ``doubts`` has one line for what of it was left out or got by another way."""

    rows: tuple[Cells, ...]
    doubts: tuple[str, ...] = ()


class Sacct:
    """The ``sacct`` of this machine.

    Parameters
    ----------
    command : the program with what goes before its options
    timeout_s : after this long an answer is no longer waited for
    """

    def __init__(self, command: Sequence[str] = ("sacct",), timeout_s: float = 30.0) -> None:
        self._command = tuple(command)
        self._timeout_s = timeout_s
        self._columns: tuple[str, ...] = ()
        self._sound: set[int] = set()

    def ask(self, since_epoch_s: float, job_ids: Sequence[int] = ()) -> Answer:
        """Return all attempts of the jobs that were active since then, or of the given ones at any time.

        Raises
        ------
        SourceError
            In one line: sacct is missing, fails, hangs, or its answer cannot be read, as text nor as JSON.
        """
        if job_ids:
            which = ["--jobs", ",".join(map(str, job_ids))]
        else:
            start = datetime.fromtimestamp(max(since_epoch_s, EARLIEST_EPOCH_S), UTC)
            which = ["--starttime", f"{start:%Y-%m-%dT%H:%M:%S}"]
        which += ["--allusers", "--duplicates"]
        try:
            answer = self._ask_text(which)
        except SourceError as text_error:
            if isinstance(text_error, _NoAnswerError):
                raise
            return self._ask_json(which, text_error)
        if answer.doubts:
            try:
                return self._ask_json(which, SourceError(answer.doubts[0]))
            except SourceError:
                return answer
        return answer

    def _ask_text(self, which: Sequence[str]) -> Answer:
        columns = self._known_columns()
        text = self._run(
            ["--parsable2", "--allocations", f"--format={','.join(columns)}", *which], {"SLURM_TIME_FORMAT": "%s"}
        )
        header, _, body = text.partition("\n")
        if tuple(header.lower().split("|")) != tuple(name.lower() for name in columns):
            raise SourceError(f"sacct's header is {header[:80]!r}, not the columns that were asked for")
        if body and not body.endswith("\n"):
            raise SourceError("sacct's answer ends in the middle of a line")
        lines = body.split("\n")[:-1]
        new = [(number, line) for number, line in enumerate(lines, 2) if hash(line) not in self._sound]
        parsed = sacct.Parsed()
        sacct.parse_rows(sacct.parse_header(header), new, parsed)
        bad = {number for number, *_ in parsed.rejected}
        good = [line for number, line in enumerate(lines, 2) if number not in bad]
        self._sound = {hash(line) for line in good}
        rows = tuple(dict(zip(columns, line.split("|", len(columns) - 1), strict=True)) for line in good)
        doubts = []
        if parsed.rejected:
            _, reason, detail, raw = parsed.rejected[0]
            n = len(parsed.rejected)
            doubts.append(f"{n} of sacct's lines cannot be read ({reason}: {detail}), as {raw[:80]!r}")
        return Answer(rows, tuple(doubts))

    def _ask_json(self, which: Sequence[str], why: SourceError) -> Answer:
        try:
            parsed = parse_json(self._run(["--json", *which], {}))
        except SourceError as error:
            raise SourceError(
                f"{why.args[0]}; and with --json: {error.args[0]}", reason=error.reason or "bad_answer"
            ) from error
        rows = tuple(text_cells(row) for _, _, row in parsed.rows)
        left = f" without {len(parsed.rejected)} that cannot be read" if parsed.rejected else ""
        return Answer(rows, (f"{why.args[0]}; its JSON was taken{left}",))

    def _known_columns(self) -> tuple[str, ...]:
        """Return those of our columns that this version of sacct has."""
        if not self._columns:
            has = {name.lower() for name in self._run(["--helpformat"], {}).split()}
            columns = tuple(name for name in FORMAT if name.lower() in has)
            if not set(columns) >= _NEEDED:
                raise SourceError(f"sacct --helpformat does not tell of {', '.join(sorted(_NEEDED - set(columns)))}")
            self._columns = columns
        return self._columns

    def _run(self, options: Sequence[str], environment: Mapping[str, str]) -> str:
        own = {name: value for name, value in os.environ.items() if name != "SLURM_TIME_FORMAT"}
        try:
            process = subprocess.Popen(
                [*self._command, *options],
                env={**own, "TZ": "UTC", "LC_ALL": "C", **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="backslashreplace",
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise _NoAnswerError(
                f"there is no {self._command[0]} on this machine; run it where Slurm is", reason="no_sacct"
            ) from error
        except PermissionError as error:
            raise _NoAnswerError(
                f"{self._command[0]} may not be run ({error.strerror})", reason="no_permission"
            ) from error
        with process:
            try:
                out, said = process.communicate(timeout=self._timeout_s)
            except subprocess.TimeoutExpired as error:
                _kill(process)
                raise _NoAnswerError(
                    f"sacct did not answer within {self._timeout_s:g} s; is slurmdbd up? (sacctmgr ping)",
                    reason="timeout",
                ) from error
            except BaseException:
                _kill(process)
                raise
        if process.returncode:
            lines = [line for line in (said or out).splitlines() if line.strip()]
            what = lines[-1].strip() if lines else f"exit code {process.returncode}"
            refused = "invalid" in what.lower()
            raise (SourceError if refused else _NoAnswerError)(f"sacct failed: {what}", reason="sacct_failed")
        return out


class _NoAnswerError(SourceError):
    """There is no answer at all, so that asking in another format would not help."""


def _kill(process: subprocess.Popen[str]) -> None:
    """End sacct and whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    try:
        process.communicate(timeout=_KILL_WAIT_S)
    except subprocess.TimeoutExpired:  # somebody else holds its pipes
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def text_cells(row: Row) -> Cells:
    """Return a row that came as JSON in the cells of `FORMAT`, so that all snapshots are of one form."""

    def cell(name: str) -> str:
        value = row.get(name)
        return "" if value is None else str(value)

    def status(name: str) -> str:
        value = row.get(name)
        return "" if value is None else f"{value >> 8}:{value & 0x7F}"

    def time(name: str) -> str:
        return cell(f"{name}_epoch_s") or "Unknown"

    flags = [word for word, bit in sacct_values.STATE_FLAGS.items() if (row.get("state_flags") or 0) & bit]
    state = flags[0] if flags else cell("state")
    killer = row.get("kill_user")
    array, task, waiting = row.get("array_job_id"), row.get("array_task_id"), row.get("array_tasks_pending")
    job = cell("job_id")
    if array is not None:
        job = f"{array}_{task}" if task is not None else f"{array}_[1-{waiting or 1}]"
    limit = row.get("time_limit_s")
    memory = row.get("mem_mib")
    started = {2: "SchedSubmit", 4: "SchedMain", 8: "SchedBackfill", 16: "StartReceived"}
    return {
        "JobIDRaw": cell("job_id"),
        "JobID": job,
        "Cluster": cell("cluster"),
        "User": cell("user"),
        "UID": "",
        "Partition": cell("partition"),
        "State": f"{state} by {killer}" if killer is not None and state == "CANCELLED" else state,
        "ExitCode": status("exit_code"),
        "DerivedExitCode": status("derived_exit_code"),
        **{name.capitalize(): time(name) for name in ("submit", "eligible", "start", "end")},
        "Suspended": "" if row.get("suspended_s") is None else _clock(row["suspended_s"]),
        "TimelimitRaw": "UNLIMITED" if limit is None else str(limit // S_PER_MINUTE),
        "AllocNodes": cell("nodes"),
        "NodeList": cell("node_list"),
        "ReqCPUS": cell("cpus"),
        "ReqMem": "" if memory is None else f"{memory}M{'c' if row.get('mem_per_cpu') else ''}",
        "Priority": cell("priority"),
        "Flags": ",".join(word for bit, word in started.items() if (row.get("flags") or 0) & bit),
        "ReqTRES": cell("tres_req"),
        "AllocTRES": cell("tres_alloc"),
        "Constraints": cell("constraints"),
    }


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
