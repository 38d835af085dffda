"""Layers: the cut against every cut, and programs whose layers are known."""

import itertools

import numpy as np
import pytest

from stage_dp import NoStages, StageError, cluster_layers


def every_cut(cost, sent, n_layers, slack):
    """(bytes, squares) of the best of all cuts within the slack."""
    n, limit = len(cost), (1 + slack) * sum(cost) / n_layers
    best = None
    for inner in itertools.combinations(range(1, n), n_layers - 1):
        sums = [sum(cost[a:b]) for a, b in itertools.pairwise((0, *inner, n))]
        if max(sums) <= limit + 1e-12:
            merit = (sum(sent[i] for i in inner), sum(s * s for s in sums))
            best = merit if best is None else min(best, merit)
    return best


@pytest.mark.parametrize("seed", range(120))
def test_as_every_cut(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    n_layers = int(rng.integers(1, n + 1))
    cost, sent = rng.integers(0, 6, n).tolist(), rng.integers(1, 5, n).tolist()
    slack = float(rng.choice([0.0, 0.2, 0.5, 2.0]))
    wanted = every_cut(cost, sent, n_layers, slack)
    if wanted is None:
        with pytest.raises(NoStages, match="The nearest choice is a slack of") as error:
            cluster_layers(cost, sent, n_layers, slack)
        needed = float(str(error.value).split("slack of ")[1].split(",")[0])
        assert every_cut(cost, sent, n_layers, needed) is not None
        assert every_cut(cost, sent, n_layers, needed - 0.002) is None
        return
    at = cluster_layers(cost, sent, n_layers, slack)
    assert (at[0], at[-1], len(at)) == (0, n, n_layers + 1)
    sums = [sum(cost[a:b]) for a, b in itertools.pairwise(at)]
    assert (sum(sent[i] for i in at[1:-1]), sum(s * s for s in sums)) == pytest.approx(wanted)


def test_blocks_of_a_transformer_are_found():
    """Five ops a block; within it more than the residual stream is live."""
    cost = [1.0, 30.0, 5.0, 60.0, 1.0] * 12
    sent = [100, 300, 400, 700, 200] * 12
    assert cluster_layers(cost, sent, 6) == tuple(range(0, 61, 10))
    assert cluster_layers(cost, sent, 12) == tuple(range(0, 61, 5))


def test_thousands_of_ops():
    rng = np.random.default_rng(0)
    cost, sent = rng.random(4000), rng.integers(1, 1000, 4000)
    at = cluster_layers(cost, sent, 48)
    sums = [cost[a:b].sum() for a, b in itertools.pairwise(at)]
    assert max(sums) <= 1.5 * cost.sum() / 48 * (1 + 1e-9)
    assert np.mean([sent[i] for i in at[1:-1]]) < 60  # the mean of all places is 500


def test_wrong_input():
    with pytest.raises(NoStages, match=r"3 ops cannot be cut into 4 layers.* nearest choice is 3"):
        cluster_layers([1.0] * 3, [1] * 3, 4)
    with pytest.raises(StageError, match="one of each per op"):
        cluster_layers([1.0] * 3, [1] * 2, 2)
    with pytest.raises(StageError, match="slack is -1"):
        cluster_layers([1.0] * 3, [1] * 3, 2, slack=-1)
