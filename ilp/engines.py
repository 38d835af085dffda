"""Stock solvers behind one function each: a Program goes in, an Outcome comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import numpy as np
import pulp
from ortools.math_opt import model_pb2
from ortools.math_opt.python import mathopt

from ilp.program import Program

__all__ = ["Outcome", "Stop", "run", "run_cbc", "run_mathopt"]

Engine = Literal["highs", "cbc", "cpsat"]


@dataclass(frozen=True, slots=True)
class Stop:
    """When a solver may stop: seconds of wall time, relative gap, branch-and-bound nodes. None = never."""

    seconds: float | None = None
    gap: float = 1e-9
    nodes: int | None = None
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a solver says: a vector (or None), its objective, a bound on any, and whether nothing is feasible."""

    x: np.ndarray | None
    objective: float
    bound: float
    infeasible: bool


def run(program: Program, engine: Engine, stop: Stop, *, relax: bool = False) -> Outcome:
    """Solve ``program`` by the engine named; ``relax`` drops integrality."""
    if engine == "cbc":
        return run_cbc(program, stop, relax=relax)
    return run_mathopt(program, engine, stop, relax=relax)


def run_mathopt(
    program: Program,
    engine: Engine,
    stop: Stop,
    *,
    relax: bool = False,
    hint: np.ndarray | None = None,
    cutoff: float | None = None,
) -> Outcome:
    """Solve by OR-tools MathOpt: HiGHS or CP-SAT. HiGHS leaves out what costs more than ``cutoff``."""
    model = mathopt.Model.from_model_proto(_proto(program, relax))
    parameters = mathopt.SolveParameters(
        time_limit=timedelta(seconds=max(stop.seconds, 0.01)) if stop.seconds is not None else None,
        relative_gap_tolerance=stop.gap,
        absolute_gap_tolerance=0.0,
        node_limit=stop.nodes if engine == "highs" and not relax else None,
        threads=stop.threads if engine == "cpsat" else None,
        random_seed=0,
    )
    if cutoff is not None:
        parameters.highs.double_options["objective_bound"] = cutoff
    kind = mathopt.SolverType.CP_SAT if engine == "cpsat" else mathopt.SolverType.HIGHS
    result = mathopt.solve(model, kind, params=parameters, model_params=_hint(model, hint))
    return _outcome(result)


def _hint(model: mathopt.Model, hint: np.ndarray | None) -> mathopt.ModelSolveParameters:
    if hint is None:
        return mathopt.ModelSolveParameters()
    values = {model.get_variable(int(at)): 1.0 for at in np.flatnonzero(hint)}
    return mathopt.ModelSolveParameters(solution_hints=[mathopt.SolutionHint(variable_values=values)])


def _proto(program: Program, relax: bool) -> model_pb2.ModelProto:
    proto = model_pb2.ModelProto()
    columns, rows = range(program.width), range(program.height)
    proto.variables.ids.extend(columns)
    proto.variables.lower_bounds.extend([0.0] * program.width)
    proto.variables.upper_bounds.extend(_joined(program.upper))
    integer = np.zeros(program.width, dtype=bool) if relax else _joined(program.integer)
    proto.variables.integers.extend(integer.tolist())
    cost = _joined(program.cost)
    used = np.flatnonzero(cost)
    proto.objective.linear_coefficients.ids.extend(used.tolist())
    proto.objective.linear_coefficients.values.extend(cost[used].tolist())
    proto.linear_constraints.ids.extend(rows)
    proto.linear_constraints.lower_bounds.extend(_joined(program.lo).tolist())
    proto.linear_constraints.upper_bounds.extend(_joined(program.hi).tolist())
    matrix = program.matrix()
    matrix.eliminate_zeros()
    matrix.sort_indices()
    row_ids = np.repeat(np.arange(program.height), np.diff(matrix.indptr))
    proto.linear_constraint_matrix.row_ids.extend(row_ids.tolist())
    proto.linear_constraint_matrix.column_ids.extend(matrix.indices.tolist())
    proto.linear_constraint_matrix.coefficients.extend(matrix.data.tolist())
    return proto


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _outcome(result: mathopt.SolveResult) -> Outcome:
    reason = result.termination.reason
    bound = result.termination.objective_bounds.dual_bound
    if reason in (mathopt.TerminationReason.INFEASIBLE, mathopt.TerminationReason.INFEASIBLE_OR_UNBOUNDED):
        return Outcome(None, math.inf, math.inf, True)
    if not result.has_primal_feasible_solution():
        return Outcome(None, math.inf, bound, False)
    values = result.variable_values()
    x = np.fromiter(values.values(), dtype=np.float64, count=len(values))
    objective = result.objective_value()
    return Outcome(x, objective, min(bound, objective), False)


def run_cbc(program: Program, stop: Stop, *, relax: bool = False) -> Outcome:
    """Solve by PuLP and its bundled CBC."""
    model = pulp.LpProblem("program", pulp.LpMinimize)
    integer = np.zeros(program.width, dtype=bool) if relax else _joined(program.integer)
    upper, cost = _joined(program.upper), _joined(program.cost)
    x = [
        model.add_variable(f"x{at}", 0, float(upper[at]), pulp.LpInteger if integer[at] else pulp.LpContinuous)
        for at in range(program.width)
    ]
    model += pulp.LpAffineExpression([(x[at], float(cost[at])) for at in range(program.width)])
    matrix = program.matrix()
    lo, hi = _joined(program.lo), _joined(program.hi)
    for row, name in enumerate(program.names):
        span = slice(matrix.indptr[row], matrix.indptr[row + 1])
        terms = zip(matrix.indices[span], matrix.data[span], strict=True)
        expression = pulp.LpAffineExpression([(x[at], float(value)) for at, value in terms])
        if lo[row] == hi[row]:
            model += (expression == float(hi[row]), f"{name}_{row}")
        else:
            model += (expression <= float(hi[row]), f"{name}_{row}")
    model.solve(
        pulp.COIN_CMD(
            path=pulp.PULP_CBC_CMD.pulp_cbc_path,
            msg=False,
            timeLimit=stop.seconds,
            gapRel=stop.gap,
            threads=stop.threads,
        )
    )
    if model.sol_status == pulp.LpSolutionInfeasible or model.status == pulp.LpStatusInfeasible:
        return Outcome(None, math.inf, math.inf, True)
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Outcome(None, math.inf, -math.inf, False)
    values = np.array([v.value() or 0.0 for v in x])
    objective = float(cost @ values)
    bound = objective if model.sol_status == pulp.LpSolutionOptimal else -math.inf
    return Outcome(values, objective, bound, False)
