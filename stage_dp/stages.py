"""What comes out: stages, each with its layers, its submesh and its price."""

from __future__ import annotations

from dataclasses import dataclass

from stage_dp.price import Price
from stage_dp.schedule import Schedule
from stage_dp.schedules import SCHEDULES, interleaved
from stage_dp.simulate import Timeline, peak_of, simulate
from stage_dp.submesh import Submesh
from stage_dp.text import show_bytes, show_seconds


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers `first` to `end` - 1 on one submesh."""

    first: int
    end: int
    submesh: Submesh
    place: tuple[int, int]
    """First node, and first device in it."""
    point: int
    """Which way of the front for this range and submesh: its position there."""
    price: Price
    received: tuple[float, float]
    """Seconds per microbatch for activations from the stage before and for their cotangents back to it."""
    in_flight: int
    """Microbatches whose activations it holds at most."""

    @property
    def bytes(self) -> int:
        """The most held per device."""
        return self.price.bytes(self.in_flight)


@dataclass(frozen=True, slots=True)
class Stages:
    """A split of all layers: the best there is for its schedule, or as far from it as `gap` says."""

    schedule: str
    """Name of the schedule, or "latency" or "throughput"."""
    microbatches: int
    stages: tuple[Stage, ...]
    seconds: float
    """What was minimised: of a step; for "throughput", between two microbatches."""
    bound: float
    """No split takes less."""
    longest: float
    """The longest period of a stage or transfer, seconds per microbatch."""
    idle_devices: int
    memory: int | None
    """Bytes of each device; None: no limit."""
    n_chunks: int = 1
    """Stages per group of devices: stage i runs on group i modulo the number of groups."""

    @property
    def gap(self) -> float:
        """How far `seconds` may be from the best, as a share of it; 0: it is the best."""
        return (self.seconds - self.bound) / self.seconds if self.seconds else 0.0

    @property
    def cuts(self) -> tuple[int, ...]:
        """First layer of each stage but the first."""
        return tuple(stage.first for stage in self.stages[1:])

    @property
    def group_bytes(self) -> tuple[int, ...]:
        """Per group of devices, the most held per device."""
        return tuple(peak_of(self.tasks(), [stage.price for stage in self.stages]))

    @property
    def peak_bytes(self) -> int:
        """The most that any device holds."""
        return max(self.group_bytes)

    def tasks(self) -> Schedule:
        """The schedule's lists of tasks for these stages."""
        if self.n_chunks > 1:
            return interleaved(len(self.stages) // self.n_chunks, self.microbatches, self.n_chunks)
        name = "forward" if self.schedule in ("latency", "throughput") else self.schedule
        return SCHEDULES[name](len(self.stages), self.microbatches)

    def simulate(self, overlap: bool = True, joint_update: bool = False) -> Timeline:
        """One step, replayed; see `simulate.simulate`."""
        prices = [stage.price for stage in self.stages]
        transfers = [stage.received for stage in self.stages[1:]]
        return simulate(self.tasks(), prices, transfers, overlap, joint_update)

    def __str__(self) -> str:
        what = "between microbatches" if self.schedule == "throughput" else "per step"
        rows = [
            f"{self.schedule}: {len(self.stages)} stages, {self.microbatches} microbatches, "
            f"{show_seconds(self.seconds)} {what} (bound {show_seconds(self.bound)}), "
            f"{self.idle_devices} idle devices" + (f", {self.n_chunks} stages per group" if self.n_chunks > 1 else "")
        ]
        limit = "" if self.memory is None else f" of {show_bytes(self.memory)}"
        for i, stage in enumerate(self.stages):
            rows.append(
                f"stage {i}  layers {stage.first}-{stage.end - 1}  submesh {stage.submesh}  "
                f"{show_seconds(stage.price.seconds)} per microbatch  {show_seconds(stage.price.step_seconds)} "
                f"per step  {stage.in_flight} in flight  {show_bytes(stage.bytes)}{limit} per device"
            )
        return "\n".join(rows)
