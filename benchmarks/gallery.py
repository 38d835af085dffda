"""Every model of `examples/models` under several methods on eight virtual CPU devices, beside one device.

    python benchmarks/gallery.py [--models llama,unet] [--methods auto,fsdp,megatron] [--output benchmarks/gallery.md]

Each step is planned, compiled and run three times, its state fed on: what it gives is compared with `jax.jit` on one
device, its collectives and its memory with the plan's. What is printed is a row for each pair; with `--output` the
table is written to a file, the rows of all pairs that were not run kept.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

import autosharding as asd
from autosharding.planner.liveness import liveness
from autosharding.planner.tables import Tables
from autosharding.rules import rules_of
from autosharding.strategies import monoids
from autosharding.target import Target, find_target
from autosharding.verify import Difference, Verification, verify

MODELS = Path(__file__).parent.parent / "examples" / "models"
METHODS = ("auto", "fsdp", "megatron")
MESHES = {"megatron": {"x": 2, "y": 4}}
"""Where the mesh is not left to the planner: batch over two, tensors over four."""

STEPS = 3
NOISY = 1e-5
"""Relative change of an array under changed inputs from which on it is said to be one of rounding."""

SMALL = 256
"""Elements below which an op that no rule can split is not worth a word."""

HEADER = (
    "model",
    "method",
    "mesh",
    "planned ms",
    "gap",
    "memory plan/XLA",
    "collectives",
    "results differ",
    "state differs",
    "arrays of rounding",
    "planning s",
    "without a rule",
    "held whole",
)
TEXT = """# The gallery

Made by `python benchmarks/gallery.py --output benchmarks/gallery.md`: the models of `examples/models` on eight virtual
CPU devices, on the mesh that the planner chose (megatron: two for the batch, four for tensors).

- planned ms: of one step, by the prices of the virtual devices; gap: to the proved bound.
- memory: the plan's peak over XLA's own account. On a CPU, JAX turns `ragged_dot` into a dense product with all groups,
  so that XLA holds several times what the plan counts.
- collectives: whether the compiled program's are the plan's, in bytes by kind and axes; "none" where there are none.
- results, state differ: the loss (or what else is returned) and the new state after three steps from those of `jax.jit`
  on one device: of each array the norm of the difference over the norm of the array, the largest. Not counted are the
  arrays of rounding: those that change by more than 1e-5 on one device when the inputs are changed in the seventh digit
  (where a gradient is zero but for rounding, as that of a key's bias, Adam makes much of it); the next column says how
  many there are, by how much they differ, and by how much they do on one device. "NOT EQUAL" where any array differs by
  more than 1e-4 and more than ten times rounding.
- planning s: processor seconds of capture, rules, prices and solve.
- without a rule: ops that run replicated because nothing is known of them; held whole: ops of at least 256 elements
  that have a rule by which nothing can be split, how often they stand in the program, and the share of the planned
  computation they take. All other ops that are not split could be: the plan found it cheaper so.

"""


@dataclass(frozen=True)
class Measured:
    """One model under one method.

    Attributes:
        name, method: which.
        plan: what ran.
        found: the program beside the plan, the numbers beside one device's.
        seconds: processor seconds of capture, rules, prices and solve.
        whole: primitive -> how many ops no rule can split.
        whole_share: their share of the planned computation.
    """

    name: str
    method: str
    plan: asd.Plan
    found: Verification
    seconds: float
    whole: Counter[str]
    whole_share: float

    def row(self) -> tuple[str, ...]:
        """One line of the table."""
        results, state = self.found.numbers[: self.found.outputs], self.found.numbers[self.found.outputs :]
        rounding = [n for n in state if n.noise > NOISY]
        equal = all(n.agrees for n in self.found.numbers)
        collectives = "differ" if not self.found.comparison.agrees else "equal" if self.plan.collectives else "none"
        whole = ", ".join(f"{n} {name}" for name, n in sorted(self.whole.items()))
        return (
            self.name,
            self.method,
            " x ".join(map(str, self.plan.mesh.values())),
            f"{1e3 * self.plan.seconds:.3g}",
            f"{self.plan.gap:.2%}",
            f"{self.found.comparison.memory_ratio or 0:.3f}",
            collectives,
            f"{_largest(results):.1e}",
            f"{_largest([n for n in state if n not in rounding]):.1e}" + ("" if equal else " NOT EQUAL"),
            _rounding(rounding, len(state)),
            f"{self.seconds:.1f}",
            ", ".join(sorted({u.where.split()[0] for u in self.plan.unresolved})) or "none",
            f"{whole} ({self.whole_share:.1%})" if whole else "none",
        )


def _largest(numbers: Sequence[Difference]) -> float:
    return max((n.difference for n in numbers), default=0.0)


def _rounding(arrays: Sequence[Difference], n: int) -> str:
    if not arrays:
        return "none"
    return f"{len(arrays)} of {n}: {_largest(arrays):.1e}, alone {max(a.noise for a in arrays):.1e}"


def models() -> tuple[str, ...]:
    """The names of the gallery's models."""
    return tuple(sorted(p.stem for p in MODELS.glob("*.py")))


def load(name: str) -> Target:
    """A model's step and example arguments."""
    return find_target(f"{MODELS / name}.py:make")


def measure(name: str, method: str) -> Measured:
    """Plan, compile and run one model under one method."""
    target = load(name)
    step = asd.parallelize(target.step, method=method, mesh=MESHES.get(method))
    start = time.process_time()
    plan = step.plan(*target.args)
    seconds = time.process_time() - start
    found = verify(step, target.args, steps=STEPS)
    return Measured(name, method, plan, found, seconds, *held_whole(step.graph(*target.args), plan))


def held_whole(graph: asd.Graph, plan: asd.Plan) -> tuple[Counter[str], float]:
    """The ops with a rule by which nothing can be split, by primitive, and their share of the planned computation."""
    rules = rules_of(graph)
    tables = Tables(graph, plan.topology, monoids(graph, rules), liveness(graph))
    count: Counter[str] = Counter()
    seconds = 0.0
    for op, rule, step in zip(graph.ops, rules, plan.steps, strict=True):
        size = max((v.size for v in (*op.values, *op.outputs)), default=0)
        if rule is None or not rule.known or size < SMALL or op.is_free:
            continue
        if all(not s.factors for s in tables.table(op, rule).strategies):
            count[op.name] += 1
            seconds += step.seconds * step.times
    return count, seconds / plan.compute_seconds if seconds else 0.0


def table(rows: list[tuple[str, ...]]) -> str:
    """The rows in markdown."""
    lines = [HEADER, ("---",) * len(HEADER), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def kept(path: Path, made: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The rows made, and those of the file for all other pairs of models that are there."""
    lines = path.read_text().splitlines() if path.exists() else []
    old = [tuple(c.strip() for c in line.strip("|").split("|")) for line in lines if line.startswith("|")]
    rows = {row[:2]: row for row in old[2:] if len(row) == len(HEADER) and row[0] in models()}
    return sorted((rows | {row[:2]: row for row in made}).values())


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(models()))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", 8)
    rows: list[tuple[str, ...]] = []
    for name in options.models.split(","):
        for method in options.methods.split(","):
            rows.append(measure(name, method).row())
            print(" | ".join(rows[-1]), flush=True)
            if options.output:
                options.output.write_text(TEXT + table(kept(options.output, rows)))


if __name__ == "__main__":
    main()
