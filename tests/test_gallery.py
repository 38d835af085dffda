"""Every model of the gallery: the program is the plan's, the numbers are those of one device, nothing lacks a rule."""

import pytest

from benchmarks import gallery

QUICK = {("decode", "auto"), ("loss_scaling", "fsdp"), ("moe_ragged", "megatron")}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=() if (name, method) in QUICK else pytest.mark.slow)
        for name in gallery.models()
        for method in gallery.METHODS
    ],
)
def test_the_plan_is_what_runs_and_the_numbers_are_those_of_one_device(name, method):
    measured = gallery.measure(name, method)
    assert measured.found.agrees, str(measured.found)
    assert measured.plan.unresolved == ()
