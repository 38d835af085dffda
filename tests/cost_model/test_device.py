import json
import math

import pytest

from cost_model import HARDWARE, ClusterError, Device, roofline_seconds
from cost_model.hardware import GIB, MATMUL_EFFICIENCY, MEMORY_EFFICIENCY, RESERVE

DEVICE = Device("d", {"bfloat16": 4e12, "float32": 2e12}, 1e11, 1 << 30, 1 << 20, 1e-6)

# (peak bfloat16 or float16 flop/s, peak bytes/s, GiB) as published
PUBLISHED = {
    "v100": ("float16", 1.25e14, 9.0e11, 16),
    "a100": ("bfloat16", 3.12e14, 2.0e12, 80),
    "a100-40gb": ("bfloat16", 3.12e14, 1.56e12, 40),
    "h100": ("bfloat16", 9.9e14, 3.35e12, 80),
    "h200": ("bfloat16", 9.9e14, 4.8e12, 141),
    "b200": ("bfloat16", 2.25e15, 8.0e12, 180),
    "tpu-v4": ("bfloat16", 2.75e14, 1.2e12, 32),
    "tpu-v5e": ("bfloat16", 1.97e14, 8.1e11, 16),
    "tpu-v5p": ("bfloat16", 4.59e14, 2.8e12, 95),
    "tpu-v6e": ("bfloat16", 9.2e14, 1.6e12, 32),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_table_holds_published_numbers(name):
    dtype, peak, memory_peak, gib = PUBLISHED[name]
    device = HARDWARE[name].device
    assert device.flops_per_second(dtype) == pytest.approx(peak * MATMUL_EFFICIENCY)
    assert device.memory_bandwidth == pytest.approx(memory_peak * MEMORY_EFFICIENCY)
    assert device.memory == gib * GIB
    assert device.usable_memory == pytest.approx(gib * GIB * (1 - RESERVE), abs=1)


def test_every_row_has_a_source():
    assert set(PUBLISHED) | {"cpu"} == set(HARDWARE)
    assert all(len(row.source) > 20 for row in HARDWARE.values())


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bfloat16", 4e12),
        ("float16", 4e12),
        ("float8_e4m3fn", 4e12),
        ("float32", 2e12),
        ("float64", 2e12 / 8),
        ("complex64", 2e12 / 4),
        ("complex128", 2e12 / 32),
        ("int8", 2e12),
        ("uint8", 2e12),
        ("int32", 2e12),
        ("bool", 2e12),
        ("key<fry>", 2e12),
    ],
)
def test_every_dtype_has_a_rate(dtype, expected):
    assert DEVICE.flops_per_second(dtype) == pytest.approx(expected)


def test_dtypes_of_the_table_come_first():
    h100, v100 = HARDWARE["h100"].device, HARDWARE["v100"].device
    assert h100.flops_per_second("float8_e5m2") == pytest.approx(2 * h100.flops_per_second("bfloat16"), rel=0.01)
    assert h100.flops_per_second("uint8") == h100.flops["int8"]
    assert h100.flops_per_second("float64") == h100.flops["float64"]
    assert v100.flops_per_second("bfloat16") == v100.flops_per_second("float32")
    only = Device("d", {"float16": 3.0}, 1.0, 10)
    assert only.flops_per_second("float32") == 3.0


def test_roofline_is_the_slower_side():
    assert roofline_seconds(DEVICE, 4e9, 1e3, "bfloat16") == pytest.approx(1e-3)
    assert roofline_seconds(DEVICE, 4e9, 1e9, "bfloat16") == pytest.approx(1e-2)
    assert roofline_seconds(DEVICE, 4e9, 1e3, "float32") == pytest.approx(2e-3)


def test_roofline_floor():
    assert roofline_seconds(DEVICE, 1, 1, "float32") == 1e-6
    assert roofline_seconds(DEVICE, 1, 100, "float32", floor=False) == pytest.approx(1e-9)
    assert roofline_seconds(DEVICE, 0, 0, "float32") == 0.0


def test_ideal_device_computes_for_free():
    ideal = Device.ideal()
    for dtype in ("float32", "bfloat16", "float64", "int8", "bool", "complex128"):
        assert ideal.flops_per_second(dtype) == math.inf
        assert roofline_seconds(ideal, 1e30, 1e30, dtype) == 0.0
    assert ideal.usable_memory > 1 << 50


@pytest.mark.parametrize("name", [*HARDWARE, None])
def test_json_is_loss_free(name):
    device = Device.ideal() if name is None else HARDWARE[name].device
    text = json.dumps(device.to_json(), allow_nan=False)
    assert Device.from_json(json.loads(text)) == device
    assert hash(Device.from_json(json.loads(text))) == hash(device)


@pytest.mark.parametrize(
    "fields",
    [
        {"flops": {}},
        {"flops": {"float32": 0.0}},
        {"memory_bandwidth": -1.0},
        {"memory_bandwidth": math.nan},
        {"memory": 5, "reserve": 5},
        {"reserve": -1},
        {"kernel_seconds": -1.0},
        {"kernel_seconds": math.nan},
    ],
)
def test_impossible_devices_are_refused(fields):
    good = {"name": "bad", "flops": {"float32": 1.0}, "memory_bandwidth": 1.0, "memory": 10}
    with pytest.raises(ClusterError, match="'bad' needs"):
        Device(**(good | fields))
