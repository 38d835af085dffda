"""The dynamic program against its exhaustive twin, and its properties where the twin cannot go."""

import numpy as np
import pytest
from exhaustive import best, price_of, random_layers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stage_dp import Layers, NoStages, Price, Submesh, Transfers, split_best, split_layers, submesh_shapes

ALL = ("gpipe", "1f1b", "1f1b-eager", "zero-bubble", "latency", "throughput")


def check(layers, schedule, n_stages, may_idle):
    wanted = best(layers, schedule, n_stages, may_idle)
    if wanted is None:
        with pytest.raises(NoStages):
            split_layers(layers, schedule, n_stages, may_idle)
        return
    found = split_layers(layers, schedule, n_stages, may_idle)
    assert found.seconds == pytest.approx(wanted.seconds, rel=1e-9)
    assert found.gap == 0
    chain = tuple((s.first, s.end, layers.submeshes.index(s.submesh), s.point) for s in found.stages)
    assert price_of(layers, schedule, chain)[0] == pytest.approx(found.seconds, rel=1e-9)
    used = sum(stage.submesh.devices for stage in found.stages)
    assert found.idle_devices == layers.devices - used
    assert may_idle or not found.idle_devices
    assert n_stages in (None, len(found.stages))
    assert layers.memory is None or found.peak_bytes <= layers.memory


@pytest.mark.parametrize("seed", range(60))
def test_fixed_random_tables_as_exhaustive_search(seed):
    layers = random_layers(seed)
    for i, schedule in enumerate(ALL):
        check(layers, schedule, None if (seed + i) % 3 else 1 + seed % layers.n_layers, bool((seed + i) % 2))


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(10**6, 10**9), st.sampled_from(ALL), st.integers(0, 5), st.booleans())
def test_500_random_tables_as_exhaustive_search(seed, schedule, n_stages, may_idle):
    check(random_layers(seed), schedule, n_stages or None, may_idle)


def uniform(n_layers, nodes, per_node, m, memory=None, act=0, **price):
    """Equal layers that any submesh runs without loss."""
    shapes = submesh_shapes(nodes, per_node)
    fronts = {
        (a, b, k): (Price(**{name: s * (b - a) / shape.devices for name, s in price.items()},
                          microbatch_bytes=act * (b - a)),)
        for a in range(n_layers) for b in range(a + 1, n_layers + 1) for k, shape in enumerate(shapes)
    }  # fmt: skip
    return Layers(n_layers, nodes, per_node, shapes, fronts, m, Transfers.free(n_layers, len(shapes)), memory)


def test_work_that_divides_without_loss_runs_on_all_devices_as_one_stage():
    stages = split_layers(uniform(8, 2, 4, 16, forward=1.0, backward=2.0))
    assert len(stages.stages) == 1
    assert stages.seconds == pytest.approx(16 * 3 * 8 / 8)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "1f1b-eager", "zero-bubble"])
