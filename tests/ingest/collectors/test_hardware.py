from __future__ import annotations

import copy
import ctypes
import re
from pathlib import Path

import pynvml as nv
import pytest

from ingest.collectors.hardware import CALLS, GpuReading, NvmlBackend, calls_at
from ingest.errors import GpuLostError, HardwareError
from tests.nvml_driver import H200, PlayedDriver

README = Path(__file__).parents[3] / "README.md"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def driver(monkeypatch):
    """Two GPUs; the second can be changed by the test before the backend is opened."""
    played = PlayedDriver([copy.deepcopy(H200), {**copy.deepcopy(H200), "UUID": "GPU-bbbb"}])
    monkeypatch.setattr(nv, "nvmlLib", played)
    monkeypatch.setattr(nv, "_nvmlGetFunctionPointer_cache", {})
    return played


def test_a_reading_has_every_value_in_its_unit(driver):
    reading = NvmlBackend(wall=lambda: 1795399433.5).read(0, with_energy=True)
    assert reading == GpuReading(
        time_s=1795399433.5,
        gpu_util_pct=87,
        memory_util_pct=31,
        memory_free_mib=114688,
        memory_used_mib=29083,
        gpu_temp_c=41,
        memory_temp_c=48,
        power_w=612.345,
        pcie_link_width=16,
        power_avg_w=600.001,
        energy_mj=435205165,
        sm_clock_mhz=1980,
        memory_clock_mhz=3201,
        power_limit_w=700.0,
        throttle_reasons=4,
    )


def test_a_gpu_without_a_sensor_gives_none_and_is_not_asked_again(driver):
    del driver.gpus[0]["UtilizationRates"]  # as with MIG
    del driver.gpus[0]["fields"][82]
    backend = NvmlBackend()
    assert backend.read(0, with_energy=True)[1:3] == (None, None)
    assert backend.read(0, with_energy=True).memory_temp_c is None
    assert backend.read(1, with_energy=True).gpu_util_pct == 87
    assert driver.asked.count((0, "UtilizationRates")) == 1
    assert backend.take_refusals() == []


def test_where_the_fields_are_unknown_power_and_energy_come_from_the_older_calls(driver):
    driver.gpus[0] |= {"PowerUsage": 250500, "TotalEnergyConsumption": 77}
    driver.gpus[0]["fields"] = None
    reading = NvmlBackend().read(0, with_energy=True)
    assert (reading.power_w, reading.power_avg_w, reading.energy_mj) == (250.5, None, 77)


def test_the_energy_counter_is_asked_only_for_a_sample_that_is_to_have_it_and_never_held(driver):
    backend = NvmlBackend()
    told = [backend.read(0, with_energy=asked).energy_mj for asked in (False, True, False, False, True)]
    assert told == [None, 435205165, None, None, 435205165]
    assert driver.asked.count((0, "TotalEnergyConsumption")) == 2
    assert backend.read(0, with_energy=True)._replace(time_s=0, energy_mj=None) == backend.read(
        0, with_energy=False
    )._replace(time_s=0)


def test_what_changes_slowly_is_asked_seldom_and_its_last_value_stands_between(driver):
    clock = Clock()
    backend = NvmlBackend(monotonic=clock)
    for tick in range(200):
        clock.now_s = 1000.0 + tick / 10
        driver.gpus[0]["EnforcedPowerLimit"] = 700_000 if tick < 100 else 500_000
        limit_w = backend.read(0, with_energy=True).power_limit_w
        assert limit_w == 700.0 or tick >= 100
    assert limit_w == 500.0
    asked = 20 / CALLS["power_limit"]
    assert asked - 1 <= driver.asked.count((0, "EnforcedPowerLimit")) <= asked + 2
    assert driver.asked.count((0, "UtilizationRates")) == 200


def test_at_one_reading_a_second_a_value_of_one_second_is_asked_every_time(driver):
    clock = Clock()
    backend = NvmlBackend(monotonic=clock, calls={**CALLS, "power_limit": 1.0})
    for tick in range(10):
        clock.now_s = 1000.0 + tick + (0.003 if tick % 2 else 0.0)
        backend.read(0, with_energy=True)
    assert driver.asked.count((0, "EnforcedPowerLimit")) == 10


@pytest.mark.parametrize(
    "code",
    [
        nv.NVML_ERROR_GPU_IS_LOST,
        nv.NVML_ERROR_RESET_REQUIRED,
        nv.NVML_ERROR_UNINITIALIZED,
        nv.NVML_ERROR_DRIVER_NOT_LOADED,
        nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    ],
)
def test_a_lost_gpu_is_an_error_of_its_own_and_comes_back_by_its_uuid(driver, code):
    backend = NvmlBackend()
    driver.refuse(1, code)
    with pytest.raises(GpuLostError, match="GPU 1"):
        backend.read(1, with_energy=True)
    with pytest.raises(GpuLostError, match="GPU 1"):
        backend.describe(1)
    assert backend.read(0, with_energy=True).power_w == 612.345
    driver.codes.clear()
    assert backend.describe(1).uuid == "GPU-bbbb"
    assert backend.read(1, with_energy=True).power_w == 612.345


