"""The formulation, once, as it is written on paper.

s_v is one-hot over node v's strategies; e_uv is the outer product of s_u and s_v, linearised.

    min  Σ_v c_v·s_v + Σ_uv <R_uv, e_uv>                                        (1)  ``formulate``
    s.t. Σ_i s_v[i] = 1                                one choice per node      (2)  ``one_choice``
         Σ_j e_uv[i,j] = s_u[i], Σ_i e_uv[i,j] = s_v[j]  edges agree with nodes (3)  ``agree``
         Σ_{v live at t} m_v·s_v <= M   for every t    it fits, at every moment (4)  ``fits``

Zheng et al., "Alpa: Automating Inter- and Intra-Operator Parallelism for Distributed Deep Learning", OSDI 2022,
section 4.2, with (3) as equalities: then e is integral as soon as s is, and may stay continuous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ilp.problem import Problem
from ilp.program import Program

__all__ = ["Formulation", "binding_times", "formulate"]

MEMORY_UNITS = 1e4
"""Rows (4) are scaled so that the limit reads 1e4: a solver's absolute tolerance of 1e-7 is then 1e-11 of the limit."""


@dataclass(frozen=True, slots=True)
class Formulation:
    """The program, and which of its columns are s (per node) and e (per edge)."""

    program: Program
    s: tuple[np.ndarray, ...]
    e: tuple[np.ndarray, ...]
    scale: float
    """The program's objective is the problem's, times this."""

    def choice(self, x: np.ndarray) -> tuple[int, ...]:
        """Read the choice off a solution of the program."""
        return tuple(int(np.argmax(x[s])) for s in self.s)


def formulate(
    problem: Problem,
    *,
    edges: str = "continuous",
    moments: Sequence[int] | None = None,
    ceiling: float = np.inf,
    around: float | None = None,
) -> Formulation:
    """Equations (1)-(4) for ``problem``; ``edges`` says whether e is "continuous" or "binary".

    Rows (4) are written for ``moments`` only, where they are given. Nothing that alone drives the cost over
    ``ceiling`` may be chosen. ``around`` is what the optimum is known to cost, roughly.
    """
    program = Program()
    scale = objective_scale(problem, around)
    slack = np.inf if ceiling == np.inf else ceiling - least_of_all(problem)
    s = tuple(program.columns(capped(cost, slack) * scale, integer=True) for cost in problem.costs)
    e = tuple(program.columns(capped(edge.cost, slack) * scale, integer=edges == "binary") for edge in problem.edges)
    for s_v in s:
        one_choice(program, s_v)
    for edge, e_uv in zip(problem.edges, e, strict=True):
        agree(program, e_uv, s[edge.u], s[edge.v])
    for moment in binding_times(problem) if moments is None else moments:
        fits(program, problem, s, int(moment))
    return Formulation(program, s, e, scale)


def one_choice(program: Program, s_v: np.ndarray) -> None:
    """Σ_i s_v[i] = 1 (2)."""
    program.rows("one_choice", [(np.zeros(1, np.int64), s_v, 1.0)], 1.0, 1.0, 1)


def agree(program: Program, e_uv: np.ndarray, s_u: np.ndarray, s_v: np.ndarray) -> None:
    """Σ_j e_uv[i,j] = s_u[i] and Σ_i e_uv[i,j] = s_v[j] (3)."""
    i, j = np.arange(len(s_u)), np.arange(len(s_v))
    program.rows("agree", [(i[:, None], e_uv, 1.0), (i, s_u, -1.0)], 0.0, 0.0, len(i))
    program.rows("agree", [(j[None, :], e_uv, 1.0), (j, s_v, -1.0)], 0.0, 0.0, len(j))


def fits(program: Program, problem: Problem, s: tuple[np.ndarray, ...], moment: int) -> None:
    """Σ_{v live at t} m_v·s_v <= M (4), at one moment t."""
    assert problem.limit is not None
    unit = MEMORY_UNITS / max(problem.limit, 1)
    live = [m for m in problem.memory if m.lo <= moment < m.hi]
    program.rows(
        "fits", [(np.zeros(1, np.int64), s[m.node], m.usage * unit) for m in live], -np.inf, problem.limit * unit, 1
    )


def binding_times(problem: Problem) -> np.ndarray:
    """The moments whose row (4) can bind: not all choices fit there, and no neighbouring moment holds as much of each.

    Between a start of some row and the next end of one the live set only grows, so its last moment implies the others.
    """
    if problem.limit is None or not len(problem.times):
        return np.zeros(0, dtype=np.int64)
    lo, hi = problem.spans
    steps = np.zeros(len(problem.times) + 1, dtype=np.int64)
    starts, ends = np.zeros(len(steps), dtype=bool), np.zeros(len(steps), dtype=bool)
    largest: dict[int, int] = {}
    for row, begin, end in zip(problem.memory, lo.tolist(), hi.tolist(), strict=True):
        if begin < end:
            if id(row.usage) not in largest:
                largest[id(row.usage)] = int(row.usage.max())
            steps[begin] += largest[id(row.usage)]
            steps[end] -= largest[id(row.usage)]
            starts[begin] = ends[end] = True
    full = np.cumsum(steps)[:-1] > problem.limit
    last_of_growth = starts_pending(starts, ends)
    return problem.times[full & last_of_growth]


def starts_pending(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Mark the positions that close a run of growth: something began since the last end; then something ends."""
    marks = np.zeros(len(starts) - 1, dtype=bool)
    grown = False
    for at in range(len(marks)):
        grown = starts[at] or (grown and not ends[at])
        marks[at] = grown and bool(ends[at + 1])
    return marks


def capped(cost: np.ndarray, slack: float) -> np.ndarray:
    """The costs, with those forbidden that exceed the least of them by more than ``slack``."""
    return cost if slack == np.inf else np.where(cost - cost.min() > slack, np.inf, cost)


def least_of_all(problem: Problem) -> float:
    """The sum of every node's and every edge's least cost, in seconds: a bound, if a weak one."""
    return sum(float(cost.min()) for cost in problem.costs) + sum(float(e.cost.min()) for e in problem.edges)


def objective_scale(problem: Problem, around: float | None = None) -> float:
    """Return a power of two that brings the objective to about 1e4: a solver's absolute tolerances matter little.

    Where the objective is not known, the largest price is brought to 1e3.
    """
    if around is not None and around != 0.0 and np.isfinite(around):
        return float(2.0 ** np.round(np.log2(1e4 / abs(around))))
    finite = [float(np.abs(cost[np.isfinite(cost)]).max(initial=0.0)) for cost in problem.costs]
    seen = {id(edge.cost): edge.cost for edge in problem.edges}
    finite += [float(np.abs(cost[np.isfinite(cost)]).max(initial=0.0)) for cost in seen.values()]
    largest = max(finite, default=0.0)
    return float(2.0 ** np.round(np.log2(1e3 / largest))) if largest > 0 else 1.0
