"""Small random problems with everything in them: forbidden entries, parallel edges, tight limits, several rows."""

import numpy as np

from ilp import Edge, Memory, Problem


def random_problem(rng: np.random.Generator, nodes: int = 6, most: int = 4) -> Problem:
    n = int(rng.integers(1, nodes + 1))
    sizes = rng.integers(1, most + 1, n)
    forbid = rng.choice([0.0, 0.1, 0.3])

    def prices(shape):
        values = rng.integers(0, 20, shape).astype(float) * 1e-3
        values[rng.random(shape) < forbid] = np.inf
        return values

    costs = tuple(prices(k) for k in sizes)
    edges = []
    if n > 1:
        for _ in range(int(rng.integers(0, 2 * n))):
            u, v = (int(x) for x in rng.choice(n, 2, replace=False))
            edges.append(Edge(u, v, special(rng, prices((sizes[u], sizes[v])))))
    memory = []
    for _ in range(int(rng.integers(0, 2 * n))):
        node = int(rng.integers(n))
        lo = int(rng.integers(0, 8))
        memory.append(Memory(node, lo, lo + int(rng.integers(0, 5)), rng.integers(0, 10, sizes[node])))
    limit = int(rng.integers(0, 12 * n)) if rng.random() < 0.7 else None
    return Problem("random", costs, tuple(edges), tuple(memory), limit)


def special(rng: np.random.Generator, cost: np.ndarray) -> np.ndarray:
    """Now and then an edge of the kinds that presolve looks for."""
    kind = rng.integers(6)
    if kind == 0:
        follow = np.full(cost.shape, np.inf)
        follow[np.arange(len(cost)), rng.integers(0, cost.shape[1], len(cost))] = 0.5
        return follow
    if kind == 1:
        return rng.integers(0, 9, len(cost))[:, None] + rng.integers(0, 9, cost.shape[1])[None, :] * 1.0
    return cost
