"""A second opinion on an answer: straight from the file's own lists, in exact integers, by nothing else of this room.

Only reading JSON is shared with the solver; no array, no float sum, no `Problem` stands in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ilp.iopddl import FORBIDDEN, load_json, read_solution
from ilp.problem import ProblemError

__all__ = ["Verdict", "check"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer costs and holds, and what is wrong with it."""

    cost: Fraction
    """In the file's unit; exact."""
    peak: int
    """Bytes."""
    peak_at: int
    limit: int | None
    wrong: tuple[str, ...]
    """Sentences; empty when the answer is valid."""

    def __str__(self) -> str:
        """What is wrong, then one line."""
        limit = "none" if self.limit is None else str(self.limit)
        cost = str(self.cost) if self.cost.denominator == 1 else f"{float(self.cost):.15g}"
        status = "infeasible" if self.wrong else "feasible"
        line = f"cost={cost} peak={self.peak} at={self.peak_at} limit={limit} status={status}"
        return "\n".join([*self.wrong, line])


def check(problem: str | Path, solution: str | Path) -> Verdict:
    """Check the answer in one file against the problem in another."""
    choice = read_solution(solution)
    try:
        return _verdict(load_json(Path(problem))["problem"], choice)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ProblemError(
            f"{problem} and {solution} do not go together: {error!r}. A solution is a list of one strategy index per "
            "node of the problem."
        ) from error


def _verdict(body: dict[str, Any], choice: tuple[int, ...]) -> Verdict:
    costs = body["nodes"]["costs"]
    if len(choice) != len(costs):
        raise ValueError(f"{len(choice)} strategies for {len(costs)} nodes")
    for node, k in enumerate(choice):
        if not 0 <= k < len(costs[node]):
            raise ValueError(f"node {node} has no strategy {k}")
    total, wrong = Fraction(0), []
    for node, k in enumerate(choice):
        total += Fraction(costs[node][k])
        if costs[node][k] >= FORBIDDEN:
            wrong.append(f"Node {node} takes strategy {k}, which is forbidden.")
    edges = body.get("edges", {"nodes": [], "costs": []})
    for (u, v), matrix in zip(edges["nodes"], edges["costs"], strict=True):
        cost = matrix[choice[u] * len(costs[v]) + choice[v]]
        total += Fraction(cost)
        if cost >= FORBIDDEN:
            wrong.append(f"Nodes {u} and {v} take strategies {choice[u]} and {choice[v]}, a forbidden pair.")
    peak, at = _peak(body["nodes"], choice)
    limit = body.get("usage_limit")
    if limit is not None and peak > limit:
        wrong.append(f"At time {at} {peak} bytes are held, {peak - limit} more than the limit of {limit}.")
    return Verdict(total, peak, at, limit, tuple(wrong))


def _peak(nodes: dict[str, Any], choice: tuple[int, ...]) -> tuple[int, int]:
    """The most bytes held at any time, and the first such time."""
    change: dict[int, int] = {}
    for (lo, hi), usage, k in zip(nodes["intervals"], nodes["usages"], choice, strict=True):
        if lo < hi:
            change[lo] = change.get(lo, 0) + usage[k]
            change[hi] = change.get(hi, 0) - usage[k]
    held = peak = at = 0
    for time in sorted(change):
        held += change[time]
        if held > peak:
            peak, at = held, time
    return peak, at
