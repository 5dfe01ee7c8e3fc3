"""Single values as Slurm's ``sacct`` writes them, in text and in JSON. Pure, and light: the collectors use it too.

Each function returns None for a value that says it is missing, and raises ValueError for one that cannot be read.

References
----------
SchedMD, slurm: slurm.h (NO_VAL, INFINITE, job states and their flags), slurmdb.h (SLURMDB_JOB_FLAG_*), sacct(1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from ingest.units import S_PER_MINUTE

NO_VALUES: Final = frozenset({2**32 - 1, 2**32 - 2, 2**64 - 1, 2**64 - 2, -1, -2})
"""INFINITE and NO_VAL of 32 and 64 bits; the latter also as signed numbers. Those of 16 bits can be true numbers."""

MISSING: Final = frozenset({"", "unknown", "none", "n/a", "(null)", "none assigned", "invalid", "partition_limit"})
UNLIMITED: Final = "unlimited"

STATES: Final = (
    *("PENDING", "RUNNING", "SUSPENDED", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"),
    *("BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"),
)
"""slurm.h, enum job_states."""

STATE_FLAGS: Final[Mapping[str, int]] = {
    "LAUNCH_FAILED": 1 << 8,
    "UPDATE_DB": 1 << 9,
    "REQUEUED": 1 << 10,
    "REQUEUE_HOLD": 1 << 11,
    "SPECIAL_EXIT": 1 << 12,
    "RESIZING": 1 << 13,
    "CONFIGURING": 1 << 14,
    "COMPLETING": 1 << 15,
    "STOPPED": 1 << 16,
    "RECONFIG_FAIL": 1 << 17,
    "POWER_UP_NODE": 1 << 18,
    "REVOKED": 1 << 19,
    "REQUEUE_FED": 1 << 20,
    "RESV_DEL_HOLD": 1 << 21,
    "SIGNALING": 1 << 22,
    "STAGE_OUT": 1 << 23,
}
"""slurm.h: what may come with, or stand for, a state. Alone it is a flag on PENDING, as Slurm stores it."""

_JOB_FLAGS: Final[Mapping[str, int]] = {
    "notset": 1,
    "schedsubmit": 2,
    "schedmain": 4,
    "schedbackfill": 8,
    "startreceived": 16,
    "startrecieved": 16,
    "started_on_submit": 2,
    "started_on_schedule": 4,
    "started_on_backfill": 8,
    "start_received": 16,
}
"""slurmdb.h, as sacct's text (with its old misspelling) and its JSON spell them."""

_LATEST_EPOCH_S: Final = 4_102_444_800  # 2100
_MIB_PER_UNIT: Final = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2, "P": 1024.0**3}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)([KMGTP]?)([cn]?)$")
_DURATION = re.compile(r"^(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)(?:\.\d+)?$")
_TRES = re.compile(r"^([a-z]+(?:/[^=,|]+)?)=(\d+(?:\.\d+)?)([KMGTP]?)$")
_HOST_RANGE = re.compile(r"^([^\[\]]*)\[([^\[\]]*)\](.*)$")
_STATE = re.compile(r"^([A-Z_]+)\+?( by (\S+))?$")
_MAX_HOSTS: Final = 100_000


def is_missing(text: str) -> bool:
    """Return whether a cell says that there is no value."""
    return text.strip().lower() in MISSING


def whole(text: str) -> int | None:
    """Return a whole number; NO_VAL and INFINITE are None.

    >>> whole("12"), whole("4294967294"), whole("Unknown")
    (12, None, None)
    """
    if is_missing(text):
        return None
    number = int(text)
    return None if number in NO_VALUES else number


