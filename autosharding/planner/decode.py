"""From a choice of the 0-1 program back to a `Plan`: what each op reads, the copies that are made, the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from autosharding.graph import Graph, Op, Value
from autosharding.plan import AS_MADE, Copy, Held, Input, Memory, Output, Step, Unresolved
from autosharding.planner.formulate import BARRIER, Formulation
from autosharding.planner.liveness import Liveness
from autosharding.planner.tables import Tables
from autosharding.rules import Rule
from autosharding.spec import Spec

LARGEST = 12
"""How many arrays a memory report names."""


class Decoder:
    """Reads one solution; its parts are put together by `planner.plan_graph`."""

    def __init__(
        self,
        graph: Graph,
        rules: Sequence[Rule | None],
        tables: Tables,
        life: Liveness,
        formulation: Formulation,
        choice: Sequence[int],
        state: Mapping[int, int],
        donated: frozenset[int],
    ) -> None:
        self.graph, self.rules, self.tables, self.life = graph, rules, tables, life
        self.f, self.choice, self.state, self.donated = formulation, choice, state, donated
        self.copies: list[Copy] = []
        self._known: dict[tuple[int, int, int | None, Spec], int] = {}
        self._changes: set[tuple[int, Spec, Spec]] = set()
        self.made = self._made()

    def _node_spec(self, node: int, v: Value) -> Spec:
        return self.tables.space(v).specs[self.f.specs[node][self.choice[node]]]

    def _made(self) -> dict[int, Spec]:
        """The spec in which each value is made."""
        made = {v.id: self._node_spec(n, v) for v, n in zip(self.graph.inputs, self.f.inputs, strict=True)}
        for op in self.graph.ops:
            for i, v in enumerate(op.outputs):
                if op.name == BARRIER:
                    made[v.id] = self._node_spec(self.f.lanes[op.index, i], v)
                elif op.is_free:
                    made[v.id] = Spec.replicated(v.rank)
                else:
                    made[v.id] = self._strategy(op).results[i]
        return made

    def _strategy(self, op: Op):  # noqa: ANN202 - a Strategy
        table, kept = self.f.tables[op.index]
        return table.strategies[kept[self.choice[self.f.ops[op.index]]]]

    def inputs(self, roles: Sequence[str]) -> tuple[Input, ...]:
        """The inputs as they lie."""
        becomes = {i: o for o, i in self.state.items()}
        return tuple(
            Input(name, v.dtype, v.shape, v.itemsize, self.made[v.id], role, becomes.get(i))
            for i, (name, v, role) in enumerate(zip(self.graph.input_names, self.graph.inputs, roles, strict=True))
        )

    def steps(self) -> tuple[Step, ...]:
        """What each op does; makes the copies on the way, in the order of their first readers."""
        return tuple(self._step(op) for op in self.graph.ops)

    def _step(self, op: Op) -> Step:
        factors: tuple[tuple[str, tuple[str, ...]], ...] = ()
        seconds = 0.0
        if op.name == BARRIER:
            operands = results = tuple(self.made[v.id] for v in op.outputs)
        elif op.is_free:
            operands = tuple(Spec.replicated(a.rank) for a in op.inputs)
            results = tuple(Spec.replicated(v.rank) for v in op.outputs)
        else:
            s = self._strategy(op)
            factors, operands, results = s.factors, s.operands, s.results
            seconds = float(self.f.problem.costs[self.f.ops[op.index]][self.choice[self.f.ops[op.index]]])
        reads = tuple(
            self._read(a, (op.index, i), spec) if isinstance(a, Value) and not self.graph.is_free(a) else AS_MADE
            for i, (a, spec) in enumerate(zip(op.inputs, operands, strict=True))
        )
        names = tuple(v.name for v in op.outputs)
        types = tuple(v.type for v in op.outputs)
        return Step(op.name, op.phase, op.scope, op.source, factors, reads, operands, results, names, types, seconds)

    def outputs(self) -> tuple[Output, ...]:
        """What the step returns; called after `steps`."""
        found = []
        n = len(self.graph.ops)
        for o, (name, a) in enumerate(zip(self.graph.output_names, self.graph.outputs, strict=True)):
            came = self.state.get(o)
            if came is not None:
                spec = self.made[self.graph.inputs[came].id]
            elif isinstance(a, Value) and not self.graph.is_free(a):
                spec = self._node_spec(self.f.outputs[o], a)
            else:
                spec = Spec.replicated(a.rank)
            read = AS_MADE
            kind = a.type if isinstance(a, Value) else f"{a.dtype}[]"
            if isinstance(a, Value) and not self.graph.is_free(a):
                read = self._read(a, (n, o), spec)
            found.append(Output(name, kind, read, spec, came))
        return tuple(found)

    def _read(self, v: Value, reader: tuple[int, int], wanted: Spec) -> int:
        """The copy a reader reads, made along its chain of copy nodes."""
        chain = []
        at = self.f.reads.get(reader)
        while at is not None:
            chain.append(at)
            at = self.f.copies[v.id][at].parent
        read, spec = AS_MADE, self.made[v.id]
        for node in reversed(chain):
            target = self._node_spec(self.f.copies[v.id][node].node, v)
            read, spec = self._change(v, read, node, spec, target, reader)
        group = chain[0] if chain else None
        return self._change(v, read, group, spec, wanted, reader)[0]

    def _change(
        self, v: Value, read: int, group: int | None, spec: Spec, target: Spec, reader: tuple[int, int]
    ) -> tuple[int, Spec]:
        if spec == target:
            return read, spec
        key = (v.id, read, group, target)
        if key not in self._known:
            self._known[key] = len(self.copies)
            self.copies.append(self._copy(v, read, spec, target, reader))
        return self._known[key], target

    def _copy(self, v: Value, read: int, spec: Spec, target: Spec, reader: tuple[int, int]) -> Copy:
        again = (v.id, spec, target) in self._changes
        self._changes.add((v.id, spec, target))
        moves = self.tables.space(v).path(spec, target)
        n = len(self.graph.ops)
        if reader[0] < n:
            op = self.graph.ops[reader[0]]
            line, phase, who = op.source, op.phase, f"{op.name} reads it as {target}"
        else:
            line, phase, who = "", "update", f"result {self.graph.output_names[reader[1]]} leaves as {target}"
        maker = self.graph.producer[v.id]
        origin = "an argument" if maker is None else f"{maker.name}, {self._reason(maker, spec)}"
        cause = f"{origin}; {who}" + ("; made again to save memory" if again else "")
        return Copy(v.id, v.name, v.type, read, target, moves, reader[0], again, line, phase, cause)

    def _reason(self, op: Op, spec: Spec) -> str:
        if not spec.partial:
            return f"made as {spec}"
        return f"made partial over {','.join(spec.partial)}"

    def unresolved(self) -> tuple[Unresolved, ...]:
        """Ops that run replicated for want of a rule."""
        return tuple(
            Unresolved(op.index, op.where, rule.reason)
            for op, rule in zip(self.graph.ops, self.rules, strict=True)
            if rule is not None and not rule.known
        )

    def memory(self, steps: Sequence[Step], outputs: Sequence[Output], budget: int | None) -> Memory:
        """Bytes on one device over time: values, partial values and copies, each by its own spec."""
        n = len(self.graph.ops)
        alive = self._intervals(steps, outputs)
        load = np.zeros(n + 2, np.int64)
        for _, lo, hi, size in alive:
            load[lo] += size
            load[min(hi, n + 1)] -= size
        over_time = np.cumsum(load)[: n + 1]
        at = int(over_time.argmax()) if len(over_time) else 0
        there = sorted(((s, w) for w, lo, hi, s in alive if lo <= at < hi), reverse=True)[:LARGEST]
        arguments = sum(self.made[v.id].local_bytes(v.shape, v.itemsize, self.tables.mesh) for v in self.graph.inputs)
        return Memory(
            budget,
            arguments,
            int(over_time[at]),
            at,
            tuple(map(int, over_time)),
            tuple(Held(w, s) for s, w in there),
        )

    def _intervals(self, steps: Sequence[Step], outputs: Sequence[Output]) -> list[tuple[str, int, int, int]]:
        """(what, begin, end, bytes) of all that is materialised."""
        n = len(self.graph.ops)
        ends: dict[tuple[int, int], int] = {}  # (value, copy) -> end
        direct: dict[int, int] = {}

        def until(v: int, read: int, time: int) -> None:
            ends[v, read] = max(ends.get((v, read), 0), time)

        for op, step in zip(self.graph.ops, steps, strict=True):
            for i, (a, read) in enumerate(zip(op.inputs, step.reads, strict=True)):
                if isinstance(a, Value) and not self.graph.is_free(a):
                    time = self.life.use[op.index]
                    if op.name == BARRIER:
                        time = self.life.end[op.outputs[i].id]
                    until(a.id, read, time)
        for a, o in zip(self.graph.outputs, outputs, strict=True):
            if isinstance(a, Value):
                until(a.id, o.read, n + 1)
        for k in range(len(self.copies) - 1, -1, -1):
            c = self.copies[k]
            until(c.value, c.source, min(c.before, n) + 1)
            if any(m.on_wire for m in c.moves):
                direct[c.value] = max(direct.get(c.value, 0), min(c.before, n) + 1)
        taken = self._taken_over(outputs)
        found = []
        for v, name in zip(self.graph.inputs, self.graph.input_names, strict=True):
            found.append((name, 0, n + 1, self._bytes(v, self.made[v.id])))
        arguments = {v.id for v in self.graph.inputs}
        for v in self.graph.values:
            maker = self.graph.producer[v.id]
            if v.id in arguments or maker is None or maker.is_free:
                continue
            end = ends.get((v.id, AS_MADE), self.life.begin[v.id] + 1)
            if not self.life.materialised[v.id]:
                end = direct.get(v.id, 0)  # a fused value is there only where a collective takes it
            if end > self.life.begin[v.id] and (v.id, AS_MADE) not in taken:
                what = f"{v.name}:{v.type} {maker.name} {maker.source}".rstrip()
                found.append((what, self.life.begin[v.id], end, self._bytes(v, self.made[v.id])))
        for k, c in enumerate(self.copies):
            if (c.value, k) not in taken and any(m.kind != "mask" for m in c.moves):
                v = self.graph.values[c.value]
                end = max(ends.get((c.value, k), 0), min(c.before, n) + 1)
                found.append((f"{c.name}:{c.type} as {c.spec}", min(c.before, n), end, self._bytes(v, c.spec)))
        return found

    def _taken_over(self, outputs: Sequence[Output]) -> set[tuple[int, int]]:
        """Results that are written into the buffer of a donated argument."""
        return {
            (a.id, o.read)
            for a, o in zip(self.graph.outputs, outputs, strict=True)
            if isinstance(a, Value) and o.state_of in self.donated
        }

    def _bytes(self, v: Value, spec: Spec) -> int:
        return spec.local_bytes(v.shape, v.itemsize, self.tables.mesh)


def with_budget(memory: Memory, budget: int | None) -> Memory:
    """The same figures against another budget."""
    return replace(memory, budget=budget)
