from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.windows import CHALLENGE_CHANNELS, Windows, WindowSpec, cut_windows

START = datetime(2021, 5, 21, tzinfo=UTC)


def series(
    seconds: list[float],
    *,
    job_id: int | None = 1,
    node: str = "r1-n1",
    gpu_index: int = 0,
    power_w: list[float] | None = None,
) -> pl.DataFrame:
    """One series with readings at these seconds; power counts 0, 1, 2 … unless given."""
    power = power_w if power_w is not None else [float(i) for i in range(len(seconds))]
    return pl.DataFrame(
        {
            "job_id": [job_id] * len(seconds),
            "node": [node] * len(seconds),
            "gpu_index": [gpu_index] * len(seconds),
            "time": [START + timedelta(seconds=s) for s in seconds],
            "power_w": power,
        },
        schema={
            "job_id": pl.Int64,
            "node": pl.String,
            "gpu_index": pl.Int16,
            "time": pl.Datetime("us", "UTC"),
            "power_w": pl.Float32,
        },
    )


def cut(samples: pl.DataFrame, seconds: float, place: str = "middle", samples_per_s: float = 1.0) -> Windows:
    return cut_windows(samples, WindowSpec(seconds, place, samples_per_s), channels=["power_w"])


def test_the_challenge_window_of_a_minute_has_540_samples():
    assert WindowSpec(60).n_samples == 540
    assert WindowSpec(15).n_samples == 135


def test_a_rate_that_is_no_binary_fraction_does_not_round_up_to_one_sample_more():
    assert WindowSpec(30, samples_per_s=0.1).n_samples == 3


def test_the_middle_window_is_centred_on_half_the_run():
    windows = cut(series([float(s) for s in range(11)]), seconds=4)
    assert windows.values.tolist() == [[[3.0, 4.0, 5.0, 6.0]]]
    assert windows.table["start"].to_list() == [START + timedelta(seconds=3)]


def test_the_start_window_begins_with_the_first_sample():
    windows = cut(series([2.0, 3.0, 4.0, 5.0, 6.0]), seconds=3, place="start")
    assert windows.values.tolist() == [[[0.0, 1.0, 2.0]]]
    assert windows.table["start"].to_list() == [START + timedelta(seconds=2)]


def test_a_window_counts_seconds_and_not_rows():
    crowded = series([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 6.0, 7.0, 8.0, 9.0, 10.0])
    assert cut(crowded, seconds=3).short["reason"].to_list() == ["too_few_samples"]  # 3.5 to 6.5 holds one reading
    assert cut(crowded, seconds=3, place="start").values.tolist() == [[[0.0, 1.0, 2.0]]]


def test_a_run_as_long_as_the_window_is_kept_and_a_shorter_one_is_reported():
    exact, short = series([0.0, 1.0, 2.0, 3.0]), series([0.0, 1.0, 2.0, 2.999999], job_id=2)
    windows = cut(pl.concat([exact, short]), seconds=3, place="start")
    assert windows.table["job_id"].to_list() == [1]
    assert windows.short.rows() == [(2, "r1-n1", 0, 2.999999, 4, "shorter_than_window")]


def test_a_gap_inside_the_window_is_reported_and_not_bridged():
    windows = cut(series([0.0, 1.0, 2.0, 8.0, 9.0, 10.0]), seconds=6)
    assert windows.values.shape == (0, 1, 6)
    assert windows.short["reason"].to_list() == ["too_few_samples"]


def test_nodes_and_gpus_of_one_job_are_separate_series():
    samples = pl.concat(
        [
            series([0.0, 1.0, 2.0], node="a", gpu_index=0, power_w=[1, 1, 1]),
            series([0.5, 1.5, 2.5], node="a", gpu_index=1, power_w=[2, 2, 2]),
            series([0.2, 1.2, 2.2], node="b", gpu_index=0, power_w=[3, 3, 3]),
        ]
    )
    windows = cut(samples, seconds=2)
    assert windows.table.select("window_id", "node", "gpu_index").rows() == [(0, "a", 0), (1, "a", 1), (2, "b", 0)]
    assert windows.values[:, 0, :].tolist() == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]


def test_samples_of_no_job_are_reported_as_such():
    windows = cut(series([0.0, 1.0, 2.0], job_id=None), seconds=2)
    assert windows.short.rows() == [(None, "r1-n1", 0, 2.0, 3, "no_job")]


def test_a_missing_reading_stays_missing():
    windows = cut(series([0.0, 1.0, 2.0], power_w=[5.0, None, 7.0]), seconds=2, place="start")  # type: ignore[list-item]
    assert windows.values[0, 0, 0] == 5.0
    assert np.isnan(windows.values[0, 0, 1])


