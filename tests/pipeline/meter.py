"""What the stages of a pipeline hold while it runs: bytes on a device of each, and microbatches in flight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from autosharding.pipeline.programs import Program, Programs
from autosharding.pipeline.runner import Runner, StepRun


@dataclass(frozen=True)
class Measured:
    """One step, measured.

    Attributes:
        results: of the step.
        peaks: the most bytes that the first device of each stage held: arrays, and what a program adds to them.
        in_flight: the most microbatches that each stage held at once, counted for each of its pieces.
    """

    results: Sequence[Any]
    peaks: tuple[int, ...]
    in_flight: tuple[int, ...]


def measured(runner: Runner, arrays: Sequence[Any]) -> Measured:
    """Run a step, and measure what its stages hold.

    Arrays that are alive before and are none of the arguments are not counted. Each program is compiled once more, for
    what XLA says of its memory.

    Args:
        runner: of the step.
        arrays: its arguments, where the pipeline wants them, and its constants.
    """
    meter = _Meter(runner, arrays)
    return Measured(meter.run.results(), tuple(meter.peaks.values()), tuple(meter.in_flight))


class _Meter:
    """Alive during one step."""

    def __init__(self, runner: Runner, arrays: Sequence[Any]) -> None:
        own = {id(x) for x in arrays}
        self.others = [x for x in jax.live_arrays() if id(x) not in own]
        self.runner = runner
        self.devices = dict.fromkeys(p.mesh.devices.flat[0] for p in runner.pieces)
        self.peaks: dict[Any, int] = dict.fromkeys(self.devices, 0)
        self.added: dict[int, int] = {}
        self.in_flight = [0] * runner.schedule.n_stages
        self.run = StepRun(runner, arrays, self._start)

    def _start(self, programs: Programs, program: Program, operands: Sequence[Any]) -> Sequence[Any]:
        for stage, most in enumerate(self.in_flight):
            pieces = self.run.there[stage :: len(self.in_flight)]
            self.in_flight[stage] = max(most, sum(len(held.by_microbatch) for held in pieces))
        device = programs.mesh.devices.flat[0]
        held = self._held(device) + self._added(program, operands)
        self.peaks[device] = max(self.peaks[device], held)
        return program.run(*operands)

    def _held(self, device: Any) -> int:
        """Bytes of the arrays on a device."""
        known = {id(x) for x in self.others}
        buffers: dict[int, int] = {}
        for x in jax.live_arrays():
            if id(x) not in known and device in x.sharding.device_set:
                tile = next(s.data for s in x.addressable_shards if s.device == device)
                buffers[tile.unsafe_buffer_pointer()] = tile.nbytes
        return sum(buffers.values())

    def _added(self, program: Program, operands: Sequence[Any]) -> int:
        """Bytes that a program needs besides its operands."""
        if id(program) not in self.added:
            found = program.run.lower(*operands).compile().memory_analysis()
            self.added[id(program)] = found.output_size_in_bytes + found.temp_size_in_bytes - found.alias_size_in_bytes
        return self.added[id(program)]
