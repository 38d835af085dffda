"""Interleaved splits: against every one, and what memory leaves certain."""

from dataclasses import replace

import numpy as np
import pytest
from exhaustive import chains

from stage_dp import Layers, NoStages, Price, Submesh, Transfers, interleaved, simulate, split_best, split_layers


def table(seed, memory):
    """Layers of unequal cost on 1x4 devices, two ways for each range."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 7))
    shapes = (Submesh(1, 1), Submesh(1, 2), Submesh(1, 4))
    cost, size = rng.random((3, n)), rng.integers(1, 5, n)

    def price(a, b, devices):
        seconds = (cost[:, a:b].sum(1) / devices).tolist()
        held = int(size[a:b].sum())
        yield Price(*seconds[:2], after=seconds[2], state_bytes=4 * held // devices, microbatch_bytes=held)
        yield Price(*(1.3 * s for s in seconds[:2]), state_bytes=4 * held // devices, microbatch_bytes=held // 2)

    fronts = {
        (a, b, k): tuple(price(a, b, shape.devices))
        for a in range(n) for b in range(a + 1, n + 1) for k, shape in enumerate(shapes)
    }  # fmt: skip
    sent = rng.random((2, n + 1, 3, 3)) * rng.choice([0.0, 0.3])
    return Layers(n, 1, 4, shapes, fronts, 4, Transfers(*sent), memory)


def every_split(layers):
    """Seconds by the formula, and the most bytes a device holds, of every interleaved split."""
    m = layers.microbatches
    for k, groups in ((0, 4), (1, 2)):
        virtual = replace(
            layers, nodes=1, per_node=layers.n_layers, submeshes=(Submesh(1, 1),),
            fronts={(a, b, 0): front for (a, b, j), front in layers.fronts.items() if j == k},
        )  # fmt: skip
        for chain in chains(virtual):
            chunks, odd = divmod(len(chain), groups)
            if odd or not 2 <= chunks <= 4:
                continue
            prices = [layers.fronts[a, b, k][point] for a, b, _, point in chain]
            there = [0.0] + [layers.transfers.forward[a, k, k] for a, *_ in chain[1:]]
            back = [0.0] + [layers.transfers.backward[a, k, k] for a, *_ in chain[1:]]
            t = [price.forward + price.backward for price in prices]
            x = [a + b for a, b in zip(there, back, strict=True)]
            hidden = max(prices[i].after - sum(t[:i]) - sum(x[: i + 1]) for i in range(len(chain)))
            longest = max(*t, *there, *back)
            seconds = (chunks * (m - groups) + groups - 1) * longest + sum(t) + sum(x) + hidden
            yield seconds, max(simulate(interleaved(groups, m, chunks), prices).peak_bytes)


@pytest.mark.parametrize("seed", range(12))
def test_as_every_split(seed):
    layers = table(seed, None)
    found = split_layers(layers, "interleaved")
    assert found.seconds == pytest.approx(min(seconds for seconds, _ in every_split(layers)))
    assert found.gap == 0


@pytest.mark.parametrize("memory", [40, 50, 60, 80])
def test_under_a_memory_limit_the_best_lies_between_bound_and_found(memory):
    exact = tight = 0
    for seed in range(8):
        layers = table(seed, memory)
        best = min((seconds for seconds, held in every_split(layers) if held <= memory), default=None)
        if best is None:
            with pytest.raises(NoStages, match="Try 1f1b"):
                split_layers(layers, "interleaved")
            continue
        found = split_layers(layers, "interleaved")
        assert found.peak_bytes <= memory
        assert found.bound <= best * (1 + 1e-9)
        assert best <= found.seconds * (1 + 1e-9)
        exact += found.seconds <= best * (1 + 1e-9)
        tight += found.gap > 0
    assert exact >= 4


def test_equal_layers_cost_what_the_simulator_says_and_less_than_1f1b():
    shapes = (Submesh(1, 1),)
    fronts = {(a, b, 0): (Price(1.0 * (b - a), 2.0 * (b - a)),) for a in range(16) for b in range(a + 1, 17)}
    layers = Layers(16, 1, 4, shapes, fronts, 8, Transfers.free(16, 1))
    found = split_best([layers], ("1f1b", "interleaved"))
    assert (found.schedule, found.n_chunks, found.cuts) == ("interleaved", 4, tuple(range(1, 16)))
    assert found.seconds == pytest.approx(found.simulate().seconds) == pytest.approx(8 * 12 + 3 * 3)
    assert [stage.place for stage in found.stages[:5]] == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 0)]


def test_microbatches_that_do_not_come_in_groups():
    layers = replace(table(0, None), microbatches=3)
    with pytest.raises(NoStages, match=r"there can be 2, 4 submeshes; microbatches and layers allow none"):
        split_layers(layers, "interleaved")
