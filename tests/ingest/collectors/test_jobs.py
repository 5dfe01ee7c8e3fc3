from __future__ import annotations

import shutil

import pytest

from ingest.collectors.jobs import JobStep, job_cgroups, job_in_environment, job_of_process, parse_cgroup, process_ids
from tests.recorded_proc import Told, write_cgroup, write_process


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0::/system.slice/slurmstepd.scope/job_1392969/step_0/user/task_0\n", JobStep(1392969, "0", "0")),
        ("0::/system.slice/n1_slurmstepd.scope/job_42/step_batch/user/task_special", JobStep(42, "batch", "special")),
        ("0::/system.slice/slurmstepd.scope/job_7/step_extern/user/task_0", JobStep(7, "extern", "0")),
        ("0::/system.slice/slurmstepd.scope/job_7", JobStep(7)),
        ("10:devices:/slurm/uid_2101171/job_280678/step_interactive/task_0\n", JobStep(280678, "interactive", "0")),
        ("4:memory:/slurm_node-3/uid_1000/job_5/step_12", JobStep(5, "12")),
        ("9:cpuset:/slurm/uid_0/job_5\n4:memory:/slurm/uid_0/job_5/step_0/task_1\n1:name=x:/", JobStep(5, "0", "1")),
        ("0::/system.slice/slurmstepd.scope/job_3/step_0/user/task_0/docker/abc", JobStep(3, "0", "0")),
        ("0::/system.slice/slurmstepd.scope/system", None),
        ("0::/user.slice/user-1000.slice/session-3.scope", None),
        ("0::/kubepods/job_12/pod", None),
        ("0::/system.slice/slurmd.service", None),
        ("", None),
    ],
)
def test_the_job_is_read_from_either_version_of_cgroups(text, found):
    assert parse_cgroup(text) == found


def test_without_a_job_cgroup_the_environment_tells(tmp_path):
    write_process(tmp_path, Told(10, environment=b"A=1\0SLURM_JOB_ID=99\0SLURM_STEP_ID=4\0SLURM_PROCID=2\0"))
    assert job_of_process(10, tmp_path) == JobStep(99, "4", "2")


def test_an_interactive_step_has_its_name_where_only_the_environment_tells_of_it():
    told = job_in_environment(b"SLURM_JOB_ID=99\0SLURM_STEP_ID=4294967290\0SLURM_PROCID=0\0")
    assert told == parse_cgroup("0::/system.slice/n1_slurmstepd.scope/job_99/step_interactive/user/task_0")


def test_the_cgroup_goes_before_the_environment_which_anybody_can_set(tmp_path):
    told = Told(
        10, cgroup="0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0", environment=b"SLURM_JOB_ID=99\0"
    )
    write_process(tmp_path, told)
    assert job_of_process(10, tmp_path) == JobStep(7, "0", "0")


def test_a_process_that_is_gone_or_closed_to_us_has_no_job(tmp_path):
    assert job_of_process(10, tmp_path) is None
    write_process(tmp_path, Told(10))  # and no environ
    assert job_of_process(10, tmp_path) is None


@pytest.mark.parametrize(
    "environment", [b"", b"SLURM_JOB_ID=\0", b"SLURM_JOB_ID=x\0", b"XSLURM_JOB_ID=5\0", b"\xff\xfe"]
)
def test_an_environment_without_a_job_number_has_no_job(environment):
    assert job_in_environment(environment) is None


def test_members_of_a_job_are_found_in_the_unified_hierarchy(tmp_path):
    scope = "system.slice/n1_slurmstepd.scope"
    write_cgroup(tmp_path, f"{scope}/job_7/step_0/user/task_0", [10, 11])
    write_cgroup(tmp_path, f"{scope}/job_7/step_batch/user/task_0", [12])
    write_cgroup(tmp_path, f"{scope}/system", [1])
    write_cgroup(tmp_path, "user.slice", [2])
    found = {step: process_ids(folder) for step, folder in job_cgroups(tmp_path)}
    assert found == {JobStep(7, "0", "0"): [10, 11], JobStep(7, "batch", "0"): [12]}


def test_members_of_a_job_are_taken_from_one_hierarchy_of_version_1(tmp_path):
    for controller in ("memory", "cpuset"):
        write_cgroup(tmp_path, f"{controller}/slurm/uid_1000/job_7/step_0/task_0", [10])
    assert [(step, process_ids(folder)) for step, folder in job_cgroups(tmp_path)] == [(JobStep(7, "0", "0"), [10])]


def test_a_node_without_slurm_has_no_job_cgroups(tmp_path):
    write_cgroup(tmp_path, "user.slice", [2])
    assert list(job_cgroups(tmp_path)) == []
    assert list(job_cgroups(tmp_path / "nothing")) == []


def test_cgroups_that_end_while_they_are_looked_through_are_left_out(tmp_path):
    for step in range(8):
        write_cgroup(tmp_path, f"system.slice/slurmstepd.scope/job_1/step_{step}/user/task_0", [step])
    looking = job_cgroups(tmp_path)
    first, _ = next(looking)
    shutil.rmtree(tmp_path / "system.slice")
    assert first.job_id == 1
    assert list(looking) == []