@pytest.mark.parametrize("n_stages", [1, 2, 4])
def test_equal_stages_cost_what_the_simulator_says(schedule, n_stages):
    layers = uniform(8, 1, 4, 8, forward=1.0, backward=1.0, weight=0.5)
    stages = split_layers(layers, schedule, n_stages)
    assert {stage.end - stage.first for stage in stages.stages} == {8 // n_stages}
    assert stages.simulate().seconds == pytest.approx(stages.seconds)


def test_memory_in_flight_moves_layers_to_late_stages():
    tight = uniform(12, 1, 4, 8, memory=12, act=1, forward=1.0, backward=2.0)
    sizes = [stage.end - stage.first for stage in split_layers(tight, n_stages=4).stages]
    assert sizes == sorted(sizes)
    assert sizes[0] <= 3
    assert split_layers(tight, n_stages=4).peak_bytes <= 12


def test_the_optimum_never_falls_when_memory_falls():
    seconds = []
    for memory in range(60, 10, -2):
        try:
            seconds.append(split_layers(uniform(10, 2, 2, 6, memory=memory, act=3, forward=1.0, after=40.0)).seconds)
        except NoStages:
            seconds.append(np.inf)
    assert seconds == sorted(seconds)
    assert len(set(seconds)) > 2


def test_work_per_step_hides_in_the_fill_of_later_stages():
    def two(before, after):
        prices = {(0, 1, 0): (Price(1.0, 2.0, after=before),), (1, 2, 0): (Price(1.0, 2.0, after=after),)}
        return Layers(2, 1, 2, (Submesh(1, 1),), prices, 4, Transfers.free(2, 1))

    assert split_layers(two(0.0, 3.0)).seconds == split_layers(two(0.0, 0.0)).seconds
    assert split_layers(two(3.0, 0.0)).seconds == split_layers(two(0.0, 0.0)).seconds + 3.0


def test_a_split_made_by_hand_is_priced_and_is_no_better():
    priced = 0
    for seed in range(60):
        layers = random_layers(seed)
        for cut in range(1, layers.n_layers):
            stages = [(0, cut, layers.submeshes[0]), (cut, layers.n_layers, layers.submeshes[0])]
            try:
                by_hand = split_layers(layers.only(stages))
            except NoStages:
                continue
            priced += 1
            chain = tuple((s.first, s.end, 0, s.point) for s in by_hand.stages)
            assert [(s.first, s.end, s.submesh) for s in by_hand.stages] == stages
            assert by_hand.seconds == pytest.approx(price_of(layers, "1f1b", chain)[0])
            assert by_hand.seconds >= split_layers(layers).seconds * (1 - 1e-9)
    assert priced > 20


def test_slow_links_are_not_cut():
    layers = uniform(6, 1, 2, 8, forward=1.0, backward=2.0)
    shapes = layers.submeshes
    transfers = Transfers.of(6, shapes, lambda cut, sender, receiver: (0.0, 0.0) if cut == 2 else (3.0, 3.0))
    priced = Layers(6, 1, 2, shapes, layers.fronts, 8, transfers)
    assert split_layers(priced, n_stages=2).cuts == (2,)
    assert split_layers(layers, n_stages=2).cuts == (3,)


def test_microbatches_and_schedule_are_chosen_too():
    few, many = uniform(8, 1, 4, 2, forward=4.0, backward=8.0), uniform(8, 1, 4, 8, forward=1.0, backward=2.0)
    stages = split_best([few, many], ("gpipe", "1f1b"), n_stages=4)
    assert stages.microbatches == 8
    assert stages.seconds == min(split_layers(one, "1f1b", 4).seconds for one in (few, many))


def test_idle_devices_are_reported_or_refused():
    layers = uniform(1, 1, 3, 4, forward=1.0)
    only_one = Layers(1, 1, 3, (Submesh(1, 1),), {(0, 1, 0): (Price(1.0),)}, 4, Transfers.free(1, 1))
    assert split_layers(layers).idle_devices == 0
    assert split_layers(only_one).idle_devices == 2
    with pytest.raises(NoStages, match="may_idle=True, with which 1 of 3 devices"):
        split_layers(only_one, may_idle=False)


def test_96_layers_on_1024_devices():
    rng = np.random.default_rng(0)
    sums = np.concatenate([[0.0], np.cumsum(rng.uniform(0.9, 1.1, 96))])
    shapes = submesh_shapes(128, 8)
    loss = np.array([1 + 0.05 * np.log2(shape.devices) for shape in shapes])
    fronts = {}
    for a in range(96):
        for b in range(a + 1, 97):
            for k, shape in enumerate(shapes):
                t = (sums[b] - sums[a]) * loss[k] / shape.devices
                fronts[a, b, k] = (Price(t, 2 * t, state_bytes=(b - a) * 100 // shape.devices, microbatch_bytes=b - a),)
    layers = Layers(96, 128, 8, shapes, fronts, 256, Transfers.free(96, len(shapes)), memory=400)
    stages = split_layers(layers)
    assert stages.idle_devices == 0
    assert stages.peak_bytes <= 400
    by_hand = []
    for n in (1, 2, 4, 8, 16, 32):
        k = [shape.devices for shape in shapes].index(1024 // n)
        chain = [(i * 96 // n, (i + 1) * 96 // n, k, 0) for i in range(n)]
        by_hand.append(price_of(layers, "1f1b", chain)[0])
    assert 3 * sums[-1] / 1024 * 256 < stages.seconds < min(by_hand)
    assert stages.simulate().seconds == pytest.approx(stages.seconds, rel=1e-2)
