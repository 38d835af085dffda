"""Input that makes no sense or asks for too much: a paragraph with the nearest choice, and the choice works."""

import re

import numpy as np
import pytest

from stage_dp import (
    Layers,
    NoStages,
    Price,
    StageError,
    Submesh,
    Transfers,
    check_microbatches,
    split_best,
    split_layers,
    submesh_shapes,
)


def small(memory=None, n_layers=4, per_node=4, shapes=None, microbatches=8, fronts=None):
    shapes = submesh_shapes(1, per_node) if shapes is None else shapes
    if fronts is None:
        fronts = {
            (a, b, k): (Price((b - a) / s.devices, state_bytes=100 * (b - a) // s.devices, microbatch_bytes=10),)
            for a in range(n_layers) for b in range(a + 1, n_layers + 1) for k, s in enumerate(shapes)
        }  # fmt: skip
    return Layers(n_layers, 1, per_node, shapes, fronts, microbatches, Transfers.free(n_layers, len(shapes)), memory)


def test_more_stages_than_layers():
    with pytest.raises(NoStages, match=r"4 layers cannot be cut into 7 stages .* the nearest choice is 4"):
        split_layers(small(), n_stages=7)
    with pytest.raises(NoStages, match="the nearest choice is 1"):
        split_layers(small(), n_stages=0)


def test_more_stages_than_devices():
    with pytest.raises(NoStages, match="nearest choice is 2 stages"):
        split_layers(small(per_node=2), n_stages=4)


def test_devices_that_do_not_divide():
    layers = small(per_node=4, shapes=(Submesh(1, 4), Submesh(1, 2)))
    with pytest.raises(NoStages, match=r"3 stages on submeshes of 1x4, 1x2.* Try 2 stages, the nearest number") as e:
        split_layers(layers, n_stages=3)
    assert "may_idle" not in str(e.value)
    assert len(split_layers(layers, n_stages=2).stages) == 2
    odd = Layers(2, 3, 2, (Submesh(2, 2),), {(0, 2, 0): (Price(1.0),)}, 4, Transfers.free(2, 1))
    with pytest.raises(NoStages, match=r"use all 6 devices. Try may_idle=True, with which 4 of 6"):
        split_layers(odd, may_idle=False)
    assert split_layers(odd).idle_devices == 2


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "1f1b-eager", "zero-bubble", "throughput"])
@pytest.mark.parametrize("n_stages", [None, 1, 3])
def test_memory_too_small_names_what_would_do(schedule, n_stages):
    with pytest.raises(NoStages, match="No split fits 20 B per device") as e:
        split_layers(small(20), schedule, n_stages)
    needed = int(re.search(r"\((\d+) bytes\)", str(e.value)).group(1))
    assert split_layers(small(needed), schedule, n_stages).peak_bytes <= needed
    with pytest.raises(NoStages):
        split_layers(small(needed - 2), schedule, n_stages)


def test_memory_too_small_for_so_many_stages():
    with pytest.raises(NoStages, match="1 stages, the nearest number that works"):
        split_layers(small(115), n_stages=2)
    assert len(split_layers(small(115), n_stages=1).stages) == 1


def test_gpipe_is_told_of_1f1b():
    with pytest.raises(NoStages, match="1f1b, which keeps fewer in flight"):
        split_layers(small(170), "gpipe")
    split_layers(small(170), "1f1b")


def test_all_candidates_refused_and_none_given():
    with pytest.raises(NoStages, match=r"8 microbatches.*16 microbatches"):
        split_best([small(5), small(5, microbatches=16)])
    with pytest.raises(StageError, match="Nothing was given"):
        split_best([])
    assert split_best([small(5), small()]).memory is None


def test_unknown_schedule():
    with pytest.raises(StageError, match=r"no schedule 'dualpipe'.* zero-bubble"):
        split_layers(small(), "dualpipe")


@pytest.mark.parametrize(
    ("microbatches", "batch", "nearest"), [(3, 8, "2 and 4"), (7, 5, "5"), (0, 6, "1"), (5, 7, "1 and 7")]
)
def test_microbatches_that_do_not_divide_the_batch(microbatches, batch, nearest):
    with pytest.raises(StageError, match=f"batch of {batch} examples does not divide .*: {nearest}\\."):
        check_microbatches(microbatches, batch)


def test_microbatches_that_divide_the_batch():
    for microbatches in (1, 2, 3, 6):
        check_microbatches(microbatches, 6)
    with pytest.raises(StageError, match="at least one example"):
        check_microbatches(1, 0)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (lambda: small(fronts={}), "price table is empty"),
        (lambda: small(fronts={(0, 5, 0): (Price(1.0),)}), "layers 0 to 4 on submesh number 0"),
        (lambda: small(fronts={(0, 4, 0): (Price(float("inf")),)}), "Seconds are finite"),
        (lambda: small(fronts={(0, 4, 0): (Price(1.0, state_bytes=-1),)}), "none is negative"),
        (lambda: small(microbatches=0), "at least one layer and one microbatch"),
        (lambda: small(shapes=(Submesh(1, 3),), fronts={(0, 4, 0): (Price(1.0),)}), "1x3 is no share of 1x4"),
        (lambda: small(fronts={(0, 2, 0): (Price(1.0),)}), "of those that have prices, cover all layers"),
    ],
)
def test_tables_that_make_no_sense(layers, message):
    with pytest.raises(StageError, match=message):
        split_layers(layers())


def test_transfers_of_the_wrong_shape():
    good = small()
    wrong = Layers(4, 1, 4, good.submeshes, good.fronts, 8, Transfers(np.zeros((4, 3, 3)), np.zeros((5, 3, 3))))
    with pytest.raises(StageError, match=r"Transfers \(forward\) are \(4, 3, 3\)"):
        split_layers(wrong)


def test_a_stage_by_hand_on_a_submesh_without_prices():
    with pytest.raises(StageError, match="Submeshes 2x4 have no prices; those that have: 1x1, 1x2, 1x4"):
        small().only([(0, 4, Submesh(2, 4))])
