from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import app.doctor
from app.doctor import (
    LIBRARIES,
    Finding,
    check_lake,
    check_libraries,
    check_nvml,
    check_rapl,
    check_rooms,
    check_space,
    hidden_rooms,
    python_path,
)
from ingest.lake import Lake
from ingest.pipeline import ingest
from ingest.runner import SerialRunner
from tests.gpu_files import write_gpu_file

HOME = Path(app.doctor.__file__).parent.parent


@pytest.fixture
def foreign(tmp_path):
    """A folder of another project, with a models.py and a features package."""
    folder = tmp_path / "other"
    (folder / "features").mkdir(parents=True)
    (folder / "features" / "__init__.py").touch()
    (folder / "models.py").touch()
    return folder


def test_no_room_is_hidden_where_only_jobwatt_is_found():
    (finding,) = check_rooms(HOME, running=[str(HOME)], started_here=[str(HOME)])
    assert finding.status == "ok"
    assert str(HOME) in finding.found


def test_a_foreign_module_or_package_hides_a_room_and_is_named_with_a_next_step(foreign):
    assert hidden_rooms(HOME, [str(foreign), str(HOME)]) == {
        "features": foreign / "features" / "__init__.py",
        "models": foreign / "models.py",
    }
    findings = check_rooms(HOME, running=[str(HOME)], started_here=[str(foreign)])
    assert [finding.status for finding in findings] == ["problem", "problem"]
    assert findings[1].found == f"models is hidden by {foreign / 'models.py'}"
    assert str(foreign) in findings[1].next_step


def test_a_foreign_module_behind_jobwatt_hides_nothing(foreign):
    assert hidden_rooms(HOME, [str(HOME), str(foreign)]) == {}


def test_a_folder_without_init_hides_nothing(tmp_path):
    (tmp_path / "models").mkdir()
    assert hidden_rooms(HOME, [str(tmp_path), str(HOME)]) == {}
    assert hidden_rooms(HOME, [str(tmp_path)]) == {}


def test_python_looks_in_this_folder_first_and_then_in_pythonpath(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"/a{os.pathsep}{os.pathsep}/b")
    assert python_path() == [str(tmp_path), "/a", "/b"]


def start_doctor(folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run the doctor in a folder, as the console script does: without that folder on the path."""
    return subprocess.run(
        [sys.executable, "-P", "-c", "from app.cli import main; main()", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(each) for each in path)},
    )


def test_the_doctor_finds_a_foreign_models_in_the_current_folder(foreign):
    done = start_doctor(foreign, HOME)
    assert done.returncode == 1
    assert f"models is hidden by {foreign / 'models.py'}" in done.stdout


def test_the_doctor_still_speaks_where_a_foreign_ingest_is_first_on_the_path(tmp_path):
    (tmp_path / "ingest.py").write_text("raise SystemExit('a foreign module was run')\n")
    done = start_doctor(HOME, tmp_path, HOME)
    assert done.returncode == 1, done.stderr
    assert f"ingest is hidden by {tmp_path / 'ingest.py'}" in done.stdout
    assert "not looked at" in done.stdout


def test_a_missing_library_is_a_problem_and_those_we_need_are_here():
    assert check_libraries(LIBRARIES).status == "ok"
    finding = check_libraries(["click", "no-such-library"])
    assert (finding.status, finding.found) == ("problem", "not installed: no-such-library")


def test_a_lake_that_is_not_there_yet_is_a_warning_with_the_command_that_makes_one(tmp_path):
    lake, disk = check_lake(tmp_path / "lake")
    assert lake.status == "warning"
    assert f"jobwatt lake ingest PATH --lake {tmp_path / 'lake'}" in lake.next_step
    assert disk.status == "ok"


def test_a_folder_that_is_no_lake_is_a_problem(tmp_path):
    lake = check_lake(tmp_path)[0]
    assert lake.status == "problem"
    assert str(tmp_path) in lake.found


@pytest.fixture
def lake(tmp_path):
    """A lake of one job, and the file of its samples."""
    write_gpu_file(tmp_path / "archive", 7, samples=5000)
    ingest(str(tmp_path / "archive"), tmp_path / "lake", runner=SerialRunner())
    (samples,) = (tmp_path / "lake" / "gpu_samples").rglob("*.parquet")
    return tmp_path / "lake", samples


def test_a_lake_is_looked_at_by_its_footers_and_the_command_that_reads_every_value_is_named(lake):
    root, samples = lake
    content = bytearray(samples.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 64] = bytes(64)
    samples.write_bytes(content)
    finding = check_lake(root)[0]
    assert (finding.status, Lake(root).check().problems != ()) == ("ok", True)
    assert f"`jobwatt lake check --lake {root}` reads every value" in finding.found


def test_a_lake_with_a_file_cut_short_is_a_problem(lake):
    root, samples = lake
    samples.write_bytes(samples.read_bytes()[:-20])
    finding = check_lake(root)[0]
    assert finding.status == "problem"
    assert samples.name in finding.found


def test_wrong_settings_are_a_problem(tmp_path, monkeypatch):
    (tmp_path / "jobwatt.toml").write_text("nonsense")
    monkeypatch.chdir(tmp_path)
    assert [finding.status for finding in check_lake(None)] == ["problem"]


@pytest.mark.parametrize(
    ("free_bytes", "status"), [(2 * 2**30, "ok"), (2**30, "warning"), (64 * 2**20, "warning"), (2**20, "problem")]
)
def test_little_space_is_a_warning_and_none_a_problem(free_bytes, status, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=free_bytes))
    assert check_space(tmp_path / "not" / "there" / "yet").status == status


def test_counters_that_answer_are_ok_and_those_that_do_not_a_warning(tmp_path):
    assert check_rapl(tmp_path).found == f"no energy counter in {tmp_path}"
    for index, content in enumerate(["123456\n", "7\n"]):
        (tmp_path / f"intel-rapl:{index}").mkdir()
        (tmp_path / f"intel-rapl:{index}" / "energy_uj").write_text(content)
    assert check_rapl(tmp_path) == Finding("ok", "rapl", "2 energy counters answer")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("")
    finding = check_rapl(tmp_path)
    assert (finding.status, finding.found) == ("warning", "1 of 2 energy counters cannot be read")
    assert "intel-rapl:1" in finding.next_step


class FakeDriver(types.ModuleType):
    """A pynvml with two GPUs, or with a driver that does not answer."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, answers: bool) -> None:
        super().__init__("pynvml")
        self.answers = answers
        self.open = 0

    def nvmlInit(self) -> None:
        if not self.answers:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return ["NVIDIA H200", b"NVIDIA V100"][handle]

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return [76_543, 24_400][handle]


def test_gpus_that_answer_are_named_with_their_watts(monkeypatch):
    driver = FakeDriver(answers=True)
    monkeypatch.setattr("app.doctor.find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert check_nvml() == Finding("ok", "nvml", "NVIDIA H200 77 W, NVIDIA V100 24 W")
    assert driver.open == 0


def test_a_driver_that_does_not_answer_is_a_warning(monkeypatch):
    monkeypatch.setattr("app.doctor.find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "pynvml", FakeDriver(answers=False))
    finding = check_nvml()
    assert (finding.status, finding.found) == ("warning", "the driver does not answer: Driver Not Loaded")


def test_a_missing_pynvml_is_a_warning_that_says_so(monkeypatch):
    monkeypatch.setattr("app.doctor.find_spec", lambda _: None)
    finding = check_nvml()
    assert finding.status == "warning"
    assert "not installed" in finding.found
