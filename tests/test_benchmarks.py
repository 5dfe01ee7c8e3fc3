import sys

import numpy as np
import pytest

from tests.benchmarks.measure import Run, run_pairs, run_process, spread
from tests.benchmarks.report import replace_sections, table

HOLD = "import subprocess, sys, time; block = bytearray(b'x') * (64 << 20); {more}; time.sleep(0.6)"


def test_memory_counts_the_children_too():
    child = HOLD.format(more="pass")
    parent = HOLD.format(more=f"subprocess.Popen([sys.executable, '-c', {child!r}]).wait()")
    alone = run_process([sys.executable, "-c", child], watch_memory=True)
    both = run_process([sys.executable, "-c", parent], watch_memory=True)
    assert 64 < alone.rss_mib < 120
    assert alone.rss_mib + 60 < both.rss_mib
    assert 0 < both.pss_mib <= both.rss_mib * 1.05
    assert alone.wall_s >= 0.6


def test_a_failing_contestant_ends_the_benchmark_with_its_own_words():
    with pytest.raises(SystemExit, match="no such lake"):
        run_process([sys.executable, "-c", "raise SystemExit('no such lake')"])


def test_contestants_run_in_turn_and_not_always_in_the_same_order():
    order = []

    def contestant(name):
        order.append(name)
        return Run(1.0, 1.0, "")

    taken = run_pairs({name: lambda n=name: contestant(n) for name in "ab"}, 3, lambda _: None)
    assert "".join(order) == "abbaab"
    assert {name: len(runs) for name, runs in taken.items()} == {"a": 3, "b": 3}


def test_spread_gives_the_median_and_both_ends():
    assert spread([5.0, 1.0, 2.0]) == "2.00 [1.00-5.00]"


def test_a_new_table_replaces_its_own_section_and_no_other():
    order = ["machine", "ingest", "size"]
    first = replace_sections("", {"size": "old size", "machine": "a box"}, order)
    second = replace_sections(first, {"size": "new size", "ingest": table(["x"], [["1"]])}, order)
    assert "old size" not in second
    assert second.index("a box") < second.index("| x |") < second.index("new size")
    assert replace_sections(second, {"size": "new size"}, order) == second


def test_every_contestant_of_the_efficient_set_is_timed_on_the_same_windows(monkeypatch):
    bench = pytest.importorskip("tests.benchmarks.bench_features")
    timed = {}

    def per_second(function, windows):
        timed[function] = {window.tobytes() for window in windows}
        return 1.0

    monkeypatch.setattr(bench, "_per_second", per_second)
    monkeypatch.setattr(bench, "_extract", lambda _: None)
    monkeypatch.setattr(bench, "installed", lambda _: "1")
    windows = np.random.default_rng(0).normal(size=(9, 7, 20))
    bench._speed(windows, windows[:4], 1, print)
    assert len(timed) == 3
    assert all(found == {window.tobytes() for window in windows[:4]} for found in timed.values())
