"""The `Plan`: what every device does, with every number that led to it. Plain frozen data.

A plan belongs to one graph (`fingerprint`) on one topology. It says how each input lies, what each op does (`Step`),
and every value that is brought into another spec (`Copy`), with the collectives that do it. The executor needs nothing
else; a reader neither.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jax.sharding import PartitionSpec

from autosharding import plan_json
from autosharding.errors import PlanError
from autosharding.partition import partition_spec
from autosharding.plan_diff import Difference, diff
from autosharding.plan_html import plan_html
from autosharding.plan_text import plan_text
from autosharding.reshard import Move
from autosharding.spec import Spec
from cost_model import Topology

AS_MADE = -1
"""In `Step.reads`, `Output.read` and `Copy.source`: the value as its op leaves it, not one of the copies."""


@dataclass(frozen=True, slots=True)
class Input:
    """One leaf of the arguments, or a constant.

    Attributes:
        name: its path, `[0].params['w']`.
        dtype: short dtype name.
        shape: global shape.
        itemsize: bytes per element.
        spec: how it lies on the mesh.
        role: "parameter", "optimizer", "state", "batch", "stream", "handed" or "constant"; see `planner.roles`.
        becomes: index of the output that is its new state; None where it is not state.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    itemsize: int
    spec: Spec
    role: str
    becomes: int | None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A collective that an op makes itself, between its operands and its results (the halo of a convolution).

    Attributes:
        kind, axes, bytes, seconds: as of a `Move`.
        elements: bytes in elements.
        holds: bytes of what it makes and of what that is put into, on one device, while the op runs.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    elements: int
    holds: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Step:
    """What one op does.

    Attributes:
        op: the primitive's name.
        phase: "forward", "backward" or "update".
        scope: the user's name scopes.
        source: the user's line.
        factors: (factor, mesh axes) that are split.
        reads: for each input the index of the copy it reads, or `AS_MADE`; literals and free values are `AS_MADE`.
        operands: for each input the spec it reads.
        results: for each output the spec it leaves.
        values: for each output its letter name.
        types: for each output `f32[8,4]`.
        seconds: its price, of one run, without what it exchanges.
        exchanges: the collectives it makes itself, in one run.
        times: how often it runs in one step.
    """

    op: str
    phase: str
    scope: str
    source: str
    factors: tuple[tuple[str, tuple[str, ...]], ...]
    reads: tuple[int, ...]
    operands: tuple[Spec, ...]
    results: tuple[Spec, ...]
    values: tuple[str, ...]
    types: tuple[str, ...]
    seconds: float
    exchanges: tuple[Exchange, ...] = ()
    times: int = 1


@dataclass(frozen=True, slots=True)
class Copy:
    """A value brought into another spec, once for all its readers.

    Attributes:
        value: id of the value.
        name: its letter name.
        type: `f32[8,4]`.
        source: index of the copy it starts from, or `AS_MADE`.
        spec: where it arrives.
        moves: the way, never empty.
        before: index of the first op that reads it; the number of ops where an output does.
        again: the same change was made before and dropped to save memory: XLA must not merge the two.
        line: the user's line of the first reader.
        phase: of the first reader.
        cause: why it is there, in words.
        times: how often it is made in one step: the moves are those of one time.
    """

    value: int
    name: str
    type: str
    source: int
    spec: Spec
    moves: tuple[Move, ...]
    before: int
    again: bool
    line: str
    phase: str
    cause: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class Output:
    """One leaf of the results.

    Attributes:
        name: its path.
        type: `f32[8,4]`.
        read: the copy it returns, or `AS_MADE`.
        spec: how it leaves.
        state_of: index of the input whose new state it is; None for all else.
    """

    name: str
    type: str
    read: int
    spec: Spec
    state_of: int | None


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective, in the order they run.

    Attributes:
        kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all" or "collective-permute".
        axes: mesh axes.
        times: how often it runs in one step: more than once in a loop.
        bytes: of all runs; see `reshard.Move.bytes`.
        seconds: the price of all runs.
        value: letter name and type.
        before: index of the op that needs it.
        phase: of that op.
        line: the user's line.
        cause: why it is there.
    """

    kind: str
    axes: tuple[str, ...]
    times: int
    bytes: int
    seconds: float
    value: str
    before: int
    phase: str
    line: str
    cause: str


@dataclass(frozen=True, slots=True)
class Held:
    """One array that is alive at the peak: what it is, its bytes on one device."""

    what: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Predicted bytes on one device.

    Attributes:
        budget: what a device may hold; None when no limit was set.
        arguments: bytes of the inputs.
        peak: the most that is alive at once: arguments + results + temporaries - aliased.
        peak_at: index of the op at which it is.
        over_time: bytes alive while each op runs.
        largest: the largest arrays at the peak.
    """

    budget: int | None
    arguments: int
    peak: int
    peak_at: int
    over_time: tuple[int, ...]
    largest: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Unresolved:
    """An op that runs replicated because nothing is known of it: its index, its name and line, and why."""

    op: int
    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Alternative:
    """A logical mesh (or method) that was tried and not taken: `x=2,y=4`, its seconds (None: pruned), a note."""

    mesh: str
    seconds: float | None
    note: str


