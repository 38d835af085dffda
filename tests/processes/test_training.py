"""The GPT example on one, two and four processes: the same losses; when one is killed all end, and say which."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.processes import address

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_multihost.py"
TINY = ("--hidden", "16", "--sequence", "8", "--batch", "8")
SECONDS = 60
"""In which all processes end when one is killed."""

pytestmark = pytest.mark.slow


def command(**options):
    return [sys.executable, EXAMPLE, *TINY, *(str(w) for k, v in options.items() for w in (f"--{k}", v))]


def losses(text):
    return {int(i): float(x) for i, x in re.findall(r"step +(\d+)   loss (\S+) nats", text)}


def trained(checkpoints, **options):
    done = subprocess.run(command(checkpoints=checkpoints, **options), capture_output=True, text=True, check=True)
    return losses(done.stdout)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone"), processes=1, stages=1, steps=6)


@pytest.mark.parametrize(("processes", "devices", "stages"), [(2, 1, 1), (2, 1, 2), (4, 1, 2)])
def test_the_losses_are_those_of_one_process(alone, tmp_path, processes, devices, stages):
    found = trained(tmp_path, processes=processes, devices=devices, stages=stages, steps=6)
    assert found.keys() == alone.keys()
    np.testing.assert_allclose(list(found.values()), list(alone.values()), rtol=1e-5)


@pytest.mark.parametrize(("processes", "killed", "stages"), [(2, 1, 2), (2, 0, 2), (4, 2, 2)])
def test_all_end_where_no_other_program_looks_after_them(tmp_path, processes, killed, stages):
    with address.kept() as place:
        one = command(processes=processes, stages=stages, address=place, checkpoints=tmp_path, steps=100000, every=2)
        logs = [open(tmp_path / f"log{i}", "w+") for i in range(processes)]  # noqa: SIM115
        started = [subprocess.Popen([*one, "--index", str(i)], stdout=f, stderr=f) for i, f in enumerate(logs)]
        try:
            wait_for("step    6", tmp_path / "log0")
            started[killed].send_signal(signal.SIGKILL)
            began = time.monotonic()
            for p in started:
                p.wait(SECONDS)
            assert time.monotonic() - began < SECONDS
        finally:
            for p, f in zip(started, logs, strict=True):
                p.kill()
                f.close()
    for i in set(range(processes)) - {killed}:
        assert started[i].returncode != 0
        assert names(killed, (tmp_path / f"log{i}").read_text()), (tmp_path / f"log{i}").read_text()[-2000:]
    saved = max(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
    before = losses((tmp_path / "log0").read_text())
    after = trained(tmp_path, processes=processes // 2, stages=1, steps=saved + 4)
    assert sorted(after) == [saved + 1, saved + 2, saved + 3]
    both = before.keys() & after.keys()
    np.testing.assert_allclose([after[i] for i in both], [before[i] for i in both], rtol=1e-4)


def names(process, text):
    """Whether an error names a process; of the leader JAX says only that it is, and before that the example who."""
    if process == 0:
        return re.search(r"leader, has died, process 0 has.*leader.*died", text, re.DOTALL) is not None
    return re.search(rf"[Tt]ask[ :]{process}\b", text) is not None


def wait_for(line, path):
    until = time.monotonic() + 4 * SECONDS
    while line not in path.read_text():
        assert time.monotonic() < until
        time.sleep(0.5)
