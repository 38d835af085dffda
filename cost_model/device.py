"""One device: how fast it computes, how fast it moves bytes, how many bytes it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cost_model.errors import ClusterError
from cost_model.quantities import count_in, number_in, number_out, show_bytes, show_rate

IDEAL_MEMORY = 1 << 60
"""Bytes of a device whose memory never binds, with room for sums in int64."""

FALLBACKS: tuple[tuple[tuple[str, ...], tuple[tuple[str, float], ...]], ...] = (
    (("float8", "float6_", "float4_"), (("float8", 1.0), ("bfloat16", 1.0), ("float16", 1.0))),
    (("bfloat16",), (("float16", 1.0),)),
    (("float16",), (("bfloat16", 1.0),)),
    (("float64",), (("float32", 1 / 8),)),
    (("complex64",), (("float32", 1 / 4),)),
    (("complex128",), (("float64", 1 / 4), ("float32", 1 / 32))),
    (("int8", "uint8", "int4", "uint4", "int2", "uint2"), (("int8", 1.0),)),
)
"""For a dtype whose name starts so and which the device does not list: the rates to try, each with a factor.

float64: A100 and H100 run it at 1/8 and 1/7.4 of their float32 matmul rate (NVIDIA's datasheets), nothing
newer is faster. complex: one complex multiply-add is four real ones, counted once. Every other dtype (bool,
wider integers, keys) runs at the float32 rate: such ops are bound by bytes anyway.
"""


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator as the compiler sees it.

    name: as in the table, for people.
    flops: dtype name -> flop/s that a large matmul reaches (peak times the efficiency stated in the table).
    memory_bandwidth: bytes/s between the device and its own memory, as reached.
    memory: bytes of device memory.
    reserve: bytes of it that no plan may use (runtime, collectives' buffers, fragmentation).
    kernel_seconds: least time of one kernel launch, seconds.
    """

    name: str
    flops: Mapping[str, float] = field(hash=False)
    memory_bandwidth: float
    memory: int
    reserve: int = 0
    kernel_seconds: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "flops", dict(self.flops))
        rates = (*self.flops.values(), self.memory_bandwidth)
        if not self.flops or not all(rate > 0 for rate in rates):
            raise ClusterError(f"Device {self.name!r} needs flop/s for at least one dtype and rates above zero.")
        if not 0 <= self.reserve < self.memory or not 0 <= self.kernel_seconds < math.inf:
            raise ClusterError(
                f"Device {self.name!r} needs memory above its reserve (memory {self.memory}, reserve "
                f"{self.reserve} bytes) and a finite kernel floor that is not negative "
                f"({self.kernel_seconds} s)."
            )

    @classmethod
    def ideal(cls, name: str = "ideal") -> Device:
        """Return a device that computes in no time and never fills up: then only communication is priced."""
        return cls(name, {"float32": math.inf}, math.inf, IDEAL_MEMORY)

    @property
    def usable_memory(self) -> int:
        """Bytes a plan may fill: memory less the reserve."""
        return self.memory - self.reserve

    def flops_per_second(self, dtype: str) -> float:
        """Return flop/s for a dtype name ("bfloat16", "float8_e4m3fn", "int32", ...); see `FALLBACKS`."""
        if dtype in self.flops:
            return self.flops[dtype]
        for prefixes, substitutes in FALLBACKS:
            if dtype.startswith(prefixes):
                for substitute, factor in substitutes:
                    if substitute in self.flops:
                        return self.flops[substitute] * factor
        return self.flops.get("float32", min(self.flops.values()))

    def to_json(self) -> dict[str, Any]:
        """Return the device as plain JSON values, loss-free."""
        return {
            "name": self.name,
            "flops": {dtype: number_out(rate) for dtype, rate in self.flops.items()},
            "memory_bandwidth": number_out(self.memory_bandwidth),
            "memory": self.memory,
            "reserve": self.reserve,
            "kernel_seconds": self.kernel_seconds,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Device:
        """Invert `to_json`; `reserve` and `kernel_seconds` may be left out."""
        return cls(
            name=str(data["name"]),
            flops={str(dtype): number_in(rate) for dtype, rate in data["flops"].items()},
            memory_bandwidth=number_in(data["memory_bandwidth"]),
            memory=count_in(data["memory"]),
            reserve=count_in(data.get("reserve", 0)),
            kernel_seconds=number_in(data.get("kernel_seconds", 0.0)),
        )

    def __str__(self) -> str:
        rates = ", ".join(f"{dtype} {show_rate(rate, 'flop/s')}" for dtype, rate in self.flops.items())
        return (
            f"{self.name}: {rates}; memory {show_rate(self.memory_bandwidth, 'B/s')}, "
            f"{show_bytes(self.memory)} less {show_bytes(self.reserve)} reserved"
        )


def roofline_seconds(device: Device, flops: float, bytes: float, dtype: str, *, floor: bool = True) -> float:
    """Return seconds of one op on one device: the slower of its arithmetic and its memory traffic.

    flops: floating point operations on this device (a multiply-add is two). bytes: read plus written here.
    floor: no kernel is quicker than `device.kernel_seconds`; turn it off for ops that are fused into others.

    t = max(flops / (flop/s of dtype), bytes / (bytes/s), floor)
    """
    if flops <= 0 and bytes <= 0:
        return 0.0
    least = device.kernel_seconds if floor else 0.0
    return max(flops / device.flops_per_second(dtype), bytes / device.memory_bandwidth, least)
