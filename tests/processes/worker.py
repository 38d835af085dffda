"""One process of several: runs the step in the ways it is asked for, and prints what it finds as JSON.

python -m tests.processes.worker ADDRESS PROCESSES INDEX DEVICES '[[{"stages": 2, "microbatches": 2}, {"steps": 9}]]'
"""

import json
import sys
import time

import jax

import autosharding as asd
from autosharding.processes import processes_of
from tests.processes.step import batch, init, run, train_step

STEPS = 3


def born(options, steps=STEPS, late=0.0):
    """Losses from a state born on its stages, and whether it stays where it is; the last process is late each time."""
    last = jax.process_index() == jax.process_count() - 1
    late = late if last else 0.0
    time.sleep(late)
    step = asd.parallelize(train_step, **options)
    state = step.init(init, jax.random.key(0), rest=(batch(0),))
    wanted = jax.tree.leaves(step.shardings(state, batch(0))[0])
    found, state = run(step, state, steps, late)
    stays = [x.sharding.is_equivalent_to(s, x.ndim) for x, s in zip(jax.tree.leaves(state), wanted, strict=True)]
    everywhere = asd.spread(state)
    spread = [
        len(processes_of(tuple(x.sharding.device_set))) == jax.process_count() for x in jax.tree.leaves(everywhere)
    ]
    back = asd.bring(everywhere, step.shardings(state, batch(0))[0])
    return {"losses": found, "stays": all(stays), "spread": all(spread), "again": run(step, back, 1)[0]}


def refused(options):
    """The same error on all processes."""
    try:
        asd.parallelize(train_step, **options).plan(jax.eval_shape(init, jax.random.key(0)), batch(0))
    except asd.AutoshardingError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {}


def main():
    address, processes, index, devices, ways = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
    jax.distributed.initialize(address, int(processes), int(index))
    found = [refused(way) if "memory" in way else born(way, **how) for way, how in json.loads(ways)]
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