@pytest.mark.parametrize("code", [nv.NVML_ERROR_UNKNOWN, nv.NVML_ERROR_TIMEOUT, nv.NVML_ERROR_INVALID_ARGUMENT])
def test_a_gpu_that_refuses_every_call_is_lost_and_nothing_held_stands_for_it(driver, code):
    backend = NvmlBackend()
    before = backend.read(0, with_energy=True)
    driver.refuse(0, code)
    for with_energy in (False, True):
        with pytest.raises(GpuLostError, match="GPU 0"):
            backend.read(0, with_energy=with_energy)
    driver.codes.clear()
    driver.gpus[0]["EnforcedPowerLimit"] = 500_000
    backend.describe(0)
    after = backend.read(0, with_energy=True)
    assert after.power_limit_w == 500.0
    assert after._replace(time_s=0, power_limit_w=None) == before._replace(time_s=0, power_limit_w=None)


def test_a_gpu_that_answers_one_call_is_not_lost(driver):
    backend = NvmlBackend()
    driver.refuse(0, nv.NVML_ERROR_UNKNOWN)
    driver.codes[0, "Temperature"] = nv.NVML_SUCCESS
    reading = backend.read(0, with_energy=True)
    assert (reading.gpu_temp_c, reading.power_w, reading.power_limit_w) == (41, None, None)


def test_a_driver_that_is_loaded_anew_is_initialized_anew(driver):
    backend = NvmlBackend()
    driver.shut_down()
    with pytest.raises(GpuLostError, match="Uninitialized"):
        backend.read(0, with_energy=True)
    driver.init_code = nv.NVML_ERROR_DRIVER_NOT_LOADED
    with pytest.raises(GpuLostError, match="Driver Not Loaded"):
        backend.describe(0)
    driver.init_code = 0
    assert backend.describe(0).uuid == "GPU-aaaa"
    assert backend.read(0, with_energy=True).power_w == 612.345


def test_a_refusal_is_told_once_until_the_call_was_answered_again(driver):
    backend = NvmlBackend()
    driver.refuse(0, nv.NVML_ERROR_UNKNOWN, "Temperature")
    told = []
    for tick in range(6):
        if tick == 3:
            driver.codes.clear()
            backend.read(0, with_energy=False)
            driver.refuse(0, nv.NVML_ERROR_UNKNOWN, "Temperature")
        backend.read(0, with_energy=False)
        told.append(len(backend.take_refusals()))
    assert told == [1, 0, 0, 1, 0, 0]


def test_a_slow_value_that_was_refused_is_asked_again_within_a_second(driver):
    clock = Clock()
    backend = NvmlBackend(monotonic=clock)
    driver.refuse(0, nv.NVML_ERROR_UNKNOWN, "CurrPcieLinkWidth")
    assert backend.read(0, with_energy=False).pcie_link_width is None
    driver.codes.clear()
    clock.now_s += 1.0
    assert backend.read(0, with_energy=False).pcie_link_width == 16


def test_a_driver_that_has_gone_by_the_end_is_no_error(driver):
    backend = NvmlBackend()
    driver.shut_down()
    backend.close()


def test_no_permission_is_told_once_and_gives_none(driver):
    driver.refuse(0, nv.NVML_ERROR_NO_PERMISSION, "CurrentClocksEventReasons")
    backend = NvmlBackend()
    assert backend.read(0, with_energy=True).throttle_reasons is None
    assert backend.read(0, with_energy=True).throttle_reasons is None
    assert backend.take_refusals() == [("GPU 0, throttle_reasons: Insufficient Permissions", "no_permission")]
    assert backend.take_refusals() == []


def test_a_gpu_that_left_mig_tells_its_utilization_once_the_inventory_has_looked(driver):
    driver.gpus[0]["MigMode"] = (1, 1)
    utilization = driver.gpus[0].pop("UtilizationRates")
    driver.refuse(0, nv.NVML_ERROR_NO_PERMISSION, "CurrentClocksEventReasons")
    backend = NvmlBackend()
    assert backend.describe(0).mig_mode == 1
    assert backend.read(0, with_energy=False).gpu_util_pct is None
    driver.gpus[0] |= {"MigMode": (0, 0), "UtilizationRates": utilization}
    assert backend.describe(0).mig_mode == 0
    reading = backend.read(0, with_energy=False)
    assert (reading.gpu_util_pct, reading.throttle_reasons) == (87, None)
    assert len(backend.take_refusals()) == 1  # what is still refused is not told again
    driver.codes.clear()
    backend.describe(0)
    assert backend.read(0, with_energy=False).throttle_reasons == 4


def test_a_call_that_fails_once_is_asked_again(driver):
    backend = NvmlBackend()
    driver.refuse(0, nv.NVML_ERROR_UNKNOWN, "Temperature")
    assert backend.read(0, with_energy=True).gpu_temp_c is None
    driver.codes.clear()
    assert backend.read(0, with_energy=True).gpu_temp_c == 41


