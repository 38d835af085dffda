"""Several processes on one machine give the numbers of one device."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.processes.step import init, run, train_step
from tests.processes.worker import STEPS

ROOT = Path(__file__).parents[2]
SECONDS = 300


def ran(processes, devices, ways):
    """What each process found."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.processes.worker", address, str(processes)]
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


def check(processes, devices, ways):
    plain, _ = run(jax.jit(train_step), init(jax.random.key(0)), STEPS)
    for found in ran(processes, devices, ways):
        for each in found:
            if "error" in each:
                assert each["error"] == "Infeasible"
                assert "does not fit" in each["text"]
            else:
                np.testing.assert_allclose(each["losses"], plain, rtol=1e-5)
                assert all(each.values())


def test_two_processes():
    stages = {"stages": 2, "microbatches": 4}
    check(2, 1, [{}, stages, {**stages, "channel": "permute"}, {"memory": "100B"}])


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1), (1, 4)])
def test_more_of_them(processes, devices):
    interleaved = {"stages": 2, "microbatches": 2, "schedule": "interleaved", "chunks": 2}
    zero_bubble = {"stages": 4, "microbatches": 8, "schedule": "zero-bubble"}
    fsdp = {"stages": 2, "microbatches": 2, "method": "fsdp"}
    permute = {"stages": 2, "microbatches": 4, "channel": "permute"}
    many = {"stages": 4, "microbatches": 4}
    check(processes, devices, [{}, {"method": "fsdp"}, many, interleaved, zero_bubble, fsdp, permute])
