"""The weight of a large graph: seconds and memory to capture, rule and price an unrolled GPT of 96 layers with Adam.

    python benchmarks/graph_weight.py [--model gpt:175b] [--cluster h100:1x8] [--mesh x=2,y=4] [--remat]

Nothing is solved and no array is made. Printed are processor seconds and wall-clock seconds of each part, the ops, the
distinct tables and matrices among them, and the most memory that the process held.
"""

import argparse
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

from autosharding import zoo
from autosharding.leaves import shape_of, take_apart
from autosharding.planner.formulate import Restrictions, formulate
from autosharding.planner.liveness import liveness
from autosharding.planner.tables import Tables
from autosharding.rules import rules_of
from autosharding.strategies import monoids
from autosharding.traced import trace
from cost_model import Cluster


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long the block took."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    print(f"{what:8} {time.process_time() - cpu:7.2f} s of a processor, {time.perf_counter() - wall:7.2f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt:175b")
    parser.add_argument("--cluster", default="h100:1x8")
    parser.add_argument("--mesh", default="x=2,y=4")
    parser.add_argument("--remat", action="store_true")
    options = parser.parse_args()
    mesh = {name: int(n) for name, n in (part.split("=") for part in options.mesh.split(","))}
    topology = Cluster.parse(options.cluster).topology(mesh)
    model = zoo.build(options.model, remat=options.remat)
    arrays, structure, _ = take_apart(model.args, {})
    with timed("all"):
        with timed("capture"):
            traced = trace(model.step, structure, [shape_of(x) for x in arrays], model.name, ())
        with timed("rules"):
            rules = rules_of(traced.graph)
            found = monoids(traced.graph, rules)
        with timed("prices"):
            life = liveness(traced.graph)
            tables = Tables(traced.graph, topology, found, life)
            built = formulate(
                traced.graph,
                rules,
                tables,
                life,
                state=traced.state,
                donated=frozenset(),
                restrictions=Restrictions(),
                limit=None,
            )
    edges = built.problem.edges
    print(f"{len(traced.graph.ops):,} ops, {len({id(t) for t, _ in built.tables.values()}):,} distinct tables")
    print(f"{len(edges):,} edges, {len({id(e.cost) for e in edges}):,} distinct matrices")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB at most")


if __name__ == "__main__":
    main()
