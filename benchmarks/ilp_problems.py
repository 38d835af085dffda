"""The compiler's own 0-1 programs, written in the public format: GPT train steps on one, two and three mesh axes.

    python benchmarks/ilp_problems.py OUT [--layers 1 4 24] [--meshes 8 2x4] [--batches 8] [--limits free 0.95]

Costs are whole picoseconds, memory is bytes. A limit of 0.95 is 95% of the peak of the optimum without one; finding
that optimum is part of the command.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

import ilp
from autosharding.api import parallelize, shape_of, trace
from autosharding.planner import problem_of
from autosharding.zoo.gpt import GPT, build_gpt
from cost_model import Axis, Cluster, Topology
from ilp.iopddl import write_problem

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
    free = ilp.solve(problem, gap=1e-4)
    return replace(problem, name=f"{problem.name}-{share}", limit=int(share * problem.peak(free.choice)[0]))


def in_picoseconds(problem: ilp.Problem) -> ilp.Problem:
    """Costs as whole numbers, as the public format has them."""
    made: dict[int, np.ndarray] = {}

    def whole(cost: np.ndarray) -> np.ndarray:
        return made.setdefault(id(cost), np.round(cost * PICOSECONDS))

    edges = tuple(ilp.Edge(e.u, e.v, whole(e.cost)) for e in problem.edges)
    return replace(problem, costs=tuple(map(whole, problem.costs)), edges=edges)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4, 12, 24])
    parser.add_argument("--meshes", nargs="+", default=["8", "2x4", "8x8"], choices=BANDWIDTHS)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--limits", nargs="+", default=["free", "0.95"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for mesh in options.meshes:
        for layers in options.layers:
            for batch in options.batches:
                for limit in options.limits:
                    problem = gpt_problem(layers, mesh, batch, limited=limit != "free")
                    if limit != "free":
                        problem = limited_to(problem, float(limit))
                    problem = in_picoseconds(problem)
                    write_problem(problem, options.out / f"{problem.name}.json.gz")
                    print(problem, flush=True)


if __name__ == "__main__":
    main()
