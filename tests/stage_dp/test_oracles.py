"""Published figures of stage splits."""

import numpy as np
import pytest

from stage_dp import Layers, Price, Submesh, Transfers, split_layers

COSTS = {1: 0.0236323010, 2: 0.0417424848, 4: 0.0779628524, 16: 0.2952850583, 64: 1.1645738817, 512: 9.2779362334}
"""Objective by number of microbatches, of Alpa's own dynamic program."""


@pytest.mark.parametrize("microbatches", COSTS)
def test_eight_layers_on_eight_devices_with_random_costs(microbatches):
    cost = np.random.RandomState(42).rand(8, 8, 4, 5)
    shapes = tuple(Submesh(1, n) for n in (1, 2, 4, 8))
    fronts = {
        (first, last + 1, k): tuple(Price(seconds) for seconds in cost[first, last, k].tolist())
        for first in range(8)
        for last in range(first, 8)
        for k in range(4)
    }
    layers = Layers(8, 1, 8, shapes, fronts, microbatches, Transfers.free(8, 4))
    stages = split_layers(layers, may_idle=False)
    assert stages.seconds == pytest.approx(COSTS[microbatches], abs=1e-9)
    assert [(s.first, s.end - 1, s.submesh.devices, s.point) for s in stages.stages] == [(0, 3, 4, 2), (4, 7, 4, 4)]
    assert 2 * stages.longest == pytest.approx(0.0362203680, abs=1e-9)
