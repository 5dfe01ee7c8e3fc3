"""Logs of one node that grow, are rotated, copied, renamed, cut and removed: whatever is at hand is in the lake."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingest import succession
from ingest.extent import meets
from ingest.records import SmiOptions
from tests.small_sources import Taken, lines, take, write

HEADER = "timestamp, index, power.draw [W]"
START = datetime(2026, 11, 24, 22, tzinfo=UTC)
LOG = "nvidia-smi-n1.csv"
ZONE = SmiOptions(time_zone="UTC")

Halves = list[int]
"""The times of a log, in half seconds since the start."""


def log(halves: Halves) -> str:
    times = (START + timedelta(seconds=half / 2) for half in halves)
    return lines(HEADER, *(f"{time:%Y/%m/%d %H:%M:%S.%f}"[:-3] + ", 0, 100 W" for time in times))


def halves_of(path: Path) -> set[int]:
    rows = path.read_text().splitlines()[1:]
    times = (datetime.strptime(row[:23], "%Y/%m/%d %H:%M:%S.%f").replace(tzinfo=UTC) for row in rows)
    return {round((time - START).total_seconds() * 2) for time in times}


def halves_in(taken: Taken) -> list[int]:
    return [round((time - START).total_seconds() * 2) for (time,) in taken.rows("gpu_samples", "time")]


class History:
    """Folders of logs, to which something happens."""

    def __init__(self, root: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.roots = [root / "a", root / "b"]
        self.now = 0
        for folder in self.roots:
            write(folder, LOG, log(self.next_halves()))

    def next_halves(self) -> Halves:
        """Return times from about now on: all whole or all half seconds, or every one."""
        begin = max(self.now - self.rng.choice([0, 0, 0, 1, 4]), 0)
        self.now = begin + self.rng.randint(2, 12)
        return [*range(begin, self.now, self.rng.choice([1, 2, 2]))]

    def step(self, folder: Path) -> str:
        """Let one thing happen in a folder, and return which."""
        names = sorted(path.name for path in folder.iterdir())
        name = self.rng.choice(names)
        does = [self.grow, self.grow, self.rotate, self.copy, self.rename, self.cut, self.remove, self.interleave]
        do = self.rng.choice(does)
        do(folder / name)
        return f"{do.__name__} {name}"

    def grow(self, path: Path) -> None:
        path.write_text(log(sorted(halves_of(path) | set(self.next_halves()))))

    def rotate(self, path: Path) -> None:
        folder = path.parent
        for number in (3, 2, 1):
            older = folder / (f"{LOG}.{number - 1}" if number > 1 else LOG)
            if older.exists():
                older.replace(folder / f"{LOG}.{number}")
        write(folder, LOG, log(self.next_halves()))

    def copy(self, path: Path) -> None:
        (path.parent / f"{LOG}.{self.rng.randint(1, 3)}").write_bytes(path.read_bytes())

    def rename(self, path: Path) -> None:
        path.replace(path.parent / f"{LOG}-2026112{self.rng.randint(1, 3)}")

    def cut(self, path: Path) -> None:
        halves = sorted(halves_of(path))
        keep = self.rng.randint(1, len(halves))
        path.write_text(log(self.rng.choice([halves[:keep], halves[-keep:]])))

    def remove(self, path: Path) -> None:
        if len([*path.parent.iterdir()]) > 1:
            path.unlink()

    def interleave(self, path: Path) -> None:
        """Another recorder of the same time, half a second beside the first."""
        (path.parent / f"{LOG}.{self.rng.randint(1, 3)}").write_text(
            log([half + 1 for half in sorted(halves_of(path))])
        )


def live_through(root: Path, seed: int, rounds: int) -> None:
    """Check after each ingest that every time of every log at hand is in the lake, but for those refused by name."""
    history, before, told = History(root, seed), set[int](), []
    for _ in range(rounds):
        folder = history.rng.choice([history.roots[0], *history.roots])
        told += [history.step(folder) for _ in range(history.rng.randint(0, 2))]
        force = history.rng.random() < 0.15
        told.append(f"ingest {folder.name} {force=}")
        taken = take(folder, root / "lake", smi=ZONE, force=force)
        now = set(halves_in(taken))
        lacking = {path.name: missing for path in folder.iterdir() if (missing := sorted(halves_of(path) - now))}
        refused = [record for record in taken.report.records if record.status == "refused"]
        why = f"seed {seed}: {told}; lacking {lacking}, refused {refused}"
        assert len(lacking) <= len(refused), why
        assert all(record.reason in {"shrunken", "keys_lost", "companion_missing"} for record in refused), why
        assert all(taken.report.reasons.get(record.reason) for record in refused), why
        assert force or before <= now, f"{sorted(before - now)} went; {why}"
        before = now


def test_a_log_is_compared_with_those_of_its_own_node_alone(tmp_path, monkeypatch):
    nodes, compared = 8, []
    for halves in ([0, 2, 4], [0, 2, 4, 6]):
        for node in range(nodes):
            write(tmp_path / "logs", f"nvidia-smi-n{node}.csv", log(halves))
        with monkeypatch.context() as patch:
            patch.setattr(succession, "meets", lambda old, now: compared.append(old) or meets(old, now))
            taken = take(tmp_path / "logs", tmp_path / "lake", smi=ZONE)
    assert taken.report.rows_out == taken.report.rows_replaced + nodes == 4 * nodes
    assert all(old["node"].n_unique() == 1 for old in compared)
    assert nodes <= len(compared) <= 2 * nodes


@pytest.mark.parametrize("seed", range(3))
def test_every_time_of_every_log_at_hand_is_in_the_lake_or_its_file_is_refused(tmp_path, seed):
    live_through(tmp_path, seed, rounds=6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_no_history_of_logs_loses_a_time(tmp_path, seed):
    live_through(tmp_path, seed, rounds=10)
