from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from features.job import CONTEXT_NAMES, CPU_COLUMNS, NODE_COLUMNS, context, job, job_names
from ingest.schemas import CPU_SAMPLES, NODE_SAMPLES

NAN = float("nan")


def described(channel: str, values: list[float], samples_per_s: float = 1.0) -> dict[str, float]:
    """The features of one channel of one window, by name without the channel."""
    found = job(np.array([[values]], np.float32), [channel], samples_per_s)[0]
    return {name.partition("__")[2]: value for name, value in zip(job_names([channel]), found.tolist(), strict=True)}


def test_duty_and_idleness_are_shares_of_readings_and_the_longest_stretch_is_in_seconds():
    found = described("gpu_util_pct", [0, 0, 100, 60, 4, 3, 2, 50, 49, 5], samples_per_s=2.0)
    assert found["duty_cycle__from_50"] == 0.3
    assert found["idle_share__below_5"] == 0.5
    assert found["longest_idle_s"] == 1.5
    assert found["idle_stretches"] == 2


def test_a_missing_reading_is_neither_idle_nor_busy():
    found = described("gpu_util_pct", [0, NAN, 0, 100])
    assert (found["duty_cycle__from_50"], found["idle_share__below_5"]) == (1 / 3, 2 / 3)
    assert (found["longest_idle_s"], found["idle_stretches"]) == (1, 2)


def test_a_phase_begins_where_the_level_leaves_the_mean_of_the_phase_so_far():
    found = described("power_w", [100, 140, 100, 400, 420, 410, 100, 100], samples_per_s=1.0)
    assert found == {"phases__step_50": 3, "longest_phase_s": 3, "phase_change_w": pytest.approx(100 - 340 / 3)}


def test_the_level_is_the_median_of_a_second_so_a_spike_is_no_phase():
    found = described("power_w", [100, 700, 100, 100, 100, 100, 300, 300, 300], samples_per_s=3.0)
    assert found == {"phases__step_50": 2, "longest_phase_s": 2, "phase_change_w": 200}


def test_one_level_is_one_phase_that_changes_by_nothing():
    assert described("power_w", [70.0] * 5) == {"phases__step_50": 1, "longest_phase_s": 5, "phase_change_w": 0}


def test_memory_steps_are_counted_up_and_down_and_the_largest_keeps_its_sign():
    found = described("memory_used_mib", [1000, 1255, 1511, 511, 767, 767])
    assert found == {
        "steps_up__from_256": 2,
        "steps_down__from_256": 1,
        "largest_step_mib": -1000,
        "net_change_mib": -233,
    }


def test_one_reading_has_no_steps_rather_than_zero_of_them():
    found = described("memory_used_mib", [1000])
    assert np.isnan([found["steps_up__from_256"], found["steps_down__from_256"], found["largest_step_mib"]]).all()
    assert found["net_change_mib"] == 0


@pytest.mark.parametrize("channel", ["gpu_util_pct", "memory_util_pct", "power_w", "memory_used_mib"])
def test_a_channel_without_a_reading_has_no_features(channel):
    assert np.isnan(list(described(channel, [NAN, NAN, NAN]).values())).all()


# -- context -----------------------------------------------------------------------------------------------------------


def windows(*spans: tuple[int, int], job_id: int = 7) -> pl.DataFrame:
    """Windows of one job on one node, from second to second."""
    return pl.DataFrame(
        [(job_id, "n1", begin * 10**6, end * 10**6) for begin, end in spans],
        schema={"job_id": pl.Int64, "node": pl.String, "start_us": pl.Int64, "end_us": pl.Int64},
        orient="row",
    )


def cpu_rows(*rows: tuple[object, ...]) -> pl.DataFrame:
    """Step, task, second, utilisation, RSS, MiB read and written of job 7 on node n1."""
    full = [(7, "n1", step, task, datetime.fromtimestamp(at, UTC), *rest) for step, task, at, *rest in rows]
    return pl.DataFrame(full, schema={name: CPU_SAMPLES.columns[name] for name in CPU_COLUMNS}, orient="row")


def node_rows(*rows: tuple[object, ...]) -> pl.DataFrame:
    """Second, load, processes, free KiB, latency, watts of node n1."""
    full = [("n1", datetime.fromtimestamp(at, UTC), *rest) for at, *rest in rows]
    return pl.DataFrame(full, schema={name: NODE_SAMPLES.columns[name] for name in NODE_COLUMNS}, orient="row")


NO_CPU, NO_NODE = cpu_rows(), node_rows()


def around(spans: pl.DataFrame, cpu: pl.DataFrame = NO_CPU, node: pl.DataFrame = NO_NODE) -> list[dict[str, float]]:
    return [dict(zip(CONTEXT_NAMES, row, strict=True)) for row in context(spans, cpu, node).tolist()]


def test_without_samples_there_is_no_context_rather_than_zero():
    assert np.isnan(context(windows((100, 160)), cpu_rows(), node_rows())).all()


def test_tasks_of_the_step_with_most_samples_are_added_up_and_rates_go_from_first_to_last():
    cpu = cpu_rows(
        ("0", "a", 110, 100.0, 1000, 50.0, 1.0),
        ("0", "a", 120, 120.0, 3000, 10.0, 2.0),
        ("0", "b", 120, 80.0, 500, 20.0, 3.0),
        ("0", "a", 130, 60.0, 2000, 0.0, 5.0),
        ("batch", "a", 120, 900.0, 9_000_000, 900.0, 900.0),
        ("0", "a", 500, 900.0, 9_000_000, 900.0, 900.0),
    )
    (found,) = around(windows((105, 125)), cpu)
    assert found["cpu_util_pct__mean"] == pytest.approx((100 + 200 + 60) / 3)
    assert (found["cpu_util_pct__maximum"], found["rss_kib__maximum"]) == (200, 3500)
    assert found["read_mib__rate_mib_per_s"] == 30 / 20
    assert found["write_mib__rate_mib_per_s"] == 10 / 20


def test_a_single_cpu_sample_has_no_rate():
    (found,) = around(windows((105, 125)), cpu_rows(("0", "a", 110, 100.0, 1000, 50.0, 1.0)))
    assert found["cpu_util_pct__mean"] == 100
    assert np.isnan(found["read_mib__rate_mib_per_s"])


def test_node_samples_up_to_five_minutes_away_count_for_their_windows_and_null_ones_for_nothing():
    node = node_rows((0, 1.0, 10, 5, 0.1, None), (400, 3.0, 30, 4, 0.2, None), (1000, 9.0, 90, 1, 0.9, 250.0))
    near, far, nothing = around(windows((100, 160), (900, 960), (5000, 5060)), node=node)
    assert (near["load__mean"], near["process_count__mean"]) == (2.0, 20)
    assert (near["mem_free_kib__minimum"], near["fs_latency_s__maximum"]) == (4, 0.2)
    assert np.isnan(near["node_power_w__mean"])
    assert (far["load__mean"], far["node_power_w__mean"]) == (9.0, 250.0)
    assert np.isnan(list(nothing.values())).all()
