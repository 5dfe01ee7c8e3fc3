import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.schemas import GPU_SAMPLES
from ingest.synthetic_caps import (
    CAP_CLASSES,
    CapClass,
    CapJob,
    Phase,
    cap_samples,
    make_cap_response_jobs,
    relative_clock,
)

HALF = CapJob(
    job_id=1,
    cap_class=CapClass("half", (Phase(10.0, 200.0, 1.0), Phase(10.0, 50.0, 0.0))),
    scale=1.0,
    cycles=2,
    start_us=0,
)
"""Ten seconds at 200 W wholly bound to the clock, ten at 50 W, twice."""

JOBS = make_cap_response_jobs(10, rng=7)


def test_a_cap_of_an_eighth_of_the_dynamic_power_halves_the_clock():
    assert relative_clock(HALF.phases[0], 40.0 + 160.0 / 8) == pytest.approx(0.5)


def test_slowdown_and_energy_worked_out_by_hand():
    """60 W: 160 W dynamic become 20, clock 1/2, ten seconds become twenty; the 50 W phase is untouched."""
    assert HALF.run_s == 40.0
    assert HALF.energy_j == pytest.approx(2 * (200 * 10 + 50 * 10))
    assert HALF.slowdown(60.0) == pytest.approx(60 / 40)
    assert HALF.energy_under_j(60.0) == pytest.approx(2 * (60 * 20 + 50 * 10))
    assert HALF.relative_energy(60.0) == pytest.approx(3400 / 5000)


def test_share_above_counts_only_what_draws_more():
    assert HALF.share_above(60.0) == 0.5
    assert HALF.share_above(200.0) == 0.0
    assert HALF.share_above(49.0) == 1.0


@given(job=st.sampled_from(JOBS), low=st.floats(45.0, 300.0), high=st.floats(45.0, 300.0))
def test_a_deeper_cap_is_never_faster(job, low, high):
    low, high = sorted((low, high))
    assert job.slowdown(low) >= job.slowdown(high) >= 1.0
    assert job.share_above(low) >= job.share_above(high)


@given(job=st.sampled_from(JOBS), above_w=st.floats(0.0, 50.0))
def test_a_cap_above_every_demand_changes_nothing(job, above_w):
    cap_w = max(phase.demand_w for phase in job.phases) + above_w
    assert (job.slowdown(cap_w), job.relative_energy(cap_w), job.share_above(cap_w)) == (1.0, 1.0, 0.0)


@given(job=st.sampled_from(JOBS), below_w=st.floats(1.0, 10.0))
def test_a_cap_below_the_clock_bound_peak_costs_time_and_saves_energy(job, below_w):
    cap_w = max(phase.demand_w for phase in job.phases) - below_w
    assert job.slowdown(cap_w) > 1.0
    assert job.relative_energy(cap_w) < 1.0


def test_mean_answer_at_150_w_is_near_the_published_one():
    """16 V100, language models, 250 to 150 W: +6.8 % time, -13.7 % energy (McDonald et al., NAACL Findings 2022)."""
    jobs = make_cap_response_jobs(200, rng=1)
    assert 1.03 < np.mean([job.slowdown(150.0) for job in jobs]) < 1.10
    assert 0.82 < np.mean([job.relative_energy(150.0) for job in jobs]) < 0.92


@pytest.mark.parametrize("name", list(CAP_CLASSES))
@pytest.mark.parametrize("cap_w", [250.0, 150.0, 100.0])
def test_telemetry_comes_to_the_known_time_and_energy(name, cap_w):
    (job,) = make_cap_response_jobs(1, rng=3, classes=[name])
    frame = cap_samples(job, cap_w, rng=4)
    time_s = (frame["time"].cast(pl.Int64).to_numpy() - job.start_us) / 1e6
    power_w = frame["power_w"].to_numpy().astype(float)
    assert time_s[0] == 0.0
    assert time_s[-1] == pytest.approx(job.run_s * job.slowdown(cap_w), abs=1e-6)
    assert np.trapezoid(power_w, time_s) == pytest.approx(job.energy_under_j(cap_w), rel=3e-3)
    assert power_w.max() <= np.float32(cap_w)


@pytest.mark.parametrize("cap_w", [200.0, 150.0, 100.0, 75.0])
def test_one_second_averages_of_uncapped_telemetry_show_the_share_above(cap_w):
    for job in JOBS:
        frame = cap_samples(job, rng=5)
        second = frame.group_by(pl.col("time").dt.truncate("1s")).agg(pl.col("power_w").mean())
        assert (second["power_w"] > cap_w).mean() == pytest.approx(job.share_above(cap_w), abs=0.02)


def test_telemetry_has_the_columns_of_the_lake_and_says_which_cap_was_set():
    frame = cap_samples(HALF, 150.0, rng=1)
    assert dict(frame.schema) == GPU_SAMPLES.columns
    assert frame["power_limit_w"].unique().to_list() == [150.0]
    slow = frame.filter(pl.col("power_w") > 100)["sm_clock_mhz"].unique().to_list()
    assert slow == [round(1_530 * (110 / 160) ** (1 / 3))]


def test_jobs_are_dealt_out_evenly_and_the_same_seed_gives_the_same_jobs():
    names = [job.cap_class.name for job in JOBS]
    assert {name: names.count(name) for name in names} == dict.fromkeys(CAP_CLASSES, 2)
    assert make_cap_response_jobs(10, rng=7) == JOBS
    assert make_cap_response_jobs(10, rng=8) != JOBS
    assert cap_samples(HALF, rng=1).equals(cap_samples(HALF, rng=1))


def test_runs_do_not_overlap_under_any_reasonable_cap():
    ends = [job.start_us + job.run_s * job.slowdown(50.0) * 1e6 for job in JOBS]
    assert all(end < job.start_us for end, job in zip(ends, JOBS[1:], strict=False))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"classes": ["idle"]}, "idle"), ({"classes": []}, "no name"), ({"cycles": (3, 2)}, "cycles")],
)
def test_a_wrong_argument_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_cap_response_jobs(1, rng=1, **wrong)


def test_a_cap_below_the_static_draw_is_refused():
    with pytest.raises(ValueError, match="static"):
        HALF.slowdown(40.0)
