from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import quality
from ingest.collectors.energy import MAX_GAP_S, energy_twice


def test_a_steady_load_has_the_same_energy_twice():
    samples = [(number / 10, 400.0, 40_000 * number) for number in range(201)]
    found = energy_twice(3, samples)
    assert found.gpu_index == 3
    assert (found.counter_j, found.integral_j, found.covered_s) == pytest.approx((8000, 8000, 20))
    assert found.gap_ratio == pytest.approx(0)


def test_the_gap_is_how_much_the_integral_lies_above_the_counter():
    found = energy_twice(0, [(0.0, 100.0, 0), (1.0, 300.0, 160_000)])
    assert (found.integral_j, found.counter_j, found.gap_ratio) == pytest.approx((200, 160, 0.25))


def test_neither_energy_is_counted_over_a_gap_a_missing_value_or_a_reset_of_the_counter():
    steady = [(0.0, 100.0, 0), (1.0, 100.0, 100_000)]
    alone = energy_twice(0, steady, 1.0)
    after_gap = [(50.0, 900.0, 9_000_000)]
    after_hole = [(2.0, None, 200_000), (3.0, 100.0, 300_000)]
    after_reset = [(2.0, 100.0, 5)]
    for more in (after_gap, after_hole, after_reset):
        assert energy_twice(0, [*steady, *more], 1.0) == alone


def test_between_two_readings_of_the_counter_power_is_integrated_over_all_samples():
    samples = [(0.0, 100.0, 0), (1.0, 300.0, None), (2.0, 300.0, None), (3.0, 100.0, 650_000), (4.0, 100.0, None)]
    found = energy_twice(0, samples)
    assert (found.integral_j, found.counter_j, found.covered_s) == (700, 650, 3)


def test_a_gap_between_two_readings_of_the_counter_leaves_out_all_between_them_and_no_more():
    first = [(0.0, 100.0, 0), (1.0, 100.0, None), (2.0, 100.0, 200_000)]
    broken = [(3.0, 100.0, None), (3.0 + MAX_GAP_S + 0.1, 100.0, None), (16.0, 100.0, 999_000)]
    last = [(17.0, 100.0, None), (18.0, 100.0, 1_199_000)]
    found = energy_twice(0, [*first, *broken, *last])
    assert (found.integral_j, found.counter_j, found.covered_s) == (400, 400, 4)


def test_a_gap_is_as_long_as_in_the_lake():
    assert MAX_GAP_S == quality.MAX_GAP_S


def test_a_counter_that_does_not_move_has_no_gap():
    assert energy_twice(0, [(0.0, 100.0, 5), (1.0, 100.0, 5)]).gap_ratio is None
    assert energy_twice(0, []).gap_ratio is None


SAMPLES = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 700), st.integers(0, 5000)), min_size=2, max_size=30)


@given(SAMPLES, st.integers(1, 28))
def test_the_energies_of_two_halves_add_up(steps, cut):
    time_s, energy_mj, samples = 0.0, 0, []
    for tenths, power_w, rise_mj in steps:
        time_s, energy_mj = time_s + tenths / 10, energy_mj + rise_mj
        samples.append((time_s, float(power_w), energy_mj))
    cut = min(cut, len(samples) - 1)
    whole, first, second = (energy_twice(0, part) for part in (samples, samples[: cut + 1], samples[cut:]))
    assert first.counter_j + second.counter_j == pytest.approx(whole.counter_j)
    assert first.integral_j + second.integral_j == pytest.approx(whole.integral_j)
    assert first.covered_s + second.covered_s == pytest.approx(whole.covered_s)
