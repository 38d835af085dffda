"""Several processes on one machine give the numbers of one device."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.processes import address
from tests.processes.step import init, run, train_step
from tests.processes.worker import STEPS

ROOT = Path(__file__).parents[2]
SECONDS = 300
LATE = 35
"""Seconds; collectives between CPUs give up after 30."""


def ran(processes, devices, ways):
    """What each process found."""
    with address.kept() as place:
        command = [sys.executable, "-m", "tests.processes.worker", place, str(processes)]
        started = [
            subprocess.Popen(
                [*command, str(i), str(devices), json.dumps(ways)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(processes)
        ]
        try:
            said = [p.communicate(timeout=SECONDS) for p in started]
        finally:
            for p in started:
                p.kill()
    assert [p.returncode for p in started] == [0] * processes, said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def check(processes, devices, ways, **how):
    """Options of the step give the numbers of one device; `how` as for the worker's `born`."""
    plain, state = run(jax.jit(train_step), init(jax.random.key(0)), how.get("steps", STEPS))
    again, _ = run(jax.jit(train_step), state, 1)
    for found in ran(processes, devices, [(way, how) for way in ways]):
        for each in found:
            if "error" in each:
                assert each["error"] == "Infeasible"
                assert "does not fit" in each["text"]
            else:
                np.testing.assert_allclose(each["losses"], plain, rtol=1e-5)
                np.testing.assert_allclose(each["again"], again, rtol=1e-5)
                assert all(each.values())


def test_two_processes():
    stages = {"stages": 2, "microbatches": 4}
    check(2, 1, [{}, stages, {**stages, "channel": "permute"}, {"memory": "100B"}])


@pytest.mark.slow
@pytest.mark.parametrize("channel", ["transfer", "permute"])
def test_what_was_donated_is_not_sent(channel):
    options = {"stages": 2, "microbatches": 4, "channel": channel, "donate_argnums": 0}
    check(2, 1, [options], late=0.5)


@pytest.mark.slow
def test_a_process_that_is_late_is_waited_for():
    check(2, 1, [{"stages": 2, "microbatches": 4, "channel": "permute"}], steps=1, late=LATE)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(4, 1), (2, 2)])
@pytest.mark.parametrize("channel", ["transfer", "permute"])
def test_stages_of_several_devices_do_not_stand_still(channel, processes, devices):
    options = {"stages": 2, "microbatches": 4, "channel": channel, "donate_argnums": 0}
    check(processes, devices, [options, {**options, "schedule": "zero-bubble"}], steps=100)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1), (1, 4), (4, 2)])
def test_more_of_them(processes, devices):
    interleaved = {"stages": 2, "microbatches": 2, "schedule": "interleaved", "chunks": 2}
    zero_bubble = {"stages": 4, "microbatches": 8, "schedule": "zero-bubble"}
    fsdp = {"stages": 2, "microbatches": 2, "method": "fsdp"}
    half = {"stages": 2, "microbatches": 4}
    many = {"stages": 4, "microbatches": 4}
    permuted = [{**way, "channel": "permute"} for way in (half, many)]
    check(processes, devices, [{}, {"method": "fsdp"}, many, interleaved, zero_bubble, fsdp, *permuted])