def number(value: Any) -> int | None:
    """Return a number of Slurm's JSON: bare, as text, or as ``{"set", "infinite", "number"}``.

    >>> number(5), number(-2), number({"set": True, "infinite": False, "number": 5}), number({"set": False})
    (5, None, 5, None)
    """
    if isinstance(value, dict):
        return number(value.get("number")) if value.get("set") and not value.get("infinite") else None
    if value is None or isinstance(value, str):
        return None if value is None else whole(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(f"{value!r} is no whole number")
    return None if int(value) in NO_VALUES else int(value)


def epoch_s(text: str) -> tuple[int | None, bool]:
    """Return seconds since 1970, and whether the text is a local time of which nobody knows the zone (then None).

    >>> epoch_s("1795562398"), epoch_s("2026-11-24T23:19:58+0100"), epoch_s("2026-11-24T23:19:58"), epoch_s("Unknown")
    ((1795562398, False), (1795558798, False), (None, True), (None, False))
    """
    text = text.strip()
    if is_missing(text):
        return None, False
    if text.isascii() and text.isdigit():
        return sound_epoch_s(int(text)), False
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        return None, True
    return sound_epoch_s(int(when.timestamp())), False


def sound_epoch_s(seconds: int | None) -> int | None:
    """Return a time; 0 is never, and what lies after 2100 cannot be true."""
    if seconds is None or seconds == 0 or seconds in NO_VALUES:
        return None
    if not 0 < seconds < _LATEST_EPOCH_S:
        raise ValueError(f"{seconds} is no time between 1970 and 2100")
    return seconds


def duration_s(text: str) -> int | None:
    """Return seconds of ``[days-][hours:]minutes:seconds``.

    >>> duration_s("1-02:03:04"), duration_s("05:00"), duration_s("UNLIMITED")
    (93784, 300, None)
    """
    if is_missing(text) or text.lower() == UNLIMITED:
        return None
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no duration")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def limit_s(minutes: str) -> int | None:
    """Return seconds of a time limit in minutes; None where there is none."""
    if minutes.lower() == UNLIMITED or is_missing(minutes):
        return None
    limit = whole(minutes)
    return None if limit is None else limit * S_PER_MINUTE


def wait_status(text: str) -> int | None:
    """Return the raw wait status of ``exit:signal``.

    >>> wait_status("3:0"), wait_status("0:11")
    (768, 11)
    """
    if is_missing(text):
        return None
    code, signal = text.split(":")
    return int(code) << 8 | int(signal)


def memory_mib(text: str) -> tuple[int | None, bool | None]:
    """Return MiB, and whether they are per CPU (``c``); without a letter Slurm means the whole job.

    >>> memory_mib("4Gc"), memory_mib("500M"), memory_mib("")
    ((4096, True), (500, False), (None, None))
    """
    if is_missing(text):
        return None, None
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no amount of memory")
    return round(float(match[1]) * _MIB_PER_UNIT[match[2] or "M"]), match[3] == "c"


def state(words: Iterable[str]) -> tuple[str | None, int, str]:
    """Return a job's state, its flags, and who cancelled it ('' where nobody is named).

    >>> state(["CANCELLED by 1000"]), state(["REQUEUED"]), state(["COMPLETED", "STAGE_OUT"])
    (('CANCELLED', 0, '1000'), ('PENDING', 1024, ''), ('COMPLETED', 8388608, ''))
    """
    base, flags, killer = None, 0, ""
    for word in words:
        match = _STATE.match(word.strip())
        if match is None or (match[1] not in STATES and match[1] not in STATE_FLAGS):
            raise ValueError(f"{word!r} is no state of a job")
        if match[1] in STATES:
            base = match[1]
        else:
            flags |= STATE_FLAGS[match[1]]
        killer = match[3] or killer
    return base or ("PENDING" if flags else None), flags, killer


def job_flags(words: Iterable[str]) -> int | None:
    """Return how a job was started, as slurmdb's bits; words that are no such bit are left out.

    >>> job_flags(["SchedMain", "StartRecieved"]), job_flags(["CLEAR_SCHEDULING", "STARTED_ON_BACKFILL"])
    (20, 8)
    """
    known = [_JOB_FLAGS[word.strip().lower()] for word in words if word.strip().lower() in _JOB_FLAGS]
    bits = 0
    for bit in known:
        bits |= bit
    return bits if known else None


def user_id(name: str) -> int | None:
    """Return the number of a user who is given by number, or who is root; None for another name."""
    if name == "root":
        return 0
    return int(name) if name.isascii() and name.isdigit() and int(name) not in NO_VALUES else None


def tres(text: str) -> dict[str, int]:
    """Return trackable resources by name, memory in MiB; energy and other sums without a value are left out.

    >>> tres("cpu=2,mem=4G,gres/gpu:v100=1")
    {'cpu': 2, 'mem': 4096, 'gres/gpu:v100': 1}
    """
    found: dict[str, int] = {}
    for part in text.split(",") if not is_missing(text) else []:
        match = _TRES.match(part)
        if match is None:
            raise ValueError(f"{part!r} is no resource with its count")
        if match[1] == "mem":
            count = round(float(match[2]) * _MIB_PER_UNIT[match[3] or "M"])
        else:
            count = round(float(match[2]) * 1024 ** " KMGTP".index(match[3] or " "))
        if count not in NO_VALUES:
            found[match[1]] = count
    return found


def tres_text(resources: Mapping[str, int]) -> str | None:
    """Return resources as text, in one spelling and order for all sources; None where there are none.

    >>> tres_text({"mem": 4096, "cpu": 2})
    'cpu=2,mem=4096M'
    """
    parts = [f"{name}={count}{'M' if name == 'mem' else ''}" for name, count in sorted(resources.items())]
    return ",".join(parts) or None


def gpus(resources: Mapping[str, int]) -> tuple[int, str | None]:
    """Return the GPUs among the resources, and their type: the one with most of them, where a type is told.

    >>> gpus({"gres/gpu": 3, "gres/gpu:v100": 1, "gres/gpu:a100": 2}), gpus({"gres/gpu:v100": 1}), gpus({"cpu": 1})
    ((3, 'a100'), (1, 'v100'), (0, None))
    """
    prefix = "gres/gpu:"
    typed = {name.removeprefix(prefix): n for name, n in resources.items() if name.startswith(prefix) and n}
    total = resources.get("gres/gpu", sum(typed.values()))
    kind = min(typed, key=lambda name: (-typed[name], name)) if typed else None
    return total, kind


def node_names(text: str) -> str | None:
    """Return the names in Slurm's short form of a node list, with commas between them.

    >>> node_names("n[01-03,7],login"), node_names("r[1-2]n[5-6]"), node_names("None assigned")
    ('n01,n02,n03,n7,login', 'r1n5,r1n6,r2n5,r2n6', None)
    """
    if is_missing(text):
        return None
    names: list[str] = []
    for part in re.split(r",(?![^\[]*\])", text.strip()):
        names += _expand(part)
        if len(names) > _MAX_HOSTS:
            raise ValueError(f"a node list of over {_MAX_HOSTS} names")
    return ",".join(names)


def _expand(part: str) -> list[str]:
    match = _HOST_RANGE.match(part)
    if match is None:
        if not part or re.search(r"[\[\]|\s]", part):
            raise ValueError(f"{part!r} is no node name")
        return [part]
    heads: list[str] = []
    for piece in match[2].split(","):
        first, _, last = piece.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise ValueError(f"{part!r} is no list of nodes")
        if int(last or first) - int(first) > _MAX_HOSTS:
            raise ValueError(f"a node list of over {_MAX_HOSTS} names")
        heads += [f"{match[1]}{n:0{len(first)}d}" for n in range(int(first), int(last or first) + 1)]
    tails = _expand(match[3]) if match[3] else [""]
    return [head + tail for head in heads for tail in tails]


def count_tasks(text: str) -> int:
    """Return how many tasks a list such as ``0-4,7,10-20:5`` has, or the bit mask that Slurm 22.05 puts into JSON.

    >>> count_tasks("0-4,7,10-20:5"), count_tasks("0x3E")
    (9, 5)
    """
    if text.startswith("0x"):
        return int(text, 16).bit_count()
    total = 0
    for piece in text.split(","):
        match = re.match(r"^(\d+)(?:-(\d+)(?::(\d+))?)?$", piece)
        if match is None:
            raise ValueError(f"{text!r} is no list of tasks")
        total += len(range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1) or 1))
    return total
