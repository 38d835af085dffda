"""The memory account of a plan: every array that is there, from when to when, with its bytes on one device.

What is returned has its buffer from the start of the call, as XLA allocates it: one of a donated argument, or its own,
which until then may hold a passing array that is no larger. Ops run in program order, but one that lets go of more than
it makes runs as soon as it can, as XLA's scheduler has it. Time goes in half steps: op `i` runs at `2 i`, and at
`2 i - 1` what was made for it or put before it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from autosharding.graph import Graph, Op, Value
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
    """An array in memory for `begin <= time < end`; of an op, or of the copies (`copy`) made before one."""

    what: str
    begin: int
    end: int
    bytes: int
    returned: bool = False
    op: int = -1
    copy: int = -1


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
        self.last = 2 * (len(graph.ops) + 1)
        self.when = [2 * op.index for op in graph.ops]
        self.until: dict[tuple[int, int], int] = {}  # (value, copy) -> when it is read last
        self.at: dict[int, int] = {}  # copy -> when it is made
        self.sent: dict[int, int] = {}  # value -> when a collective takes it last
        self.steps = steps
        self._note_reads()

    def memory(self, budget: int | None) -> Memory:
        """Bytes over time, the peak, and the largest arrays there."""
        alive = _allocated(list(self.alive()))
        load = np.zeros(self.last + 1, np.int64)
        for a in alive:
            load[a.begin] += a.bytes
            load[min(a.end, self.last)] -= a.bytes
        halves = np.cumsum(load)[: self.last]
        half = int(halves.argmax())
        at = (half + 1) // 2
        over_time = np.maximum(halves[::2], np.append(0, halves[1:-1:2]))
        there = sorted(((a.bytes, a.what) for a in alive if a.begin <= half < a.end), reverse=True)[:LARGEST]
        arguments = sum(self._bytes(v, self.made[v.id]) for v in self.graph.inputs if self.life.held[v.id])
        largest = tuple(Held(what, size) for size, what in there)
        return Memory(budget, arguments, int(over_time[at]), at, tuple(map(int, over_time)), largest)

    def _read(self, value: int, copy: int, time: int) -> None:
        self.until[value, copy] = max(self.until.get((value, copy), 0), time)

    def _note_reads(self) -> None:
        readers = self._readers()
        self._hoist(readers)
        for key, by_op in readers.items():
            self.until[key] = max(by_op.values())
        for a, o in zip(self.graph.outputs, self.outputs, strict=True):
            if isinstance(a, Value):
                self._read(a.id, o.read, self.last)
        for k, c in reversed(list(enumerate(self.copies))):
            made_at = self.at[k] = self._made_at(c)
            self._read(c.value, c.source, made_at + 1)
            if any(m.on_wire for m in c.moves):
                self.sent[c.value] = max(self.sent.get(c.value, 0), made_at + 1)

    def _readers(self) -> dict[tuple[int, int], dict[int, int]]:
        """For each (value, copy) the ops that read it and until when they need it."""
        found: dict[tuple[int, int], dict[int, int]] = {}
        for op, step in zip(self.graph.ops, self.steps, strict=True):
            for a, read, until in zip(op.inputs, step.reads, self.life.use[op.index], strict=True):
                if isinstance(a, Value) and not self.graph.is_free(a):
                    found.setdefault((a.id, read), {})[op.index] = 2 * until
        return found

    def _hoist(self, readers: Mapping[tuple[int, int], dict[int, int]]) -> None:
        """Have ops that let go of more than they make run as soon as what they read is there."""
        kept = {(v.id, AS_MADE) for v in self.graph.inputs} | {(c.value, c.source) for c in self.copies}
        kept |= {(a.id, o.read) for a, o in zip(self.graph.outputs, self.outputs, strict=True) if isinstance(a, Value)}
        fence = 0
        for op in self.graph.ops:
            if op.region is not None:
                fence = 2 * op.index + 1 if op.region.bodies else fence
                continue
            fused, reads = self._fusion(op)
            if reads:
                ready = max(fence, *(self._there(*key, op) for key in reads))
                others = {key: max((t for i, t in readers[key].items() if i not in fused), default=0) for key in reads}
                freed = sum(self._size(*key) for key in reads - kept if others[key] <= ready)
                if freed > sum(self._bytes(v, self.made[v.id]) for v in op.outputs):
                    self.when[op.index] = ready
                    until = ready + self.life.use[op.index][0] - op.index
                    for key in reads:
                        readers[key].update(dict.fromkeys(fused & readers[key].keys(), until))

    def _fusion(self, op: Op) -> tuple[set[int], set[tuple[int, int]]]:
        """(ops that are computed with this one, itself among them; what they read); empty where it has to stay."""
        there, fused, reads = self.life.materialised, {op.index}, set[tuple[int, int]]()
        stays = op.is_free or bool(op.effects) or not all(there[v.id] for v in op.outputs)
        todo = [] if stays else [op]
        for one in todo:
            stays |= max(self.life.use[one.index], default=0) > op.index + 1
            for a, read in zip(one.inputs, self.steps[one.index].reads, strict=True):
                if not isinstance(a, Value) or self.graph.is_free(a):
                    continue
                if there[a.id]:
                    reads.add((a.id, read))
                    continue
                maker = self.graph.producer[a.id]
                alone = all(r.index in fused for r, _ in self.graph.readers[a.id])
                stays |= read != AS_MADE or maker is None or maker.region is not None or not alone
                if maker is not None and maker.index not in fused:
                    fused.add(maker.index)
                    todo.append(maker)
        return (set(), set()) if stays else (fused, reads)

    def _there(self, value: int, copy: int, reader: Op) -> int:
        """When the reader finds a value."""
        if copy != AS_MADE and self.copies[copy].before != reader.index:
            return self.when[self.copies[copy].before]
        if copy != AS_MADE:
            return self._there(value, self.copies[copy].source, reader) + 1
        op = self.graph.producer[value]
        return 0 if op is None else self.when[op.index] + 1

    def _made_at(self, copy: Copy) -> int:
        """Before its first reader; one smaller than what it is made of, as soon as that is read by nobody else.

        XLA's scheduler, which keeps memory low, does the same.
        """
        reader = max(0, (*self.when, self.last - 2)[copy.before] - 1)
        op = self.graph.producer[copy.value]
        if copy.again or copy.source != AS_MADE or op is None:
            return reader
        if self._bytes(self.graph.values[copy.value], copy.spec) >= self._size(copy.value, AS_MADE):
            return reader
        return min(reader, max(self.when[op.index] + 1, self.until.get((copy.value, AS_MADE), 0)))

    def alive(self) -> Iterator[Alive]:
        """What is in memory, and when."""
        for v, name in zip(self.graph.inputs, self.graph.input_names, strict=True):
            if self.life.held[v.id]:
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
                yield Alive(what, begin, end, size, (c.value, k) in returned, copy=k)

    def _values(self, taken: set[tuple[int, int]], returned: set[tuple[int, int]]) -> Iterator[Alive]:
        for op in self.graph.ops:
            if op.is_free:
                continue
            for v in op.outputs:
                begin = self.when[op.index] if self.life.begin[v.id] == op.index else 2 * self.life.begin[v.id]
                end = max(self.until.get((v.id, AS_MADE), begin + 1), self.when[self.life.place[v.id]])
                if not self.life.held[v.id]:  # a fused value is there only where a collective takes it
                    end = begin if self.life.materialised[v.id] else self.sent.get(v.id, 0)
                if end > begin and (v.id, AS_MADE) not in taken:
                    what = f"{v.name}:{v.type} {op.name} {op.source}".rstrip()
                    size = self._bytes(v, self.made[v.id])
                    yield Alive(what, begin, end, size, (v.id, AS_MADE) in returned, op.index)

    def _workspaces(self) -> Iterator[Alive]:
        for op, step in zip(self.graph.ops, self.steps, strict=True):
            if op.name in WORKSPACES:
                v = op.values[-1]
                size = prod(step.operands[-1].local_shape(v.shape, self.mesh)) * WORKSPACES[op.name](v.rank, v.itemsize)
                yield Alive(f"workspace of {op.where}", *self._while(op), size, op=op.index)
            if held := sum(e.holds for e in step.exchanges):
                yield Alive(f"what {op.where} fetches", *self._while(op), held, op=op.index)

    def _while(self, op: Op) -> tuple[int, int]:
        """From when to when an op runs."""
        return self.when[op.index], self.when[op.index] + 1

    def _size(self, value: int, copy: int) -> int:
        spec = self.made[value] if copy == AS_MADE else self.copies[copy].spec
        return self._bytes(self.graph.values[value], spec)

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
