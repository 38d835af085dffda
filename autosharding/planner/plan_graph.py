"""The planner's one function, `plan_graph`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace

import ilp
from autosharding.errors import Infeasible
from autosharding.graph import Graph
from autosharding.plan import Alternative, Memory, Plan
from autosharding.planner.account import Account
from autosharding.planner.decode import Decoder
from autosharding.planner.formulate import Formulation, Restrictions, formulate
from autosharding.planner.liveness import Liveness, liveness
from autosharding.planner.methods import restrictions
from autosharding.planner.roles import roles
from autosharding.planner.tables import Known, Tables
from autosharding.planner.uneven import uneven
from autosharding.rules import Rule, rules_of
from autosharding.spec import Spec
from autosharding.strategies import monoids
from cost_model import Cluster, Topology

Report = Callable[[str], None]

GAP = 1e-3
"""Relative gap at which the solver may stop."""

NEGLIGIBLE = 1e-4
"""Share of the best plan so far by which one on another mesh must be cheaper to be looked for."""

WORK = 10_000_000_000
"""Table entries that a solve without a memory limit may look at: about a minute."""

LIMITED_WORK = 200_000_000
"""Table entries that a solve under a memory limit may look at, besides a multiple of what the free one looked at."""

LIMITED_SHARE = 8
"""That multiple."""

TIGHTENINGS = 8
"""How often the limit of the program is lowered by what its memory rows do not see (copies for one reader)."""

NEAR = 0.03
"""Share of the budget to which the program's limit is found."""

TABLE_ENTRIES = 60_000_000
"""Pair-table entries up to which a logical mesh is planned whole."""


@dataclass(frozen=True)
class _Task:
    """A graph with all that does not depend on the mesh."""

    graph: Graph
    rules: list[Rule | None]
    monoids: tuple[str | None, ...]
    life: Liveness
    roles: tuple[str, ...]
    state: Mapping[int, int]
    donated: frozenset[int]
    specs: Mapping[int, Spec]
    method: str
    rent: float
    known: dict[Topology, Known]


def plan_graph(
    graph: Graph,
    cluster: Cluster | None = None,
    *,
    mesh: Mapping[str, int] | None = None,
    topology: Topology | None = None,
    memory: int | None = None,
    method: str = "auto",
    state: Mapping[int, int] | None = None,
    donated: frozenset[int] = frozenset(),
    specs: Mapping[int, Spec] | None = None,
    streams: Set[int] = frozenset(),
    told: Mapping[int, str] | None = None,
    rent: float = 0.0,
    known: dict[Topology, Known] | None = None,
    progress: Report | None = None,
) -> Plan:
    """Plan a graph.

    Args:
        graph: the step.
        cluster: the hardware; its logical meshes are tried unless `mesh` or `topology` names one.
        mesh: axis -> size.
        topology: a mesh with its prices.
        memory: bytes a device may hold; None takes the device's own less its reserve.
        method: "auto" or one of the plans people write by hand.
        state: result index -> index of the input whose new state it is; they get one spec.
        donated: inputs whose buffers their new state takes over.
        specs: input index -> the spec the user wants.
        streams: ids of arguments and results that are there an entry at a time; see `liveness`.
        told: input index -> role, for a part of a program, where it is known of the whole; see `roles`.
        rent: seconds that a byte costs which is held all the time; see `formulate`. The plan's bound is then of plans
            that hold no less.
        known: topology -> what was made for other graphs on it; pass the same dict to plan graphs that are alike.
        progress: called with a line of text at each stage.

    Raises:
        Infeasible: when nothing fits the memory on any mesh tried.
    """
    rules = rules_of(graph)
    state = dict(state or {})
    task = _Task(
        graph,
        rules,
        monoids(graph, rules),
        liveness(graph, streams),
        roles(graph, state, streams, told),
        state,
        donated,
        specs or {},
        method,
        rent,
        known if known is not None else {},
    )
    tell = progress or (lambda _: None)
    tried: list[tuple[Topology, Plan | Infeasible | str]] = []
    for t in _topologies(cluster, mesh, topology):
        tell(f"planning on the mesh {_name(t)}")
        tried.append((t, _attempt(task, t, memory, best=_best(p for _, p in tried))))
    plans = [p for _, p in tried if isinstance(p, Plan)]
    if not plans:
        raise next(p for _, p in tried if isinstance(p, Infeasible))
    best = min(plans, key=lambda p: p.seconds)
    others = tuple(_alternative(t, p) for t, p in tried if p is not best)
    notes = uneven(graph, rules, best.steps, best.mesh)
    return replace(best, alternatives=others, unlimited=min(p.unlimited for p in plans), notes=notes).verify()


