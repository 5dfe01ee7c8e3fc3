"""Random, sliding, gapless and even windows, and the rule of the Workload Classification Challenge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.windows import Windows, WindowSpec, cut_challenge, cut_windows

START = datetime(2026, 1, 1, tzinfo=UTC)


def series(seconds: list[float], *, job_id: int = 1, node: str = "n1", gpu_index: int = 0) -> pl.DataFrame:
    """Samples of one GPU whose power is the number of the sample."""
    return pl.DataFrame(
        {
            "job_id": [job_id] * len(seconds),
            "node": [node] * len(seconds),
            "gpu_index": [gpu_index] * len(seconds),
            "time": [START + timedelta(seconds=s) for s in seconds],
            "power_w": [float(i) for i in range(len(seconds))],
        },
        schema_overrides={"gpu_index": pl.Int16, "time": pl.Datetime("us", "UTC")},
    )


def cut(samples: pl.DataFrame, seconds: float, place: str = "start", **more: float | bool | None) -> Windows:
    return cut_windows(samples, WindowSpec(seconds, place, samples_per_s=1.0, **more), channels=["power_w"])  # type: ignore[arg-type]


def starts_s(windows: Windows) -> list[float]:
    return [(start - START).total_seconds() for start in windows.table["start"]]


def test_sliding_windows_follow_each_other_and_the_incomplete_rest_is_left():
    whole = cut(series([float(s) for s in range(11)]), 3, "slide")
    assert whole.values[:, 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert whole.table["window_id"].to_list() == [0, 1, 2]
    half = cut(series([float(s) for s in range(6)]), 3, "slide", stride_s=1.0)
    assert starts_s(half) == [0, 1, 2]


def test_a_sliding_window_over_a_gap_is_left_out_and_the_others_stay():
    windows = cut(series([0.0, 1.0, 2.0, 6.0, 7.0, 8.0, 9.0]), 3, "slide")
    assert starts_s(windows) == [0, 6]
    assert windows.short.is_empty()
    assert windows.refused.select("job_id", "reason").rows() == [(1, "too_few_samples")]
    assert windows.refused["start"].to_list() == [START + timedelta(seconds=3)]


def test_a_window_knows_how_fast_its_samples_were_read():
    tenth = [s / 10 for s in range(71)]
    fast = cut_windows(series(tenth), WindowSpec(6, "start", samples_per_s=9.0), channels=["power_w"])
    assert fast.values.shape == (1, 1, 54)
    assert fast.samples_per_s == pytest.approx([10.0])  # ten a second, though nine were asked for
    even = WindowSpec(6, "start", samples_per_s=9.0, even=True, max_gap_s=1.0)
    assert cut_windows(series(tenth), even, channels=["power_w"]).samples_per_s.tolist() == [9.0]
    assert np.isnan(cut(series([0.0, 1.0]), 1).samples_per_s).all()  # one sample
    assert cut_challenge(series(tenth), "start", ["power_w"], seconds=6).samples_per_s == pytest.approx([10.0])


def test_readings_of_one_instant_stand_side_by_side_and_no_even_grid_divides_by_their_distance():
    twice = series([0.0, 1.0, 1.0, 2.0, 3.0])
    assert cut(twice, 3).values[0, 0].tolist() == [0, 1, 2]
    assert cut(twice, 3, even=True, max_gap_s=1.0).values[0, 0].tolist() == [0, 2, 3]


def test_a_random_window_depends_on_seed_and_series_and_not_on_its_company():
    one, other = series([s / 4 for s in range(400)]), series([s / 4 for s in range(400)], job_id=2)
    alone, together = cut(one, 10, "random"), cut(pl.concat([other, one]), 10, "random")
    assert starts_s(together)[0] == starts_s(alone)[0] != starts_s(together)[1]
    assert starts_s(cut(one, 10, "random", seed=1)) != starts_s(alone)


@given(seed=st.integers(0, 1000), extra_s=st.integers(0, 30))
def test_a_random_window_lies_within_its_series(seed: int, extra_s: int):
    windows = cut(series([float(s) for s in range(6 + extra_s)]), 5, "random", seed=seed)
    # a start between two samples leaves five of them in five seconds
    assert 0 <= starts_s(windows)[0] <= extra_s
    assert windows.values.shape == (1, 1, 5)


def test_a_window_with_a_longer_gap_than_allowed_is_refused_at_its_edges_too():
    crowded = [0.0, 0.1, 0.2, 0.3, 2.0, 3.0, 4.0]
    assert cut(series(crowded), 4, max_gap_s=1.0).short["reason"].to_list() == ["gap"]
    assert cut(series(crowded), 4, max_gap_s=1.7).values.tolist() == [[[0, 1, 2, 3]]]
    late = [0.0, 3.0, 3.2, 3.4, 3.6, 3.8, 5.0]  # the middle window is 0.5 to 4.5, without a reading until 3
    assert cut(series(late), 4, "middle", max_gap_s=2.0).short["reason"].to_list() == ["gap"]


def test_an_even_grid_lies_on_straight_lines_between_the_readings():
    windows = cut(series([0.0, 0.5, 1.5, 2.5, 3.5]), 3, even=True, max_gap_s=1.0)
    assert windows.values.tolist() == [[[0.0, 1.5, 2.5]]]  # readings 0 1 2 3 at 0.0 0.5 1.5 2.5 s
    moved = cut(series([0.0, 1.0, 2.0, 4.0]), 2, "middle", even=True, max_gap_s=2.0)
    assert moved.values.tolist() == [[[1.0, 2.0]]]


def test_an_even_grid_beside_a_missing_reading_is_missing():
    samples = series([0.0, 0.5, 1.5, 2.5]).with_columns(power_w=pl.when(pl.col("power_w") != 2).then(pl.col("power_w")))
    values = cut(samples, 2, even=True, max_gap_s=1.0).values[0, 0]
    assert values[0] == 0.0
    assert np.isnan(values[1])


def test_the_challenge_cuts_all_to_the_shortest_kept_and_drops_the_sparse():
    full = [s / 4 for s in range(44)]
    samples = pl.concat(
        [
            series(full),
            series([s / 3 for s in range(33)], job_id=2),
            series([float(s) for s in range(12)], job_id=3),
            series(full[:30], job_id=4),
        ]
    )
    windows = cut_challenge(samples, "start", ["power_w"], seconds=10, samples_per_s=3.0)
    assert windows.table["job_id"].to_list() == [1, 2]
    assert windows.values.shape == (2, 1, 30)  # job 1 has 40 samples in its ten seconds, job 2 has 30
    assert windows.short.select("job_id", "reason").rows() == [(3, "too_few_samples"), (4, "shorter_than_window")]


def test_the_challenge_takes_the_length_of_a_file_and_each_of_its_gpus_as_a_trial():
    early, late = series([s / 4 for s in range(41)]), series([2 + s / 4 for s in range(41)], gpu_index=1)
    windows = cut_challenge(pl.concat([early, late]), "middle", ["power_w"], seconds=4, samples_per_s=4.0)
    assert starts_s(windows) == [4.0, 4.0]  # half of the file's 12 s is 6
    assert windows.values[:, 0, 0].tolist() == [16.0, 8.0]
    assert windows.table["gpu_index"].to_list() == [0, 1]


def test_no_samples_give_no_trials():
    windows = cut_challenge(series([]), "random", ["power_w"])
    assert windows.values.shape == (0, 1, 540)
    assert windows.short.is_empty()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"stride_s": 2.0}, "place is 'middle'; only sliding windows have one"),
        ({"place": "slide", "stride_s": 0.0}, "stride_s is 0.0"),
        ({"max_gap_s": -1.0}, "max_gap_s is -1.0"),
        ({"even": True}, "an even grid needs max_gap_s"),
    ],
)
def test_a_wrong_specification_is_refused_by_name(arguments: dict[str, object], said: str):
    with pytest.raises(ValueError, match=said):
        WindowSpec(60, **arguments)  # type: ignore[arg-type]


def test_the_challenge_has_no_sliding_windows():
    with pytest.raises(ValueError, match="start, middle or random"):
        cut_challenge(series([0.0]), "slide", ["power_w"])