def test_no_samples_give_no_windows_of_the_right_shape():
    windows = cut(series([]), seconds=2)
    assert windows.values.shape == (0, 1, 2)
    assert windows.table.schema["start"] == pl.Datetime("us", "UTC")
    assert windows.short.height == 0


def test_channels_come_in_the_order_asked_for():
    samples = series([0.0, 1.0, 2.0]).with_columns(
        (pl.col("power_w") + 100 * place).alias(name) for place, name in enumerate(CHALLENGE_CHANNELS)
    )
    windows = cut_windows(samples, WindowSpec(2, samples_per_s=1))
    assert windows.channels == CHALLENGE_CHANNELS
    assert windows.values[0, :, 0].tolist() == [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0]
    assert windows.values.dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": 60, "place": "end"}, "place is 'end'; give one of start, middle"),
        ({"seconds": 60, "samples_per_s": -1}, "samples_per_s is -1"),
        ({"seconds": 0.0009}, "seconds is 0.0009; give 0.001 to 1e"),
        ({"seconds": 1e15, "samples_per_s": 1e-12}, "seconds is 1000000000000000.0; give 0.001 to 1e"),
        ({"seconds": 60, "place": "slide", "stride_s": 1e-7}, "stride_s is 1e-07; give 0.001"),
        ({"seconds": 60, "max_gap_s": 1e15}, "max_gap_s is 1000000000000000.0; give a length above 0, up to 1e"),
        (
            {"seconds": 60, "samples_per_s": 1e9},
            r"seconds x samples_per_s is 60 x 1e\+09, .* 6e\+10 samples; .* 10,000,000",
        ),
        ({"seconds": 60, "place": "random", "seed": -1}, "seed is -1; give 0 or more"),
    ],
)
def test_a_wrong_specification_is_refused_by_name(arguments: dict[str, object], said: str):
    with pytest.raises(ValueError, match=said):
        WindowSpec(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("even", [False, True])
def test_windows_of_millions_of_samples_that_no_series_has_need_no_memory(even: bool):
    spec = WindowSpec(1000, samples_per_s=9000, max_gap_s=1.0, even=even)
    tracemalloc.start()
    try:
        windows = cut_windows(series([0.0, 1.0]), spec, channels=["power_w"])
        assert tracemalloc.get_traced_memory()[1] < 9_000_000
    finally:
        tracemalloc.stop()
    assert windows.values.shape == (0, 1, 9_000_000)
    assert windows.short["reason"].to_list() == ["shorter_than_window"]


def test_the_shortest_windows_and_strides_are_a_millisecond():
    windows = cut_windows(series([0.0, 0.001, 0.002]), WindowSpec(0.001, "slide", 1.0), channels=["power_w"])
    assert windows.values.tolist() == [[[0.0]], [[1.0]]]


def test_samples_without_a_time_are_refused_with_their_number():
    untimed = series([0.0, 1.0, 2.0]).with_columns(time=pl.lit(None, pl.Datetime("us", "UTC")))
    with pytest.raises(ValueError, match="3 of 3 samples have no time"):
        cut(untimed, seconds=2)


def test_a_channel_without_a_reading_is_missing_and_not_zero():
    absent = series([0.0, 1.0, 2.0]).with_columns(power_w=pl.lit(None))
    assert np.isnan(cut(absent, seconds=2).values).all()


def test_a_missing_channel_is_named():
    with pytest.raises(ValueError, match="no column gpu_temp_c, memory_temp_c"):
        cut_windows(series([0.0]), WindowSpec(1), channels=["power_w", "gpu_temp_c", "memory_temp_c"])


@given(
    steps_ms=st.lists(st.integers(1, 400), min_size=1, max_size=60),
    window_s=st.integers(1, 8),
    place=st.sampled_from(["start", "middle"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_window_is_a_run_of_the_series_inside_its_seconds_whatever_the_order_of_rows(
    steps_ms: list[int], window_s: int, place: str, seed: int
):
    seconds = (np.cumsum([0, *steps_ms]) / 1000).tolist()
    samples = series(seconds)
    windows = cut(samples, window_s, place, samples_per_s=2.0)
    shuffled = cut(samples.sample(fraction=1.0, shuffle=True, seed=seed), window_s, place, samples_per_s=2.0)
    assert np.array_equal(windows.values, shuffled.values)
    assert windows.table.height + windows.short.height == 1
    if windows.table.height:
        rows = windows.values[0, 0].astype(int)
        begin = (windows.table["start"][0] - START).total_seconds()
        assert rows.tolist() == list(range(rows[0], rows[0] + 2 * window_s))
        assert begin <= seconds[rows[0]]
        assert seconds[rows[-1]] < begin + window_s
        assert rows[0] == 0 or seconds[rows[0] - 1] < begin
    else:
        assert seconds[-1] < window_s or windows.short["reason"][0] == "too_few_samples"
