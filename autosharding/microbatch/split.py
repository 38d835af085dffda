"""From the graph of a step to that of the same step in a loop over microbatches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import jax

from autosharding import _jax
from autosharding.capture import from_jaxpr
from autosharding.errors import MicrobatchError
from autosharding.graph import Graph
from autosharding.microbatch.label import Labels
from autosharding.microbatch.loop import leaving, looped
from autosharding.microbatch.states import Own, Sliced
from autosharding.microbatch.ways import SHARE, labelled, share
from autosharding.planner.roles import roles
from autosharding.rules import rules_of


def batch_of(graph: Graph, state: Mapping[int, int]) -> int | None:
    """The number of examples: the first dim that most arguments have that are no state; None where there are none."""
    found = [graph.inputs[i].shape[0] for i in _batch_inputs(graph, state)]
    return max(Counter(found).items(), key=lambda kv: (kv[1], kv[0]))[0] if found else None


def examples_of(graph: Graph, state: Mapping[int, int], microbatches: int) -> int:
    """The number of examples, divisible by the number of microbatches.

    Raises:
        MicrobatchError: where it is not, or there is no batch.
    """
    examples = batch_of(graph, state)
    if examples is None or microbatches < 1 or examples % microbatches:
        raise MicrobatchError(_indivisible(graph, examples, microbatches))
    return examples


def microbatched(graph: Graph, state: Mapping[int, int], microbatches: int, *, independent: bool = False) -> Graph:
    """The step in a loop over microbatches: the same inputs, the same results.

    Args:
        graph: the step.
        state: result index -> index of the input whose new state it is.
        microbatches: how many; must divide the number of examples.
        independent: whether a microbatch may take the statistics of its own examples for those of the batch.

    Raises:
        MicrobatchError: saying which op has to see the whole batch, where it stands, and what to do.
    """
    if microbatches == 1:
        return graph
    examples = examples_of(graph, state, microbatches)
    labels = best_labels(graph, state, examples, microbatches, independent=independent)
    return _traced(graph, labels)


def best_labels(
    graph: Graph, state: Mapping[int, int], examples: int, microbatches: int, *, independent: bool = False
) -> Labels:
    """The labels by which a step is cut.

    A microbatch takes every `microbatches`-th example, so that devices that have the batch split need not exchange
    examples; where an op asks for examples in one piece, it takes a run of them.

    Raises:
        MicrobatchError: where too much would run on the whole batch.
    """
    rules = rules_of(graph)
    size = examples // microbatches
    tried = []
    for cut in (Sliced(0, size, 1), Sliced(0, 1, size)):
        inputs = {graph.inputs[i].id: cut for i in _batch_inputs(graph, state) if graph.inputs[i].shape[0] == examples}
        labels = labelled(graph, rules, microbatches, inputs, independent=independent)
        tried.append((share(labels), labels))
        if tried[-1][0] >= SHARE:
            return _with_means(graph, labels)
    most, labels = max(tried, key=lambda t: t[0])
    helps = not independent and _splits(graph, state, examples, microbatches)
    raise MicrobatchError(_refused(graph, labels, microbatches, most, helps))


def _splits(graph: Graph, state: Mapping[int, int], examples: int, microbatches: int) -> bool:
    """Whether the step can be cut where each microbatch takes statistics of its own."""
    try:
        best_labels(graph, state, examples, microbatches, independent=True)
    except MicrobatchError:
        return False
    return True


def _with_means(graph: Graph, labels: Labels) -> Labels:
    """Labels in which what leaves the loop of the microbatches' own statistics has a mean.

    Raises:
        MicrobatchError: where it is no number.
    """
    for v in leaving(labels)[0]:
        op = graph.producer[v.id]
        if isinstance(labels.states[v.id], Own) and not v.dtype.startswith(("f", "bf", "c")) and op is not None:
            raise MicrobatchError(
                f"The step {graph.name!r} cannot run in {labels.microbatches} microbatches with statistics of their "
                f"own: {op.where} makes {v.type} of such statistics, of which there is no mean. Return the statistics "
                "instead, or use microbatches=1."
            )
    return labels


def _batch_inputs(graph: Graph, state: Mapping[int, int]) -> list[int]:
    kinds = roles(graph, state)
    found = enumerate(zip(graph.inputs, kinds, strict=True))
    return [i for i, (v, kind) in found if kind == "batch" and v.rank and not v.dtype.startswith("key")]


def _traced(graph: Graph, labels: Labels) -> Graph:
    avals = [jax.ShapeDtypeStruct(v.shape, v.aval.dtype, weak_type=v.aval.weak_type) for v in graph.inputs]
    made = from_jaxpr(
        _jax.trace(looped(labels), avals),
        name=graph.name,
        input_names=graph.input_names,
        output_names=graph.output_names,
    )
    return replace(made, constants=(*graph.constants, *made.constants))


def _indivisible(graph: Graph, examples: int | None, microbatches: int) -> str:
    if examples is None:
        return (
            f"The step {graph.name!r} was asked to run in {microbatches} microbatches, and none of its arguments is a "
            "batch: an array that is not handed on as new state. Leave microbatches at 1."
        )
    near = [m for m in _divisors(examples) if m <= max(1, microbatches)]
    return (
        f"The step {graph.name!r} was asked to run in {microbatches} microbatches, which do not divide its batch of "
        f"{examples} examples. The nearest number that does is {near[-1]}."
    )


def _divisors(n: int) -> list[int]:
    return [m for m in range(1, n + 1) if n % m == 0]


def _refused(graph: Graph, labels: Labels, microbatches: int, inside: float, independent_helps: bool) -> str:
    first = labels.blocked[0] if labels.blocked else None
    what = "its batch could not be followed through the program"
    if first is not None:
        op = graph.ops[first.op]
        where = f" in {op.scope}" if op.scope else ""
        what = f"{op.where}{where} {first.why}"
    ways = "a layer norm for a batch norm) or microbatches=1."
    if independent_helps:
        ways = (
            "a layer norm for a batch norm), microbatches=1, or microbatch_semantics='independent', with which each "
            "microbatch has statistics of its own."
        )
    return (
        f"The step {graph.name!r} cannot run in {microbatches} microbatches: {what}, while the batch is still being "
        f"worked through; {1 - inside:.0%} of the work on the batch would run unsplit. Use an operation on each "
        f"example by itself there ({ways}"
    )