def _topologies(
    cluster: Cluster | None, mesh: Mapping[str, int] | None, topology: Topology | None
) -> tuple[Topology, ...]:
    if topology is not None:
        return (topology,)
    if cluster is None:
        raise ValueError("plan_graph needs a cluster or a topology")
    return (cluster.topology(mesh),) if mesh else tuple(cluster.logical_meshes(max_axes=3))


def _best(tried: Iterable[Plan | Infeasible | str]) -> float:
    """The cheapest so far, in seconds; inf before the first."""
    return min((p.seconds for p in tried if isinstance(p, Plan)), default=math.inf)


def _attempt(task: _Task, topology: Topology, memory: int | None, *, best: float) -> Plan | Infeasible | str:
    try:
        return _plan_on(task, topology, memory, best=best)
    except Infeasible as error:
        return error


def _name(t: Topology) -> str:
    return ",".join(f"{a}={n}" for a, n in zip(t.axis_names, t.sizes, strict=True))


def _alternative(t: Topology, p: Plan | Infeasible | str) -> Alternative:
    if isinstance(p, Plan):
        return Alternative(_name(t), p.seconds, f"gap {p.gap:.2%}")
    return Alternative(_name(t), None, p if isinstance(p, str) else "does not fit the memory")


def problem_of(
    graph: Graph, topology: Topology, *, state: Mapping[int, int] | None = None, limit: int | None = None
) -> ilp.Problem:
    """The 0-1 program of a graph on a topology, method "auto": for looking at, and for measuring solvers."""
    rules = rules_of(graph)
    found = monoids(graph, rules)
    life = liveness(graph)
    tables = Tables(graph, topology, found, life)
    built = formulate(
        graph, rules, tables, life, state=state or {}, donated=frozenset(), restrictions=Restrictions(), limit=limit
    )
    return built.problem


def _plan_on(task: _Task, topology: Topology, memory: int | None, *, best: float) -> Plan | str:
    """Plan on one mesh; a line of text where it cannot beat `best` seconds, or is too large to try beside it."""
    tables = Tables(task.graph, topology, task.monoids, task.life, task.known.setdefault(topology, Known()))
    held = restrictions(task.method, task.graph, task.rules, task.roles, tables.mesh, task.specs)
    budget = memory if memory is not None else topology.device.usable_memory

    def build(limit: int | None) -> Formulation:
        return formulate(
            task.graph,
            task.rules,
            tables,
            task.life,
            state=task.state,
            donated=task.donated,
            restrictions=held,
            limit=limit,
            rent=task.rent,
        )

    free = build(None)
    entries = sum(e.cost.size for e in free.problem.edges)
    if best < math.inf and entries > TABLE_ENTRIES:
        return f"not planned: {entries:,} table entries are more than {TABLE_ENTRIES:,}"
    cutoff = math.inf if task.rent else (1 - NEGLIGIBLE) * best
    solution = ilp.solve(free.problem, gap=GAP, work=WORK, cutoff=cutoff)
    if solution.status == "infeasible":
        raise Infeasible(_contradiction(task, topology))
    if solution.bound >= cutoff:
        return f"takes at least {solution.bound:.3g} s even without a memory limit"
    plan = _decoded(task, tables, free, solution, budget)
    if task.rent:  # less what this plan pays for what it holds
        plan = replace(plan, bound=solution.bound - (solution.objective - plan.seconds))
    if plan.memory.peak > budget:
        fitted = _fitted(task, tables, build, budget, plan, LIMITED_WORK + LIMITED_SHARE * solution.work)
        return replace(fitted, unlimited=plan.seconds)
    return replace(plan, unlimited=plan.seconds)


