"""Train the GPT of `train_gpt.py` on many processes, on one mesh or as a pipeline, with checkpoints.

On one machine, two processes of one virtual CPU device each, a stage on each:

    python examples/train_multihost.py --processes 2 --stages 2

Every process of a job runs this same program; what is needed is that they find each other.

- Two terminals, or two hosts of any kind:

      python examples/train_multihost.py --stages 2 --address host0:1234 --processes 2 --index 0
      python examples/train_multihost.py --stages 2 --address host0:1234 --processes 2 --index 1

- Slurm (JAX asks Slurm for the rest):

      srun --nodes 2 --ntasks-per-node 1 python examples/train_multihost.py --stages 2 --cluster

- Kubernetes, an Indexed Job of two pods with a headless service `train`, in the pods' command:

      python examples/train_multihost.py --stages 2 --address train-0.train:1234 --processes 2 \
          --index $JOB_COMPLETION_INDEX --checkpoints /shared/checkpoints

When a process dies, all end within a minute and say which: the rest by the heartbeats of `jax.distributed`, on one
machine the program that started them ends them at once. Run again, on as many devices as are left, it goes on from the
last checkpoint, under a new plan.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import orbax.checkpoint as ocp
import train_gpt as gpt

import autosharding as asd

HEARTBEAT_SECONDS = 20
"""After so long without a sign of life a process is taken for dead, and all others end."""

LEADER = "Where JAX says that the coordination service, its leader, has died, process 0 has."
"""Said by the other processes before they start: JAX ends them where they stand, and names all but this one itself."""

POLL_SECONDS, GRACE_SECONDS = 0.2, 5.0
"""How often the starter looks after its processes; how long they have to end when told to."""


# ---- the training, on each process -----------------------------------------------------------------------


def open_checkpoints(path: str) -> ocp.CheckpointManager:
    """Return the checkpoints under a path that all processes see; a checkpoint is there whole or not at all."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    return ocp.CheckpointManager(os.path.abspath(path), options=options)


def save(manager: ocp.CheckpointManager, number: int, state: gpt.State) -> None:
    manager.save(number, args=ocp.args.StandardSave(asd.spread(state)))


def restore(manager: ocp.CheckpointManager, number: int, step: Any) -> gpt.State:
    """Return a saved state as the step wants it, whatever plan, devices and stages it was saved under."""
    shapes = jax.eval_shape(gpt.init, jax.random.key(0))
    shardings = step.shardings(shapes, batch(0))[0]
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return asd.bring(manager.restore(number, args=ocp.args.StandardRestore(asd.spread(like))), shardings)


def batch(number: int) -> dict[str, Any]:
    return gpt.make_batch(gpt.read_text(), number)


def train(step: Any, steps: int, manager: ocp.CheckpointManager, every: int) -> dict[int, float]:
    """Return the losses of the steps from the last checkpoint on, by number of step."""
    last = manager.latest_step()
    if last is None:
        state = step.init(gpt.init, jax.random.key(0), rest=(batch(0),))
    else:
        state = restore(manager, last, step)
        say(f"goes on from the checkpoint of step {last}")
    losses = {}
    for i in range(0 if last is None else last + 1, steps):
        state, loss = step(state, batch(i))
        losses[i] = float(loss)
        say(f"step {i:4d}   loss {losses[i]:.6f} nats per character")
        if i % every == every - 1:
            save(manager, i, state)
    return losses


def say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def work(options: argparse.Namespace) -> None:
    """Be one of the processes."""
    jax.config.update("jax_num_cpu_devices", options.devices)  # has no say where there are accelerators
    if options.cluster:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    elif options.processes > 1:
        jax.distributed.initialize(
            options.address, options.processes, options.index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    if jax.process_index() > 0:
        print(LEADER, file=sys.stderr, flush=True)
    step = asd.parallelize(gpt.train_step, stages=options.stages, microbatches=options.microbatches, donate_argnums=0)
    say(f"{len(jax.devices())} devices of {jax.process_count()} processes, {options.stages} stages")
    train(step, options.steps, open_checkpoints(options.checkpoints), options.every)


# ---- many processes on one machine -----------------------------------------------------------------------


def start(options: argparse.Namespace, arguments: list[str]) -> None:
    """Start all processes, and end them all when one fails.

    Raises:
        SystemExit: naming the process that failed.
    """
    with socket.socket() as s:  # keeps the port, which process 0 shares, from all others
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
        own = [sys.executable, __file__, *arguments, "--address", address, "--checkpoints", options.checkpoints]
        workers = [subprocess.Popen([*own, "--index", str(i)]) for i in range(options.processes)]
        print("processes", *(w.pid for w in workers), flush=True)
        try:
            while not (failed := [i for i, w in enumerate(workers) if w.poll()]):
                if all(w.returncode == 0 for w in workers):
                    return
                time.sleep(POLL_SECONDS)
        finally:
            end(workers)
    fates = "; ".join(f"process {i} of {len(workers)} {fate(workers[i].returncode)}" for i in failed)
    raise SystemExit(
        f"A step needs all processes, and {fates}. The rest were ended. The last checkpoint is intact: the same "
        f"command with --checkpoints {options.checkpoints} and as many processes as there are goes on from it."
    )


def end(workers: list[subprocess.Popen[bytes]]) -> None:
    for w in workers:
        w.terminate()
    until = time.monotonic() + GRACE_SECONDS
    for w in workers:
        try:
            w.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            w.kill()
            w.wait()


def fate(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description="Train a GPT on many processes.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="virtual devices of each process, on CPU")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=5, help="steps from one checkpoint to the next")
    parser.add_argument("--checkpoints", default="", help="a folder; by default a new one")
    parser.add_argument("--address", help="of process 0, host:port, as all processes see it")
    parser.add_argument("--index", type=int, help="of this process; without it all processes are started here")
    parser.add_argument("--cluster", action="store_true", help="JAX finds the other processes (Slurm, Open MPI, TPU)")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--sequence", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args(arguments)
    gpt.HIDDEN, gpt.SEQUENCE, gpt.BATCH = options.hidden, options.sequence, options.batch
    options.checkpoints = options.checkpoints or tempfile.mkdtemp(prefix="checkpoints-")
    if options.cluster or options.index is not None:
        work(options)
    else:
        start(options, arguments)


if __name__ == "__main__":
    main()
