"""From a choice of the 0-1 program back to the parts of a `Plan`: what each op reads, the copies that are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autosharding.graph import Graph, Op, Value
from autosharding.plan import AS_MADE, Copy, Exchange, Input, Output, Step, Unresolved
from autosharding.planner.formulate import Formulation
from autosharding.planner.tables import Tables, exchanges
from autosharding.rules import Rule
from autosharding.spec import Spec
from autosharding.strategies import Strategy


class Decoder:
    """Reads one solution; its parts are put together by `planner.plan_graph`."""

    def __init__(
        self,
        graph: Graph,
        rules: Sequence[Rule | None],
        tables: Tables,
        formulation: Formulation,
        choice: Sequence[int],
        state: Mapping[int, int],
    ) -> None:
        self.graph, self.rules, self.tables = graph, rules, tables
        self.f, self.choice, self.state = formulation, choice, state
        self.copies: list[Copy] = []
        self._known: dict[tuple[int, int, int | None, Spec], int] = {}
        self._changes: set[tuple[int, Spec, Spec]] = set()
        self._fetched: set[tuple[int, int, tuple[str, ...], str]] = set()
        self.made = self._made()

    def _node_spec(self, node: int, v: Value) -> Spec:
        return self.tables.space(v).specs[self.f.specs[node][self.choice[node]]]

    def _made(self) -> dict[int, Spec]:
        """The spec in which each value is made."""
        made = {v.id: self._node_spec(n, v) for v, n in zip(self.graph.inputs, self.f.inputs, strict=True)}
        for op in self.graph.ops:
            for i, v in enumerate(op.outputs):
                if op.region is not None:
                    made[v.id] = self._lane_spec(*self.graph.lane_made[v.id])
                elif op.is_free:
                    made[v.id] = Spec.replicated(v.rank)
                else:
                    made[v.id] = self._strategy(op).results[i]
        return made

    def _lane_spec(self, lane: int, stacked: bool) -> Spec:
        """How an array lies at a port of a lane."""
        spec = self.f.lane_specs[lane][self.choice[self.f.lanes[lane]]]
        return spec.stacked() if stacked else spec

    def _strategy(self, op: Op) -> Strategy:
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
        priced = 0.0
        if op.region is not None:
            operands = tuple(self._lane_spec(*self.graph.lane_read[op.index, i]) for i in range(len(op.inputs)))
            results = tuple(self.made[v.id] for v in op.outputs)
        elif op.is_free:
            operands = tuple(Spec.replicated(a.rank) for a in op.inputs)
            results = tuple(Spec.replicated(v.rank) for v in op.outputs)
        else:
            s = self._strategy(op)
            factors, operands, results = s.factors, s.operands, s.results
            table, kept = self.f.tables[op.index]
            priced = float(table.seconds[kept[self.choice[self.f.ops[op.index]]]])
        reads = tuple(
            self._read(a, (op.index, i), spec) if isinstance(a, Value) and not self.graph.is_free(a) else AS_MADE
            for i, (a, spec) in enumerate(zip(op.inputs, operands, strict=True))
        )
        inner = self._exchanges(op, reads)
        seconds = max(0.0, priced - sum(e.seconds for e in inner))
        names = tuple(v.name for v in op.outputs)
        types = tuple(v.type for v in op.outputs)
        return Step(
            op=op.name,
            phase=op.phase,
            scope=op.scope,
            source=op.source,
            factors=factors,
            reads=reads,
            operands=operands,
            results=results,
            values=names,
            types=types,
            seconds=seconds,
            exchanges=inner,
            times=self.graph.op_times[op.index],
        )

    def _exchanges(self, op: Op, reads: Sequence[int]) -> tuple[Exchange, ...]:
        """What the op exchanges itself, but for what an earlier op fetched of the same value."""
        rule = self.rules[op.index]
        if rule is None or rule.exchanges is None:
            return ()
        found = []
        for said, planned in exchanges(op, rule, self._strategy(op), self.tables.topology):
            a = op.inputs[said.source] if said.part else None
            if isinstance(a, Value) and not self.graph.is_free(a):
                key = (a.id, reads[said.source], said.axes, said.part)
                if key in self._fetched:
                    continue
                self._fetched.add(key)
            found.append(planned)
        return tuple(found)

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
        times = self.graph.times[v.id]
        return Copy(v.id, v.name, v.type, read, target, moves, reader[0], again, line, phase, cause, times)

    def _reason(self, op: Op, spec: Spec) -> str:
        if not spec.partial:
            return f"made as {spec}"
        return f"made partial over {','.join(spec.partial)}"

    def unresolved(self) -> tuple[Unresolved, ...]:
        """Ops that run replicated for want of a rule."""
        return tuple(
            Unresolved(op.index, op.where, rule.reason)
            for op, rule in zip(self.graph.ops, self.rules, strict=True)
            if rule is not None and not rule.known and not op.is_free
        )
