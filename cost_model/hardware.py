"""The table of hardware numbers: every constant of this room, with where it was read.

Sources, by the names used below:

- book: "How to Scale Your Model", jax-ml/scaling-book (gpus.md, tpus.md, sharding.md).
- nvidia: NVIDIA's datasheets of V100, A100, H100, dense rates (the sparse figures halved).
- cloud: Google Cloud's pages of TPU v5e, v5p, v6e. aws: AWS's pages of p3 and p4d.
- nccl: per-hop latencies of NCCL's tuning table, protocol SIMPLE, and nccl-tests on H100 at 1 GB, both as
  kept in meta-pytorch/autoparallel, cost_models/nccl_cost_model.py.
- mist: fits shipped with Mist (mist/tools/optimize.py).

Rates in flop/s and bytes/s, latencies in seconds, memory in bytes. float32 means a float32 matmul at JAX's
default precision: TF32 on A100 and later, one bfloat16 pass on TPU, plain float32 on V100 and CPU.

Left out on purpose: TPU v2, v3 and 7x, where a JAX device is half a chip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cost_model.device import Device
from cost_model.wiring import Link

GIB = 1 << 30

MATMUL_EFFICIENCY = 0.70
"""Part of the peak flop/s a large matmul reaches (autoparallel, compute_estimation.py; others: 0.70-0.85)."""

MEMORY_EFFICIENCY = 0.70
"""Part of the peak bytes/s of device memory a kernel reaches (autoparallel, compute_estimation.py)."""

RESERVE = 0.10
"""Part of accelerator memory no plan may use: runtime and kernels' code, collectives' buffers, fragmentation.

A choice, not a measurement. JAX preallocates only 75% of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says
otherwise.
"""

GPU_KERNEL = 3e-6
"""Least time of a GPU kernel in a launched graph: the low end of 3-7 us (autoparallel: 7 us, unfused)."""

TPU_KERNEL = 1e-6
"""Least time of a TPU op: the low end of 1-2 us."""

NVLINK_HOP, NETWORK_HOP, NCCL_START = 3.4e-6, 14e-6, 8.4e-6
"""nccl: one ring hop inside a node, one between nodes, and the start of a ring collective (SIMPLE)."""

ICI_HOP = 1e-6
"""book: about 1 us per hop between neighbouring TPUs."""

NETWORK_EFFICIENCY = 48 / 50
"""nccl: each GPU's 400 Gb/s card carries 48 of its 50 GB/s in H100 all-gathers over 2 to 32 nodes."""


@dataclass(frozen=True, slots=True)
class NodeHardware:
    """Devices that come in nodes. per_node: how many at most. source: where device and links were read."""

    device: Device
    per_node: int
    fast: Link
    slow: Link
    start: float
    source: str


@dataclass(frozen=True, slots=True)
class TorusHardware:
    """Devices that come in a torus of `rank` dims; dims whose size is a multiple of `ring` are rings."""

    device: Device
    rank: int
    ring: int
    link: Link
    source: str


Hardware = NodeHardware | TorusHardware


def _device(name: str, peak: Mapping[str, float], memory_peak: float, gib: int, kernel: float) -> Device:
    """Return a device from its peak numbers."""
    flops = {dtype: rate * MATMUL_EFFICIENCY for dtype, rate in peak.items()}
    memory = gib * GIB
    return Device(name, flops, memory_peak * MEMORY_EFFICIENCY, memory, int(memory * RESERVE), kernel)


def _gpu(
    device: Device, nvlink: float, network: float, source: str, small: tuple[tuple[int, float], ...] = ()
) -> NodeHardware:
    """Return nodes of eight GPUs; nvlink, network: bytes/s reached one way per GPU when all of them send."""
    fast, slow = Link(NVLINK_HOP, nvlink, small), Link(NETWORK_HOP, network)
    return NodeHardware(device, 8, fast, slow, NCCL_START, source)


def _half(rate: float) -> dict[str, float]:
    """Return one rate for the two 16-bit float types."""
    return {"bfloat16": rate, "float16": rate}


_V100 = {"float16": 1.25e14, "bfloat16": 1.57e13, "float32": 1.57e13, "float64": 7.8e12}
_A100 = {**_half(3.12e14), "float32": 1.56e14, "float64": 1.95e13, "int8": 6.24e14}
_H100 = {**_half(9.9e14), "float32": 4.947e14, "float64": 6.69e13, "float8": 1.979e15, "int8": 1.979e15}
_B200 = {**_half(2.25e15), "float32": 1.125e15, "float8": 4.5e15, "int8": 4.5e15}

_A100_SMALL = ((2, 139.0e9), (4, 192.6e9))
_H100_SMALL = ((2, 268e9), (4, 325e9), (8, 345e9))

