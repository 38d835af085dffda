"""Weights that a step which trains computes with and hands on to nobody: what adapters are put on, a teacher's.

No argument says that it is one. Dims that the rules call the same factor, anywhere in the step, are of one kind; the
batch's first dim is of another kind than the dims of what is trained, and than later dims of arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set

from autosharding.graph import Graph, Op, Value
from autosharding.rules import Rule, rules_of

Dim = tuple[int, int]
"""(id of a value, which of its dims); of what a loop runs over (its opening op, -1)."""


def frozen(graph: Graph, given: Set[int], trained: Set[int]) -> frozenset[int]:
    """Indices of the inputs that are frozen weights; none where no batch would be left.

    They are floating-point numbers. The first dim is of the kind of a dim of what is trained (the width of a model) or
    of a later dim of an argument (the features of an example), or it is of a kind of its own along which the array is
    only looked up in, summed with another one, or taken whole beside it (a table of embeddings, the window of a
    convolution).

    Args:
        graph: of a step.
        given: indices of the inputs that are no state.
        trained: indices of those whose new state an update makes of the old.
    """
    ranked = [i for i in sorted(given) if graph.inputs[i].rank and not graph.inputs[i].dtype.startswith("key")]
    asked = [i for i in ranked if graph.inputs[i].dtype.startswith(("f", "bf"))]
    if not asked:
        return frozenset()
    kinds = _Kinds(graph)
    first = {i: kinds.of((graph.inputs[i].id, 0)) for i in ranked}
    others = [(graph.inputs[i].id, d) for i in ranked for d in range(1, graph.inputs[i].rank)]
    others += [(graph.inputs[i].id, d) for i in trained for d in range(graph.inputs[i].rank)]
    model, count = set(map(kinds.of, others)), Counter(first.values())
    tables = {kind for kind in map(kinds.of, kinds.looked_up) if count[kind] == 1} - set(map(kinds.of, kinds.summed))
    found = frozenset(i for i in asked if first[i] in model | tables)
    return found if len(found) < len(ranked) else frozenset()


class _Kinds:
    """Which dims are of one kind. Arrays that hang on no input stand for no dims: all may share one array of zeros.

    Attributes:
        looked_up: dims along which an array is looked up in, summed with another, or taken whole beside it.
        summed: dims along which an array is reduced by itself.
    """

    def __init__(self, graph: Graph) -> None:
        self._leads: dict[Dim, Dim] = {}
        self.looked_up: list[Dim] = []
        self.summed: list[Dim] = []
        self._hanging = {v.id for v in graph.inputs}
        for op, rule in zip(graph.ops, rules_of(graph), strict=True):
            if rule is None or any(v.id in self._hanging for v in op.values):
                self._hanging.update(v.id for v in op.outputs)
            for a, b in _through_border(graph, op) if rule is None else self._of_op(op, rule):
                self._leads[self.of(a)] = self.of(b)

    def of(self, dim: Dim) -> Dim:
        """The dim that stands for its kind."""
        path = []
        while (lead := self._leads.setdefault(dim, dim)) != dim:
            path.append(dim)
            dim = lead
        self._leads.update(dict.fromkeys(path, dim))
        return dim

    def _of_op(self, op: Op, rule: Rule) -> Iterator[tuple[Dim, Dim]]:
        """Pairs of dims that are the same: by their factor, of several the major one."""
        found: dict[str, Dim] = {}
        beside = len(op.values) > 1
        for a, dims in [*zip(op.inputs, rule.operands, strict=True), *zip(op.outputs, rule.results, strict=True)]:
            if not isinstance(a, Value) or a.id not in self._hanging:
                continue
            for d, factors in enumerate(dims):
                if factors:
                    yield (a.id, d), found.setdefault(factors[0], (a.id, d))
                elif a.shape[d] > 1 and beside:
                    self.looked_up.append((a.id, d))
        (self.looked_up if beside else self.summed).extend(found[f] for f in rule.reduced if f in found)


def _through_border(graph: Graph, op: Op) -> Iterator[tuple[Dim, Dim]]:
    """The same for what a border makes and for what is read there."""
    for v in op.outputs:
        n, stacked = graph.lane_made[v.id]
        crossing = graph.lanes[n]
        over = crossing.opening, -1
        if stacked:
            yield (v.id, 0), over
        for index, position, also in crossing.reads:
            a = graph.ops[index].inputs[position]
            if isinstance(a, Value):
                yield from (((v.id, d), (a.id, d - stacked + also)) for d in range(stacked, v.rank))
                if also:
                    yield (a.id, 0), over
