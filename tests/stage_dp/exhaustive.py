"""The slow and obvious twin: every cut, every submesh, every point of every front, priced by the formula as written."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stage_dp import Layers, Price, Submesh, Transfers


@dataclass(frozen=True)
class Choice:
    seconds: float
    longest: float
    stages: tuple[tuple[int, int, int, int], ...]


def chains(layers: Layers, first: int = 0, devices: int = 0):
    """Every way to run layers from `first` on: (first, end, submesh, point) per stage."""
    if first == layers.n_layers:
        yield ()
        return
    for end in range(first + 1, layers.n_layers + 1):
        for k, shape in enumerate(layers.submeshes):
            used = devices + shape.devices
            if used > layers.devices:
                continue
            for point in range(len(layers.fronts.get((first, end, k), ()))):
                for rest in chains(layers, end, used):
                    yield ((first, end, k, point), *rest)


def held(schedule: str, i: int, n: int, m: int) -> int:
    return {
        "gpipe": m,
        "1f1b": min(m, n - i),
        "1f1b-eager": min(m, 2 * (n - i) - 1),
        "zero-bubble": min(m, n),
    }.get(schedule, 1)


def price_of(layers: Layers, schedule: str, chain) -> tuple[float, float]:
    """(seconds, longest period) of one chain; inf where memory does not hold it."""
    m, n = layers.microbatches, len(chain)
    prices: list[Price] = [layers.fronts[a, b, k][p] for a, b, k, p in chain]
    for i, price in enumerate(prices):
        if layers.memory is not None and price.bytes(held(schedule, i, n, m)) > layers.memory:
            return math.inf, math.inf
    there = [0.0] + [layers.transfers.forward[b[0], a[2], b[2]] for a, b in pairwise(chain)]
    back = [0.0] + [layers.transfers.backward[b[0], a[2], b[2]] for a, b in pairwise(chain)]
    if schedule in ("latency", "throughput"):
        t = [price.forward for price in prices]
        longest = max(max(t), *there)
        return (sum(t) + sum(there) if schedule == "latency" else longest), longest
    t = [price.forward + price.backward + price.weight for price in prices]
    f = list(t)
    if schedule == "zero-bubble" and n > 1:
        f = [t[0]] + [p.forward + p.backward - (min(m, n) - 1) / (n - 1) * p.weight for p in prices[1:]]
    x = [a + b for a, b in zip(there, back, strict=True)]
    if schedule in ("gpipe", "1f1b-eager"):
        longest = max(*t, *there, *back)
    else:
        longest = max(a + b for a, b in zip(t, x, strict=True))
    step = [price.before + price.after for price in prices]
    hidden = max(step[i] - sum(f[:i]) - sum(x[: i + 1]) for i in range(n))
    return (m - 1) * longest + sum(f) + sum(x) + hidden, longest


def best(layers: Layers, schedule: str, n_stages: int | None = None, may_idle: bool = True) -> Choice | None:
    found = None
    for chain in chains(layers):
        used = sum(layers.submeshes[k].devices for _, _, k, _ in chain)
        if (n_stages is not None and len(chain) != n_stages) or (not may_idle and used != layers.devices):
            continue
        if schedule == "zero-bubble" and n_stages is None and len(chain) > layers.microbatches:
            continue
        seconds, longest = price_of(layers, schedule, chain)
        if seconds < math.inf and (found is None or seconds < found.seconds):
            found = Choice(seconds, longest, chain)
    return found


def random_layers(seed: int) -> Layers:
    """A small random table: some entries absent, prices unrelated to one another, memory often tight."""
    rng = np.random.default_rng(seed)
    n_layers = int(rng.integers(1, 6))
    nodes, per_node = [(1, 1), (1, 2), (1, 4), (2, 2), (3, 2), (1, 3), (2, 1)][rng.integers(7)]
    shapes = {Submesh(1, 1), Submesh(1, per_node), Submesh(nodes, per_node)}
    shapes |= {Submesh(2, per_node)} if nodes > 2 else set()
    shapes |= {Submesh(1, 2)} if per_node == 4 and rng.random() < 0.5 else set()
    submeshes = tuple(sorted(shapes))
    grain = rng.choice([0.1, 1e-9])  # coarse seconds make ties

    def seconds(scale: float) -> float:
        return float(np.round(rng.random() * scale / grain) * grain)

    def price() -> Price:
        sizes = (int(rng.integers(0, 50)), int(rng.integers(0, 30)), int(rng.integers(0, 20)))
        halves = (seconds(1), seconds(1.5), seconds(0.5) if rng.random() < 0.7 else 0.0)
        per_step = (seconds(1) if rng.random() < 0.5 else 0.0, seconds(2) if rng.random() < 0.5 else 0.0)
        return Price(*halves, *per_step, *sizes)

    fronts = {}
    for first in range(n_layers):
        for end in range(first + 1, n_layers + 1):
            for k in range(len(submeshes)):
                if rng.random() < 0.9:
                    fronts[first, end, k] = tuple(price() for _ in range(rng.integers(1, 3)))
    shape = (n_layers + 1, len(submeshes), len(submeshes))
    scale = rng.choice([0.0, 0.3, 1.0])
    sent = [np.round(rng.random(shape) * scale / grain) * grain for _ in range(2)]
    memory = None if rng.random() < 0.3 else int(rng.integers(40, 200))
    return Layers(n_layers, nodes, per_node, submeshes, fronts, int(rng.integers(1, 9)), Transfers(*sent), memory)
