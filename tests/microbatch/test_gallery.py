"""Every model of the examples in microbatches on eight devices: as on the whole batch on one, or refused by name."""

import functools
import re

import pytest

import autosharding as asd
from benchmarks import microbatch as gallery

REFUSED = {
    "decode": r"none of its arguments is a batch",
    "ppo": r"none of its arguments is a batch",
    "moe_ragged": r"sort \(moe_ragged.py:\d+ \(experts\)\) needs the batch dim whole",
    "train_resnet": r"\(train_resnet.py:\d+ \(ResNet.__call__\)\) in .*BatchNorm_0 reads a sum over the whole batch",
    "wide_resnet": r"\(wide_resnet.py:\d+ \(Block.__call__\)\) in .*BatchNorm_\d reads a sum over the whole batch",
}
"""Models whose examples are worked on together: what the refusal says."""

QUICK = {("train_equinox", 4), ("loss_scaling", 2), ("moe_ragged", 4), ("wide_resnet", 2)}

SHARE = 0.97
"""Of the work on the batch that is to be in the loop."""

MEMORY = 1.15
"""Times what a piece of the batch alone and one gradient take."""

case_of = functools.lru_cache(1)(gallery.case_of)


@pytest.mark.parametrize(
    ("name", "microbatches"),
    [
        pytest.param(name, m, marks=() if (name, m) in QUICK else pytest.mark.slow)
        for name in gallery.models()
        for m in gallery.MICROBATCHES
    ],
)
def test_gradients_and_results_are_those_of_the_whole_batch(name, microbatches):
    case = case_of(name)
    if name in REFUSED:
        with pytest.raises(asd.MicrobatchError) as error:
            gallery.measure(case, microbatches)
        assert re.search(REFUSED[name], str(error.value))
        return
    found = gallery.measure(case, microbatches)
    assert found.share >= SHARE
    assert found.agrees, found


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_memory_falls_to_that_of_a_piece_and_a_gradient(devices):
    cut, alone, gradient = gallery.memory(devices, 4)
    assert cut <= MEMORY * (alone + gradient)
