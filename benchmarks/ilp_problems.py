"""The compiler's own 0-1 programs, written in the public format: GPT train steps on one, two and three mesh axes.

    python benchmarks/ilp_problems.py [OUT] [--solve] [--layers 1 24] [--meshes 8 2x4] [--batches 8] [--limits 0.95]

Costs are whole picoseconds in the files, memory is bytes. A limit of 0.95 is 95% of the peak of the optimum without
one; finding that optimum is part of the command. With --solve they are solved here, to a gap of 0.1% without a limit
and of 1% under one, and a table goes to benchmarks/ilp_compiler.md.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import ilp
from autosharding.api import parallelize
from autosharding.leaves import shape_of
from autosharding.planner import problem_of
from autosharding.traced import trace
from autosharding.zoo.gpt import GPT, build_gpt
from cost_model import Axis, Cluster, Topology
from ilp.iopddl import write_problem
from ilp.mip import entries
from ilp.presolve import presolve

HIDDEN, HEADS, SEQUENCE = 2048, 32, 1024

BANDWIDTHS = {
    "8": (200e9,),
    "2x4": (25e9, 200e9),
    "8x8": (25e9, 200e9),
    "2x2x2": (25e9, 100e9, 200e9),
    "4x4x4": (12e9, 50e9, 200e9),
}
"""Mesh -> bytes per second of each axis, slow to fast."""

LATENCY = 5e-6
"""Seconds to start a collective, per axis."""

NO_LIMIT = 1 << 60
"""Bytes: a limit that never binds, for the form that programs under a limit have."""

PICOSECONDS = 1e12

FREE_GAP, LIMITED_GAP = 1e-3, 1e-2
"""Relative gaps that are asked for."""

SECONDS = {1: 20.0, 2: 20.0, 3: 60.0}
"""Mesh axes -> processor seconds that one problem may take, of one process."""

TABLE = Path(__file__).parent / "ilp_compiler.md"

HEAD = """# The compiler's own problems

Made by `python benchmarks/ilp_problems.py --solve`: train steps of GPTs of hidden size 2048, named by layers, mesh,
batch and, where there is one, the limit as a share of the free optimum's peak. One process each, 20 processor seconds
at most, 60 on three axes; asked for is a gap of 0.1%, under a limit 1%. Milliseconds; cpu and wall in seconds.

| problem | nodes, table entries | after presolve | cost | bound | gap | cpu | wall | status |
|---|---|---|---|---|---|---|---|---|"""


def topology(mesh: str) -> Topology:
    """The mesh on H100s."""
    device = Cluster.parse("h100:1x8").device
    sizes = [int(n) for n in mesh.split("x")]
    axes = [Axis(name, n, LATENCY, b) for name, n, b in zip("xyz", sizes, BANDWIDTHS[mesh], strict=False)]
    return Topology(device, tuple(axes))


def gpt_problem(layers: int, mesh: str, batch: int, *, limited: bool) -> ilp.Problem:
    """The program of a GPT step; ``limited`` in the form that has memory rows, under no limit yet."""
    name = f"gpt-{layers}-{mesh}-{batch}"
    size = GPT(HIDDEN, layers, HEADS, sequence=SEQUENCE, batch=batch)
    model = build_gpt(name, size, remat=False)
    step = parallelize(model.step)
    arrays, structure, _ = step.take(model.args, {})
    traced = trace(step.fn, structure, [shape_of(x) for x in arrays], name, ())
    limit = NO_LIMIT if limited else None
    problem = problem_of(traced.graph, topology(mesh), state=traced.state, limit=limit)
    return replace(problem, name=name, limit=None)


def limited_to(problem: ilp.Problem, share: float) -> ilp.Problem:
    """The same under ``share`` of the free optimum's peak."""
    free = ilp.solve(problem, gap=FREE_GAP)
    return replace(problem, name=f"{problem.name}-{share}", limit=int(share * problem.peak(free.choice)[0]))


def in_picoseconds(problem: ilp.Problem) -> ilp.Problem:
    """Costs as whole numbers, as the public format has them."""
    made: dict[int, np.ndarray] = {}

    def whole(cost: np.ndarray) -> np.ndarray:
        return made.setdefault(id(cost), np.round(cost * PICOSECONDS))

    edges = tuple(ilp.Edge(e.u, e.v, whole(e.cost)) for e in problem.edges)
    return replace(problem, costs=tuple(map(whole, problem.costs)), edges=edges)


def solved(problem: ilp.Problem, seconds: float) -> str:
    """Solve and return a row of the table."""
    small = presolve(problem).small
    left = "infeasible" if small is None else f"{len(small.costs)}, {entries(small)}"
    spent, began = time.process_time(), time.perf_counter()
    gap = FREE_GAP if problem.limit is None else LIMITED_GAP
    found = ilp.solve(problem, gap=gap, seconds=seconds, timer=time.process_time)
    cpu, wall = time.process_time() - spent, time.perf_counter() - began
    answer = "" if not found.choice else f"{found.objective * 1e3:.4f} | {found.bound * 1e3:.4f} | {found.gap:.3%}"
    if not found.choice:
        why = found.infeasibility
        least = why.smallest_limit if why is not None else None
        answer = f"none fits | least found {least / (problem.limit or 1):.3f} of the limit |" if least else "none | | "
    return (
        f"| {problem.name} | {len(problem.costs)}, {entries(problem)} | {left} | {answer} | {cpu:.1f} | {wall:.1f} | "
        f"{found.status} |"
    )


def main() -> None:
    """Write the files, or the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4, 12, 24])
    parser.add_argument("--meshes", nargs="+", default=["8", "2x4", "8x8", "2x2x2", "4x4x4"], choices=BANDWIDTHS)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--limits", nargs="+", default=["free", "0.95"])
    parser.add_argument("--solve", action="store_true")
    parser.add_argument("--append", action="store_true", help="keep what the table has")
    options = parser.parse_args()
    lines = list[str]((TABLE.read_text() if options.append else HEAD).splitlines())
    for mesh, layers, batch, limit in itertools.product(
        options.meshes, options.layers, options.batches, options.limits
    ):
        problem = gpt_problem(layers, mesh, batch, limited=limit != "free")
        if limit != "free":
            problem = limited_to(problem, float(limit))
        print(problem, flush=True)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            write_problem(in_picoseconds(problem), options.out / f"{problem.name}.json.gz")
        if options.solve:
            lines.append(solved(problem, SECONDS[mesh.count("x") + 1]))
            print(lines[-1], flush=True)
            TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
