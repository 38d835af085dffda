"""Tables too large to enumerate, against a plain program over Pareto sets of (longest period, other terms)."""

from collections import defaultdict

import numpy as np
import pytest

from stage_dp import Layers, NoStages, Price, Transfers, split_layers, submesh_shapes


def table(seed, n_layers=10, nodes=2, per_node=4):
    """Unequal layers, speed-ups below the ideal, two ways for each range, slow links, memory that binds."""
    rng = np.random.default_rng(seed)
    shapes = submesh_shapes(nodes, per_node)
    cost, size = rng.uniform(0.5, 2.0, n_layers), rng.integers(2, 9, n_layers)
    loss = {shape: rng.uniform(1.0, 1.2) * shape.devices**0.3 for shape in shapes}
    fronts = {}
    for a in range(n_layers):
        for b in range(a + 1, n_layers + 1):
            for k, shape in enumerate(shapes):
                t = cost[a:b].sum() * loss[shape] * rng.uniform(0.95, 1.05) / shape.devices
                held = int(size[a:b].sum())
                after = float(rng.random())
                fronts[a, b, k] = (
                    Price(t, 2 * t, after=after, state_bytes=3 * held // shape.devices, microbatch_bytes=held),
                    Price(1.2 * t, 2 * t, after=2 * after, state_bytes=held // shape.devices, microbatch_bytes=held),
                )
    sent = rng.uniform(0.0, 0.2, (2, n_layers + 1, len(shapes), len(shapes)))
    memory = int(rng.integers(80, 500))
    return Layers(n_layers, nodes, per_node, shapes, fronts, int(rng.integers(2, 33)), Transfers(*sent), memory)


def undominated(pairs):
    kept = []
    for longest, value in sorted(set(pairs)):
        if not kept or value < kept[-1][1]:
            kept.append((longest, value))
    return kept


def least_seconds(layers, schedule):
    """The objective of the best split on any number of devices; inf if there is none."""
    n, m = layers.n_layers, layers.microbatches
    now = {(0, 0, 0): [(0.0, 0.0)]}
    best = np.inf
    for follow in range(n - 1, -1, -1):  # `now`: layers done, devices used, last submesh, follow + 1 stages to come
        held = m if schedule == "gpipe" else min(m, follow + 1)
        after = defaultdict(list)
        for (a, d, j), labels in now.items():
            for (first, b, k), front in layers.fronts.items():
                used = d + layers.submeshes[k].devices
                if first != a or used > layers.devices or (b == n) != (follow == 0):
                    continue
                there = layers.transfers.forward[a, j, k] if a else 0.0
                back = layers.transfers.backward[a, j, k] if a else 0.0
                for price in front:
                    if price.bytes(held) > layers.memory:
                        continue
                    t = price.forward + price.backward
                    period = t + there + back if schedule == "1f1b" else max(t, there, back)
                    for longest, value in labels:
                        value = t + max(value + there + back, price.after)
                        after[b, used, k].append((max(longest, period), value))
        now = {state: undominated(labels) for state, labels in after.items()}
        if follow:
            now[0, 0, 0] = [(0.0, 0.0)]
    for labels in now.values():
        best = min([best, *((m - 1) * longest + value for longest, value in labels)])
    return best


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("seed", range(30))
def test_as_the_program_over_pareto_sets(seed, schedule):
    layers = table(seed)
    wanted = least_seconds(layers, schedule)
    if wanted == np.inf:
        with pytest.raises(NoStages):
            split_layers(layers, schedule)
    else:
        assert split_layers(layers, schedule).seconds == pytest.approx(wanted, rel=1e-9)