def test_no_driver_is_one_line_that_says_what_to_do(driver):
    driver.init_code = nv.NVML_ERROR_DRIVER_NOT_LOADED
    with pytest.raises(HardwareError, match=r"no NVIDIA driver answers \(Driver Not Loaded\).*--gpu-interval 0"):
        NvmlBackend()


def test_a_gpu_that_cannot_be_opened_leaves_the_others(driver):
    driver.refuse(0, nv.NVML_ERROR_NO_PERMISSION, "handle")
    backend = NvmlBackend()
    assert backend.indices() == (1,)
    assert backend.take_refusals() == [("GPU 0 cannot be opened: Insufficient Permissions", "no_permission")]


def test_without_a_gpu_there_is_nothing_to_collect(driver):
    driver.gpus.clear()
    with pytest.raises(HardwareError, match="NVML counts none"):
        NvmlBackend()


def test_the_inventory_has_limits_mode_and_driver(driver):
    device = NvmlBackend().describe(0)
    assert (device.name, device.uuid, device.driver_version) == ("NVIDIA H200", "GPU-aaaa", "580.159")
    assert (device.memory_total_mib, device.mig_mode) == (143771, 0)
    limits = (device.power_limit_w, device.power_limit_default_w, device.power_limit_min_w, device.power_limit_max_w)
    assert limits == (700.0, 700.0, 200.0, 700.0)


def test_processes_of_a_gpu_are_those_that_compute_on_it(driver):
    driver.gpus[0]["ComputeRunningProcesses_v3"] = (4242, 4243)
    backend = NvmlBackend()
    assert backend.process_ids(0) == [4242, 4243]
    assert backend.process_ids(1) == []
    driver.refuse(0, nv.NVML_ERROR_UNKNOWN, "ComputeRunningProcesses_v3")
    assert backend.process_ids(0) is None


def test_a_library_without_a_function_gives_none_and_older_names_are_tried(driver, monkeypatch):
    class Older:
        """The driver's library, without functions that came later."""

        def __getattr__(self, name):
            if name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetEnforcedPowerLimit"):
                raise AttributeError(name)
            return getattr(driver, name)

    driver.gpus[0]["CurrentClocksThrottleReasons"] = 8
    monkeypatch.setattr(nv, "nvmlLib", Older())
    reading = NvmlBackend().read(0, with_energy=True)
    assert (reading.throttle_reasons, reading.power_limit_w, reading.gpu_temp_c) == (8, None, 41)


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        (nv.NVML_VALUE_TYPE_DOUBLE, b"\0\0\0\0\0\0\xf8\x3f", 1.5),
        (nv.NVML_VALUE_TYPE_UNSIGNED_INT, b"\1\0\0\0\xff\xff\xff\xff", 1),
        (nv.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, b"\0\0\0\0\1\0\0\0", 2**32),
        (nv.NVML_VALUE_TYPE_SIGNED_LONG_LONG, b"\xff" * 8, -1),
        (nv.NVML_VALUE_TYPE_SIGNED_INT, b"\xfe\xff\xff\xff\0\0\0\0", -2),
        (nv.NVML_VALUE_TYPE_UNSIGNED_SHORT, b"\3\0\xff\xff\xff\xff\xff\xff", 3),
    ],
)
def test_a_field_is_read_by_its_kind_and_pynvml_agrees(driver, kind, raw, value):
    from ingest.collectors.nvml_calls import FIELD_VALUE, _value

    field = nv.c_nvmlFieldValue_t(fieldId=186, valueType=kind)
    ctypes.memmove(ctypes.byref(field.value), raw, 8)
    parts = FIELD_VALUE.unpack(bytes(field))
    assert (parts[0], parts[4]) == (186, kind)
    assert (
        _value(*parts[4:])
        == value
        == getattr(field.value, ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")[kind])
    )
    assert _value(kind, nv.NVML_ERROR_NOT_SUPPORTED, raw) is None


# -- what the README says ----------------------------------------------------------------------------------------------


def test_the_readme_says_how_often_slow_values_are_asked():
    said = re.search(
        r"Memory temperature and the limit are asked every (\S+) s \(every (\S+) s at one reading a second or fewer\), "
        r"the memory clock every (\S+) s, "
        r"PCIe width once a minute; between, the last value stands",
        README.read_text("utf-8"),
    )
    assert said is not None, "the README's sentence on slow values is worded anew: word it anew here"
    often_s, seldom_s, clock_s = map(float, said.groups())
    slow = {"memory_temperature": often_s, "power_limit": often_s, "memory_clock": clock_s, "pcie_width": 60.0}
    assert {name: age_s for name, age_s in CALLS.items() if age_s} == slow
    assert calls_at(0.999) == CALLS
    for interval_s in (1.0, 60.0):
        slower = {**slow, "memory_temperature": seldom_s, "power_limit": seldom_s}
        assert {name: age_s for name, age_s in calls_at(interval_s).items() if age_s} == slower
