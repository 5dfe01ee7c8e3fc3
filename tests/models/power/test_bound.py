from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.power.bound import bound_caps, second_averages, sum_bounds

START = datetime(2021, 5, 21, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")


def series(
    readings: list[tuple[float, float | None]], *, job_id: int | None = 1, node: str = "n", gpu: int = 0
) -> pl.DataFrame:
    return pl.DataFrame(
        [(job_id, node, gpu, START + timedelta(seconds=second), watts) for second, watts in readings],
        schema={"job_id": pl.Int64, "node": pl.String, "gpu_index": pl.Int16, "time": TIME, "power_w": pl.Float32},
        orient="row",
    )


def devices(*rows: tuple[str, int, float | None], since: datetime = START) -> pl.DataFrame:
    return pl.DataFrame(
        [(node, gpu, since, tdp_w) for node, gpu, tdp_w in rows],
        schema={"node": pl.String, "gpu_index": pl.Int16, "valid_from": TIME, "tdp_w": pl.Float32},
        orient="row",
    )


def averages(*readings: tuple[float, float], max_step_s: float = 2.0) -> tuple[list[float], list[float]]:
    time_s, power_w = (np.array(column, dtype=float) for column in zip(*readings, strict=True))
    got = second_averages(time_s, power_w, max_step_s)
    return got.covered_s.tolist(), got.power_w.tolist()


def test_power_runs_straight_between_readings_and_seconds_cut_it():
    # 0 to 300 W in 1.5 s: the first second averages 100 W, the half second after it 250 W
    assert averages((0, 0), (1.5, 300)) == ([1.0, 0.5], [100.0, 250.0])


def test_a_reading_held_for_longer_weighs_more():
    # 0.2 s at 100 W, a slope of 0.2 s to 600 W, 0.6 s at 600 W: 20 + 70 + 360 J
    assert averages((0, 100), (0.2, 100), (0.4, 600), (1.0, 600))[1] == [pytest.approx(450.0)]


def test_time_counts_from_the_first_reading():
    assert averages((1000.5, 100), (1001.5, 100), (1002.5, 300))[1] == [100.0, 200.0]


def test_no_power_is_made_up_across_a_gap():
    covered, power = averages((0.0, 100), (0.5, 100), (10.0, 900), (10.5, 900))
    assert covered == [0.5, 0.5]
    assert power == [100.0, 900.0]


def test_a_second_without_a_reading_of_its_own_is_left_out():
    # the second from 1 to 2 lies between the readings at 0.5 and 2.4; those from 0 to 1 and 2 to 3 have their own
    covered, power = averages((0.0, 100), (0.5, 100), (2.4, 290), (3.0, 290))
    assert covered == pytest.approx([1.0, 1.0])
    assert power == pytest.approx([112.5, 0.4 * 270 + 0.6 * 290])


def test_each_average_says_which_second_it_is_of():
    got = second_averages(np.array([7.0, 7.5, 27.2, 27.4]), np.full(4, 100.0))
    assert got.second.tolist() == [0, 20]


def test_a_missing_reading_is_passed_over():
    assert averages((0, 100), (0.5, float("nan")), (1, 200))[1] == [150.0]


def test_one_reading_covers_no_time():
    assert averages((0, 100)) == ([], [])


def test_two_readings_at_one_time_make_a_step():
    assert averages((0, 100), (0.5, 100), (0.5, 300), (1.0, 300))[1] == [200.0]


def test_a_clock_that_goes_backwards_is_refused():
    with pytest.raises(ValueError, match="backwards"):
        averages((1, 100), (0, 100))


READINGS = st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 700)), min_size=2, max_size=40)


@given(READINGS)
def test_where_every_second_has_a_reading_the_energy_is_that_of_trapezoids(steps: list[tuple[int, int]]):
    time_s = np.cumsum([step % 1000 + 1 for step, _ in steps]) / 1000
    power_w = np.array([float(watts) for _, watts in steps])
    got = second_averages(time_s, power_w)
    assert got.covered_s.max() <= 1.0 + 1e-9
    if len(got.covered_s) == np.ceil(time_s[-1] - time_s[0] - 1e-9):
        assert got.covered_s @ got.power_w == pytest.approx(np.trapezoid(power_w, time_s), rel=1e-9, abs=1e-9)
        assert got.covered_s.sum() == pytest.approx(time_s[-1] - time_s[0])


@given(READINGS, st.floats(0.1, 3.0))
def test_averages_stay_within_the_readings_and_no_more_time_is_covered_than_steps_allow(
    steps: list[tuple[int, int]], max_step_s: float
):
    time_s = np.cumsum([step for step, _ in steps]) / 1000
    power_w = np.array([float(watts) for _, watts in steps])
    got = second_averages(time_s, power_w, max_step_s)
    step_s = np.diff(time_s)
    assert got.covered_s.sum() <= step_s[step_s <= max_step_s].sum() + 1e-9
    assert np.all(got.power_w >= power_w.min() - 1e-9)
    assert np.all(got.power_w <= power_w.max() + 1e-9)