HARDWARE: Mapping[str, Hardware] = {
    "v100": _gpu(
        _device("V100-SXM2-16GB", _V100, 9.0e11, 16, GPU_KERNEL),
        nvlink=150e9 * 0.70,
        network=25e9 / 8 / 8,
        source="peaks: nvidia (no bfloat16 unit: float32 rate), 9.0e11 B/s: book; node = aws p3.16xlarge, "
        "25 Gb/s for all eight; NVLink2 150 GB/s one way times 0.70, the part A100 reaches (mist)",
    ),
    "a100": _gpu(
        _device("A100-SXM4-80GB", _A100, 2.0e12, 80, GPU_KERNEL),
        nvlink=210.3e9,
        network=25e9 * NETWORK_EFFICIENCY,
        small=_A100_SMALL,
        source="peaks: nvidia; 2.0e12 B/s: book; NVLink reached at 2, 4, 8 GPUs: mist; node = DGX A100, "
        "one 200 Gb/s card per GPU",
    ),
    "a100-40gb": _gpu(
        _device("A100-SXM4-40GB", _A100, 1.56e12, 40, GPU_KERNEL),
        nvlink=210.3e9,
        network=10.7e9 / 8,
        small=_A100_SMALL,
        source="peaks: nvidia; 1.56e12 B/s: book; NVLink at 2, 4, 8 GPUs and 10.7 GB/s between nodes of "
        "8: mist, on a p4d-class machine (aws promises 400 Gb/s)",
    ),
    "h100": _gpu(
        _device("H100-SXM5-80GB", _H100, 3.35e12, 80, GPU_KERNEL),
        nvlink=384e9,
        network=50e9 * NETWORK_EFFICIENCY,
        small=_H100_SMALL,
        source="peaks: nvidia, book; all-gather in a node 537, 434, 394 GB/s at 2, 4, 8 GPUs times "
        "(n-1)/n: nccl; 384 GB/s per GPU (of 450) in rings over whole nodes: nccl; node = one 400 Gb/s "
        "card per GPU",
    ),
    "h200": _gpu(
        _device("H200-SXM-141GB", _H100, 4.8e12, 141, GPU_KERNEL),
        nvlink=384e9,
        network=50e9 * NETWORK_EFFICIENCY,
        small=_H100_SMALL,
        source="4.8e12 B/s and 141 GB: book; the rest as h100",
    ),
    "b200": _gpu(
        _device("B200-SXM-180GB", _B200, 8.0e12, 180, GPU_KERNEL),
        nvlink=640e9,
        network=50e9 * NETWORK_EFFICIENCY,
        source="2.25e15 bfloat16, 8.0e12 B/s, 180 GB: book; float8 and int8 twice, float32 half of "
        "bfloat16 as on H100; NVLink 640 of 900 GB/s reached: nccl's table; node = one 400 Gb/s card per "
        "GPU",
    ),
    "tpu-v4": TorusHardware(
        _device("TPU v4", {**_half(2.75e14), "float32": 2.75e14, "int8": 2.75e14}, 1.2e12, 32, TPU_KERNEL),
        rank=3,
        ring=4,
        link=Link(ICI_HOP, 4.5e10),
        source="book, tpus.md: compute, memory, 4.5e10 B/s one way per link, rings on dims that are multiples of 4",
    ),
    "tpu-v5e": TorusHardware(
        _device("TPU v5e", {**_half(1.97e14), "float32": 1.97e14, "int8": 3.94e14}, 8.1e11, 16, TPU_KERNEL),
        rank=2,
        ring=16,
        link=Link(ICI_HOP, 4.5e10),
        source="book, tpus.md, and cloud: compute, memory; 4.5e10 B/s one way per link (cloud: 400 GB/s "
        "both ways on 4 links); rings only on dims of 16",
    ),
    "tpu-v5p": TorusHardware(
        _device("TPU v5p", {**_half(4.59e14), "float32": 4.59e14, "int8": 9.18e14}, 2.8e12, 95, TPU_KERNEL),
        rank=3,
        ring=4,
        link=Link(ICI_HOP, 9e10),
        source="book, tpus.md, and cloud: 459 Tflop/s, 95 GiB; 9e10 B/s one way per link (cloud: 1200 "
        "GB/s both ways on 6 links); rings on dims that are multiples of 4",
    ),
    "tpu-v6e": TorusHardware(
        _device("TPU v6e", {**_half(9.2e14), "float32": 9.2e14, "int8": 1.84e15}, 1.6e12, 32, TPU_KERNEL),
        rank=2,
        ring=16,
        link=Link(ICI_HOP, 9e10),
        source="book, tpus.md, and cloud: compute, memory; 9e10 B/s one way per link; rings only on dims of 16",
    ),
    "cpu": NodeHardware(
        Device("virtual CPU device", {"float32": 1e10, "float64": 5e9}, 5e9, 4 * GIB, 0, 5e-6),
        per_node=1024,
        fast=Link(1e-5, 1.2e9),
        slow=Link(1e-5, 1.2e9),
        start=1e-4,
        source="orders of magnitude, so that plans for virtual devices look like plans: on jax 0.10.2 "
        "with 8 devices of one process on shared cores, an all-reduce of 1M floats took 6-7 ms, of 64K "
        "floats 0.4-0.8 ms and of 64 floats 0.1-0.5 ms (the threads meet first), which is 1.2e9 B/s of "
        "shared-memory copies, about 1e-5 s per hop and 1e-4 s to start. Analytic all the same: the measured "
        "reduce-scatter, twice an all-reduce, "
        "is not copied. Compute: a few cores shared by eight. Memory: 32 GiB shared by eight. Several "
        "processes of one machine use the same wire.",
    ),
}
"""What `Cluster.parse` knows by name. All wires of `cpu` are alike, whatever its shape."""