@dataclass(frozen=True)
class Plan:
    """One step on one mesh.

    Attributes:
        name: the step's name.
        fingerprint: of the graph it was made for.
        method: "auto", "data", "fsdp", "zero1", "zero2" or "megatron".
        topology: the mesh with its prices.
        inputs, steps, copies, outputs: see their types; steps are one to one with the graph's ops.
        memory: predicted.
        bound: no plan of this method on this mesh costs less than this many seconds.
        unlimited: predicted seconds of the plan that would be taken if memory were not limited.
        unresolved: what ran replicated, and why.
        alternatives: meshes tried besides this one.
        notes: remarks for the reader (a constraint that was a hint only, a factor that does not divide).
        microbatches: into how many pieces the batch was cut; the steps are those of the program that runs them in turn.
        independent: whether each of them takes the statistics of its own examples for those of the batch.
    """

    name: str
    fingerprint: str
    method: str
    topology: Topology
    inputs: tuple[Input, ...]
    steps: tuple[Step, ...]
    copies: tuple[Copy, ...]
    outputs: tuple[Output, ...]
    memory: Memory
    bound: float
    unlimited: float
    unresolved: tuple[Unresolved, ...]
    alternatives: tuple[Alternative, ...] = ()
    notes: tuple[str, ...] = ()
    microbatches: int = 1
    independent: bool = False

    @property
    def mesh(self) -> Mapping[str, int]:
        """Axis -> size."""
        return dict(zip(self.topology.axis_names, self.topology.sizes, strict=True))

    @cached_property
    def collectives(self) -> tuple[Collective, ...]:
        """Every collective in the order they run."""
        found = [
            _collective(m, c.times, f"{c.name}:{c.type}", c.before, c.phase, c.line, c.cause)
            for c in self.copies
            for m in c.moves
            if m.on_wire
        ]
        for n, s in enumerate(self.steps):
            split = ", ".join(f for f, _ in s.factors)
            cause = f"inside {s.op}, split along {split}" if split else f"inside {s.op}"
            value = f"{s.values[0]}:{s.types[0]}" if s.values else s.op
            found += [_collective(e, s.times, value, n, s.phase, s.source, cause) for e in s.exchanges]
        return tuple(sorted(found, key=lambda c: c.before))

    @cached_property
    def compute_seconds(self) -> float:
        """Predicted seconds of all ops."""
        return sum(s.seconds * s.times for s in self.steps)

    @cached_property
    def communication_seconds(self) -> float:
        """Predicted seconds of all collectives."""
        moved = sum(m.seconds * c.times for c in self.copies for m in c.moves)
        return moved + sum(e.seconds * s.times for s in self.steps for e in s.exchanges)

    @property
    def seconds(self) -> float:
        """Predicted seconds of the step."""
        return self.compute_seconds + self.communication_seconds

    @property
    def gap(self) -> float:
        """How far above the proved bound this plan can be, as a share of its cost; 0 is proved optimal."""
        return max(0.0, self.seconds - self.bound) / self.seconds if self.seconds > 0 else 0.0

    @property
    def shardings(self) -> Mapping[str, PartitionSpec]:
        """Path of each input -> how it lies, for plain JAX."""
        return {i.name: partition_spec(i.spec) for i in self.inputs}

    def diff(self, other: Plan) -> Difference:
        """What is otherwise in the other plan."""
        return diff(self, other)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without loss; see `plan.schema.json`."""
        return plan_json.to_json(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that `load_plan` reads."""
        plan_json.save_plan(self, path)

    def __str__(self) -> str:
        return plan_text(self)

    def _repr_html_(self) -> str:
        return plan_html(self)

    def verify(self) -> Plan:
        """Check that the plan agrees with itself; returns itself.

        Raises:
            PlanError: naming what does not fit: an axis used twice or unknown, an indivisible dim, a copy that does
                not exist, a path of moves that is broken, a state that leaves in another spec than it came in.
        """
        mesh = self.mesh
        if self.microbatches < 1:
            raise PlanError(f"The batch cannot be cut into {self.microbatches} microbatches.")
        for i in self.inputs:
            if not i.spec.fits(i.shape, mesh) or i.spec.partial:
                raise PlanError(f"Input {i.name} {i.dtype}{list(i.shape)} cannot lie as {i.spec} on the mesh {mesh}.")
        for n, s in enumerate(self.steps):
            if len(s.reads) != len(s.operands) or not len(s.results) == len(s.values) == len(s.types):
                raise PlanError(f"Step {n} ({s.op}) does not say the same number of reads and operands.")
            self._check_copies(s.reads, f"step {n} ({s.op})")
        for n, c in enumerate(self.copies):
            if c.source >= n:
                raise PlanError(f"Copy {n} of {c.name} starts from copy {c.source}, which is made later.")
            if not c.moves or c.moves[-1].after != c.spec:
                raise PlanError(f"Copy {n} of {c.name} does not arrive at {c.spec}.")
            if any(a.after != b.before for a, b in zip(c.moves, c.moves[1:], strict=False)):
                raise PlanError(f"The moves of copy {n} of {c.name} do not follow on each other.")
        for o in self.outputs:
            self._check_copies((o.read,), f"output {o.name}")
            if o.state_of is not None and self.inputs[o.state_of].spec != o.spec:
                came = self.inputs[o.state_of]
                raise PlanError(f"State {came.name} comes in as {came.spec} and leaves as {o.spec}.")
        return self

    def _check_copies(self, reads: tuple[int, ...], who: str) -> None:
        for r in reads:
            if not AS_MADE <= r < len(self.copies):
                raise PlanError(f"{who} reads copy {r}; there are {len(self.copies)} copies.")


def _collective(
    made: Move | Exchange, times: int, value: str, before: int, phase: str, line: str, cause: str
) -> Collective:
    size, seconds = made.bytes * times, made.seconds * times
    return Collective(made.kind, made.axes, times, size, seconds, value, before, phase, line, cause)
