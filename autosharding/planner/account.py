"""The memory account of a plan: every array that is there, from when to when, with its bytes on one device.

What is returned has its buffer from the start of the call, as XLA allocates it: one of a donated argument, or its own,
which until then may hold a passing array that is no larger.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from autosharding.graph import Graph, Value
from autosharding.plan import AS_MADE, Copy, Held, Memory, Output, Step
from autosharding.planner.liveness import Liveness
from autosharding.spec import Spec

WORKSPACES = {"select_and_scatter_add": lambda rank, itemsize: 4 * rank + 2 * itemsize}
"""Bytes per element of the last operand, given its rank and itemsize, that XLA holds besides operands and results.

On CPU and GPU it expands the gradient of a pooling into a scatter on padded copies, with an int32 index for each dim
(XLA's `SelectAndScatterExpander`).
"""

LARGEST = 12
"""How many arrays the account names."""


class Alive(NamedTuple):
    """An array in memory for `begin <= time < end`."""

    what: str
    begin: int
    end: int
    bytes: int
    returned: bool = False


class Account:
    """Puts together what is alive; lives during one call of `memory`."""

    def __init__(
        self,
        graph: Graph,
        life: Liveness,
        made: Mapping[int, Spec],
        mesh: Mapping[str, int],
        steps: Sequence[Step],
        copies: Sequence[Copy],
        outputs: Sequence[Output],
        donated: frozenset[int],
    ) -> None:
        self.graph, self.life, self.made, self.mesh = graph, life, made, mesh
        self.copies, self.outputs, self.donated = copies, outputs, donated
        self.last = len(graph.ops) + 1
        self.until: dict[tuple[int, int], int] = {}  # (value, copy) -> when it is read last
        self.at: dict[int, int] = {}  # copy -> when it is made
        self.sent: dict[int, int] = {}  # value -> when a collective takes it last
        self.steps = steps
        self._note_reads()

    def memory(self, budget: int | None) -> Memory:
        """Bytes over time, the peak, and the largest arrays there."""
        alive = _allocated(list(self._alive()))
        load = np.zeros(self.last + 1, np.int64)
        for a in alive:
            load[a.begin] += a.bytes
            load[min(a.end, self.last)] -= a.bytes
        over_time = np.cumsum(load)[: self.last]
        at = int(over_time.argmax())
        there = sorted(((a.bytes, a.what) for a in alive if a.begin <= at < a.end), reverse=True)[:LARGEST]
        arguments = sum(self._bytes(v, self.made[v.id]) for v in self.graph.inputs)
        largest = tuple(Held(what, size) for size, what in there)
        return Memory(budget, arguments, int(over_time[at]), at, tuple(map(int, over_time)), largest)

    def _read(self, value: int, copy: int, time: int) -> None:
        self.until[value, copy] = max(self.until.get((value, copy), 0), time)

    def _note_reads(self) -> None:
        for op, step in zip(self.graph.ops, self.steps, strict=True):
            for i, (a, read) in enumerate(zip(op.inputs, step.reads, strict=True)):
                if isinstance(a, Value) and not self.graph.is_free(a):
                    self._read(a.id, read, self.life.use[op.index][i])
        for a, o in zip(self.graph.outputs, self.outputs, strict=True):
            if isinstance(a, Value):
                self._read(a.id, o.read, self.last)
        for k, c in reversed(list(enumerate(self.copies))):
            made_at = self.at[k] = self._made_at(c)
            self._read(c.value, c.source, made_at + 1)
            if any(m.on_wire for m in c.moves):
                self.sent[c.value] = max(self.sent.get(c.value, 0), made_at + 1)

    def _made_at(self, copy: Copy) -> int:
        """Before its first reader; one smaller than what it is made of, as soon as that is read by nobody else.

        XLA's scheduler, which keeps memory low, does the same.
        """
        reader = min(copy.before, len(self.graph.ops))
        op = self.graph.producer[copy.value]
        v = self.graph.values[copy.value]
        if copy.again or copy.source != AS_MADE or op is None:
            return reader
        if self._bytes(v, copy.spec) >= self._bytes(v, self.made[v.id]):
            return reader
        return min(reader, max(op.index + 1, self.until.get((v.id, AS_MADE), 0)))

    def _alive(self) -> Iterator[Alive]:
        for v, name in zip(self.graph.inputs, self.graph.input_names, strict=True):
            yield Alive(name, 0, self.last, self._bytes(v, self.made[v.id]))
        results = [(a.id, o) for a, o in zip(self.graph.outputs, self.outputs, strict=True) if isinstance(a, Value)]
        returned = {(value, o.read) for value, o in results}
        taken = {(value, o.read) for value, o in results if o.state_of in self.donated}
        # these are written into the buffer of a donated argument
        yield from self._values(taken, returned)
        yield from self._workspaces()
        for k, c in enumerate(self.copies):
            if (c.value, k) not in taken and any(m.kind != "mask" for m in c.moves):
                begin = self.at[k]
                end = max(self.until.get((c.value, k), 0), begin + 1)
                what = f"{c.name}:{c.type} as {c.spec}"
                size = self._bytes(self.graph.values[c.value], c.spec)
                yield Alive(what, begin, end, size, (c.value, k) in returned)

    def _values(self, taken: set[tuple[int, int]], returned: set[tuple[int, int]]) -> Iterator[Alive]:
        for op in self.graph.ops:
            if op.is_free:
                continue
            for v in op.outputs:
                begin = self.life.begin[v.id]
                end = max(self.until.get((v.id, AS_MADE), begin + 1), self.life.place[v.id])
                if not self.life.held[v.id]:  # a fused value is there only where a collective takes it
                    end = begin if self.life.materialised[v.id] else self.sent.get(v.id, 0)
                if end > begin and (v.id, AS_MADE) not in taken:
                    what = f"{v.name}:{v.type} {op.name} {op.source}".rstrip()
                    size = self._bytes(v, self.made[v.id])
                    yield Alive(what, begin, end, size, (v.id, AS_MADE) in returned)

    def _workspaces(self) -> Iterator[Alive]:
        for op, step in zip(self.graph.ops, self.steps, strict=True):
            if op.name in WORKSPACES:
                v = op.values[-1]
                size = prod(step.operands[-1].local_shape(v.shape, self.mesh)) * WORKSPACES[op.name](v.rank, v.itemsize)
                yield Alive(f"workspace of {op.where}", op.index, op.index + 1, size)
            if held := sum(e.holds for e in step.exchanges):
                yield Alive(f"what {op.where} fetches", op.index, op.index + 1, held)

    def _bytes(self, v: Value, spec: Spec) -> int:
        return spec.local_bytes(v.shape, v.itemsize, self.mesh)


def _allocated(alive: Sequence[Alive]) -> list[Alive]:
    """The buffers of these arrays: a result's from the start, and none for what passes through one of those.

    XLA's buffer assignment likewise takes arrays from the largest down and puts each into a buffer large enough that
    is not in use meanwhile.
    """
    results = sorted((a for a in alive if a.returned), key=lambda a: a.bytes)
    sizes = [a.bytes for a in results]
    guests: list[list[Alive]] = [[] for _ in results]
    buffers = [a._replace(begin=0) for a in results]
    for a in sorted((a for a in alive if not a.returned), key=lambda a: -a.bytes):
        for k in range(bisect_left(sizes, a.bytes), len(results)):
            if a.end <= results[k].begin and all(a.end <= g.begin or g.end <= a.begin for g in guests[k]):
                guests[k].append(a)
                break
        else:
            buffers.append(a)
    return buffers