def _fitted(
    task: _Task, tables: Tables, build: Callable[[int], Formulation], budget: int, free: Plan, work: int
) -> Plan:
    """The cheapest plan within the budget.

    The program's memory rows do not see everything that the plan's own account does (copies of small values, values
    that are only there because a collective takes them), so its limit is lowered until the plan fits, in growing
    steps, and then raised again halfway while that helps.
    """
    limit, bound, closest = budget, 0.0, free
    too_low, too_high, best = 0, budget + 1, None
    solution: ilp.Solution | None = None
    for attempt in range(TIGHTENINGS):
        built = build(limit)
        solution = ilp.solve(built.problem, gap=GAP, work=work, least_limit=False)
        bound = bound or solution.bound
        if solution.status == "infeasible" or not solution.choice:
            if limit == budget:
                raise Infeasible(_too_much(task, solution, budget, closest), closest.memory.peak)
            too_low = limit
        else:
            plan = replace(_decoded(task, tables, built, solution, budget), bound=bound)
            closest = min(closest, plan, key=lambda p: p.memory.peak)
            if plan.memory.peak > budget:
                too_high = limit
                limit = max(limit - (plan.memory.peak - budget) * 2**attempt, too_low + 1)
                if best is None and limit > too_low + 1:
                    continue
            else:
                too_low = max(too_low, limit)
                best = plan if best is None else min(best, plan, key=lambda p: p.seconds)
        if best is not None and too_high - too_low <= budget * NEAR:
            break
        if too_high > budget and best is not None:
            break
        limit = (too_low + too_high) // 2
    if best is None:
        raise Infeasible(_too_much(task, solution, budget, closest), closest.memory.peak)
    return best


def _decoded(task: _Task, tables: Tables, built: Formulation, solution: ilp.Solution, budget: int) -> Plan:
    decoder = Decoder(task.graph, task.rules, tables, built, solution.choice, task.state)
    steps = decoder.steps()
    outputs = decoder.outputs()
    copies = tuple(decoder.copies)
    account = Account(task.graph, task.life, decoder.made, tables.mesh, steps, copies, outputs, task.donated)
    return Plan(
        name=task.graph.name,
        fingerprint=task.graph.fingerprint,
        method=task.method,
        topology=tables.topology,
        inputs=decoder.inputs(task.roles),
        steps=steps,
        copies=copies,
        outputs=outputs,
        memory=account.memory(budget),
        bound=solution.bound,
        unlimited=0.0,
        unresolved=decoder.unresolved(),
    )


def _contradiction(task: _Task, topology: Topology) -> str:
    return (
        f"No plan of the method {task.method!r} on the mesh {_name(topology)} meets all constraints: some op is asked "
        "to be in two shardings between which there is no way. Drop a constraint, or take method='auto'."
    )


def _too_much(task: _Task, solution: ilp.Solution | None, budget: int, closest: Plan) -> str:
    """The paragraph of an infeasible memory limit."""
    why = solution.infeasibility if solution is not None else None
    smallest = why.smallest_peak if why is not None and why.smallest_peak else None
    at_least = f"no plan holds less than {_size(smallest)}" if smallest else "no plan found holds so little"
    largest = ", ".join(f"{h.what} {_size(h.bytes)}" for h in closest.memory.largest[:4])
    return (
        f"The step {task.graph.name!r} does not fit: {_size(budget)} per device are allowed, and on the mesh "
        f"{dict(closest.mesh)} {at_least}; the closest plan found needs {_size(closest.memory.peak)} "
        f"at op {closest.memory.peak_at} ({_at(closest.memory, task)}). Largest there: {largest}. "
        "Try a larger memory limit, more devices, a smaller batch, or jax.checkpoint around the blocks of the model."
    )


def _at(memory: Memory, task: _Task) -> str:
    return task.graph.ops[memory.peak_at].where if memory.peak_at < len(task.graph.ops) else "the return"


def _size(n: int | None) -> str:
    value = float(n or 0)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.1f} {unit}"
        value /= 1024
    return ""