def test_a_bound_worked_out_by_hand():
    # One second at 240 W, one at 180 W, two at 100 W: 620 J in 4 s; caps at 200 and 150 W.
    steps = [(0.0, 240.0), (1.0, 240.0), (1.0, 180.0), (2.0, 180.0), (2.0, 100.0), (3.0, 100.0), (4.0, 100.0)]
    samples = series(steps)
    got = bound_caps(samples, devices(("n", 0, 250.0)))
    assert got["cap_w"].to_list() == [200.0, 150.0]
    assert got["covered_s"].to_list() == [4.0, 4.0]
    assert got["energy_j"].to_list() == [620.0, 620.0]
    assert got["above_s"].to_list() == [1.0, 2.0]
    assert got["energy_above_j"].to_list() == [40.0, 90.0 + 30.0]


def test_a_draw_of_exactly_the_cap_is_not_above_it():
    got = bound_caps(series([(0.0, 200.0), (0.5, 200.0), (1.0, 200.0)]), devices(("n", 0, 250.0)), [0.8])
    assert got["above_s"].to_list() == [0.0]


def test_a_peak_shorter_than_a_second_is_averaged_away():
    peak = series([(0.0, 100.0), (0.4, 100.0), (0.45, 250.0), (0.5, 100.0), (1.0, 100.0)])
    assert bound_caps(peak, devices(("n", 0, 250.0)), [0.6])["above_s"].to_list() == [0.0]


def test_an_unknown_tdp_gives_no_figure_and_keeps_the_energy():
    for known in (devices(("n", 0, None)), devices(("other", 0, 250.0)), devices(("n", 1, 250.0))):
        got = bound_caps(series([(0.0, 240.0), (1.0, 240.0)]), known)
        assert got.select("tdp_w", "cap_w", "above_s", "energy_above_j").rows() == [(None,) * 4] * 2
        assert got["energy_j"].to_list() == [240.0, 240.0]


def test_the_device_in_force_when_the_series_began_counts():
    old, new = devices(("n", 0, 250.0)), devices(("n", 0, 700.0), since=START + timedelta(days=1))
    samples = pl.concat([series([(0.0, 1.0), (1.0, 1.0)]), series([(86_400.0, 1.0), (86_401.0, 1.0)], job_id=2)])
    got = bound_caps(samples, pl.concat([new, old]), [1.0])
    assert got.select("job_id", "tdp_w").rows() == [(1, 250.0), (2, 700.0)]


def test_gpus_and_nodes_of_a_job_are_bounded_apart_in_any_order_of_rows():
    samples = pl.concat(
        [
            series([(0.0, 240.0), (1.0, 240.0)]),
            series([(0.5, 10.0), (1.5, 10.0)], gpu=1),
            series([(0.2, 10.0)], node="m"),
        ]
    )
    known = devices(("n", 0, 250.0), ("n", 1, 250.0), ("m", 0, 250.0))
    got = bound_caps(samples.reverse(), known, [0.6])
    assert got.select("node", "gpu_index", "above_s").rows() == [("m", 0, 0.0), ("n", 0, 1.0), ("n", 1, 0.0)]
    assert got.equals(bound_caps(samples, known, [0.6]))


def test_samples_of_no_job_and_no_samples_give_no_bound():
    assert bound_caps(series([(0.0, 1.0), (1.0, 1.0)], job_id=None), devices(("n", 0, 250.0))).height == 0
    assert sum_bounds(bound_caps(series([]), devices()), "job_id").height == 0


@pytest.mark.parametrize("share", [0.0, -0.5, 80.0])
def test_a_cap_that_is_no_share_is_refused(share: float):
    with pytest.raises(ValueError, match="of TDP; give shares"):
        bound_caps(series([]), devices(), [share])


def test_a_job_of_two_gpus_has_the_time_and_energy_of_both():
    samples = pl.concat(
        [series([(0.0, 240.0), (1.0, 240.0)]), series([(0.0, 100.0), (1.0, 100.0), (2.0, 100.0)], gpu=1)]
    )
    got = sum_bounds(bound_caps(samples, devices(("n", 0, 250.0), ("n", 1, 250.0)), [0.8]), "job_id")
    assert got["above_time_share"].to_list() == [pytest.approx(1 / 3)]
    assert got["above_energy_share"].to_list() == [pytest.approx(40 / 440)]


def test_one_gpu_of_unknown_tdp_leaves_its_group_without_a_share():
    samples = pl.concat([series([(0.0, 240.0), (1.0, 240.0)]), series([(0.0, 240.0), (1.0, 240.0)], gpu=1)])
    got = sum_bounds(bound_caps(samples, devices(("n", 0, 250.0), ("n", 1, None)), [0.8]), "job_id")
    assert got.select("above_s", "energy_above_j", "above_time_share", "above_energy_share").rows() == [(None,) * 4]
    assert got["energy_j"].to_list() == [480.0]


def test_a_group_without_a_second_average_has_no_share():
    got = sum_bounds(bound_caps(series([(0.0, 240.0)]), devices(("n", 0, 250.0)), [0.8]), "job_id")
    assert got.select("covered_s", "above_time_share", "above_energy_share").rows() == [(0.0, None, None)]
