"""Every model of `examples` in 2, 4 and 8 microbatches, beside the same step on the whole batch.

    python benchmarks/microbatch.py [--models llama,train_gpt] [--microbatches 2,4,8] [--output FILE]

Each step is cut, planned for eight virtual devices and run on them, beside the uncut one on one device: what it returns
and the gradients that its update reads are compared. Then the memory of the GPT example in four microbatches, beside
that of a quarter of the batch. What is printed is a row for each pair; with `--output` the tables are written to a
file, the rows of what was not run kept.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import autosharding as asd
from autosharding import placing
from autosharding.executor import executable
from autosharding.graph import Graph, Value
from autosharding.leaves import shape_of, take_apart
from autosharding.microbatch.split import best_labels, examples_of, microbatched
from autosharding.microbatch.ways import share
from autosharding.planner import plan_graph
from autosharding.run_graph import Plain
from autosharding.target import Target, find_target
from autosharding.traced import trace
from cost_model import Cluster

EXAMPLES = Path(__file__).parent.parent / "examples"
MICROBATCHES = (2, 4, 8)

MEASURED = "train_gpt"
"""The example whose memory is measured."""

EXACT = 2e-6
"""Relative difference up to which numbers of single precision are equal."""

SINGLE = float(np.finfo(np.float32).eps)

ZERO = 1e-6
"""A gradient whose largest element is a smaller share of the largest of all is zero but for rounding."""

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""How XLA compiles what runs once."""

HEADER = (
    "model",
    "M",
    "batch",
    "share in the loop",
    "results differ",
    "gradients differ",
    "zero gradients",
    "from double precision",
    "refused",
)
MEMORY_HEADER = ("devices", "M", "batch", "MiB", "a piece alone, MiB", "its gradient, MiB", "ratio")
TEXT = """# Microbatches

Made by `python benchmarks/microbatch.py --output benchmarks/microbatch.md`: the models of `examples`, unchanged, in M
microbatches on eight virtual CPU devices, beside the step on the whole batch on one.

- share in the loop: of the floating-point operations on the batch in the forward and backward pass.
- results, gradients differ: of what the step returns besides its state, and of the gradients that the update reads;
  of each array the largest difference over its largest element, and of these the largest. Gradients, not new
  parameters: where a gradient is zero but for rounding, Adam makes a whole step of it. loss_scaling computes in half
  precision, where rounding is of 1e-3; all others in single precision.
- zero gradients: those whose largest element is below 1e-6 of the largest of all (the bias of an attention's keys), and
  the largest difference in them, over the largest of all. They are not counted in the column before.
- from double precision: where the gradients differ by more than 2e-6, how far those of the whole batch and those of the
  microbatches are from the same step in double precision: single precision says no more of them.
- refused: the first op that has to see the whole batch.

"""
MEMORY_TEXT = """
## Memory

The GPT example, by XLA's own account: arguments, outputs and temporaries, less what is aliased, on one device. Beside
it the same step on a batch of one piece, and one gradient: the bytes of the parameters that a device holds in the step
in microbatches. Each is planned for itself; on eight devices the step on one piece may hold less of the parameters.

"""


@dataclass(frozen=True)
class Case:
    """A model's step on the whole batch.

    Attributes:
        name: of the model.
        graph: the step, whose last results are the gradients.
        state: result index -> index of the input whose new state it is.
        leaves: its inputs.
        gradients: how many results are gradients.
    """

    name: str
    graph: Graph
    state: Mapping[int, int]
    leaves: Sequence[Any]
    gradients: int

    @cached_property
    def whole(self) -> list[np.ndarray]:
        """What the step gives on the whole batch."""
        return ran(self.graph, self.leaves)

    @cached_property
    def exact(self) -> list[np.ndarray]:
        """The gradients of the whole batch in double precision."""
        with jax.enable_x64(True):
            return ran(case_of(self.name, cast=_doubled).graph, [_doubled(x) for x in self.leaves])[-self.gradients :]

    @property
    def precision(self) -> float:
        """The unit in the last place of 1 in the narrowest type that it computes in."""
        floats = {
            v.aval.dtype for op in self.graph.ops for v in op.outputs if jnp.issubdtype(v.aval.dtype, jnp.floating)
        }
        return max(float(jnp.finfo(d).eps) for d in floats)


@dataclass(frozen=True)
class Measured:
    """A step in microbatches beside itself on the whole batch.

    Attributes:
        name, microbatches, examples: which.
        share: of the work on the batch that is in the loop.
        results, gradients: the largest relative differences; None where there are none.
        zeros: (how many gradients are zero but for rounding, the largest difference in them over the largest of all).
        precision: of the numbers; see `Case`.
        from_exact: how far the gradients of the whole batch, and those of the microbatches, are from double precision,
            where they differ; else None.
    """

    name: str
    microbatches: int
    examples: int
    share: float
    results: float | None
    gradients: float | None
    zeros: tuple[int, float]
    precision: float
    from_exact: tuple[float, float] | None

    @property
    def agrees(self) -> bool:
        """Whether the numbers are equal but for rounding: or else as near to those of double precision."""
        bound = EXACT * self.precision / SINGLE
        if max(self.results or 0, self.zeros[1]) > bound:
            return False
        return (self.gradients or 0) <= bound or (self.from_exact is not None and _as_near(*self.from_exact))

    def row(self) -> tuple[str, ...]:
        """One line of the table."""
        n, apart = self.zeros
        return (
            self.name,
            str(self.microbatches),
            str(self.examples),
            f"{self.share:.4f}",
            _shown(self.results),
            _shown(self.gradients),
            f"{n}: {apart:.1e}" if n else "none",
            "" if self.from_exact is None else " and ".join(map(_shown, self.from_exact)),
            "",
        )


def _as_near(whole: float, pieces: float) -> bool:
    return pieces <= 2 * whole


def _shown(x: float | None) -> str:
    return "none" if x is None else f"{x:.1e}"


def models() -> tuple[str, ...]:
    """The names of the models, and of the examples that train one of their own."""
    found = [*sorted((EXAMPLES / "models").glob("*.py")), *sorted(EXAMPLES.glob("train_*.py"))]
    return tuple(p.stem for p in found if "\ndef make(" in p.read_text(encoding="utf-8"))


def target_of(name: str) -> Target:
    """A model's step and example arguments."""
    folder = EXAMPLES if name.startswith("train_") else EXAMPLES / "models"
    return find_target(f"{folder / name}.py:make")


def _doubled(x: Any) -> Any:
    return np.asarray(x, np.float64) if getattr(x, "dtype", None) == np.float32 else x


def case_of(name: str, cast: Callable[[Any], Any] = lambda x: x) -> Case:
    """A model's step, captured on its arguments as they are cast."""
    target = target_of(name)
    arrays, structure, _ = take_apart(jax.tree.map(cast, target.make()), {}, scalars_fixed=True)
    traced = trace(target.step, structure, [shape_of(x) for x in arrays], name, ())
    found = gradients(traced.graph)
    names = tuple(f"gradient {v.name}" for v in found)
    graph = replace(
        traced.graph,
        outputs=(*traced.graph.outputs, *found),
        output_names=(*traced.graph.output_names, *names),
    )
    return Case(name, graph, traced.state, arrays, len(found))


def gradients(graph: Graph) -> list[Value]:
    """What the backward pass makes and the update reads."""
    made = [v for op in graph.ops if op.phase == "backward" and not graph.depths[op.index] for v in op.outputs]
    return [v for v in made if any(op.phase == "update" for op, _ in graph.readers[v.id])]


def ran(graph: Graph, leaves: Sequence[Any]) -> list[np.ndarray]:
    """What a graph gives on one device; of keys their words."""
    return _words(jax.jit(Plain(graph).outputs, compiler_options=FAST)([*leaves, *graph.constants]))


def spread(graph: Graph, state: Mapping[int, int], leaves: Sequence[Any]) -> list[np.ndarray]:
    """What a graph gives on all devices, as it is planned for them; of keys their words."""
    devices = jax.devices()
    plan = plan_graph(graph, Cluster.parse(f"cpu:{len(devices)}"), state=state)
    mesh = placing.mesh_over(plan.mesh, devices, None)
    inputs = zip([*leaves, *graph.constants], plan.inputs, strict=True)
    placed = [placing.brought(x, placing.sharding(mesh, i.spec)) for x, i in inputs]
    return _words(jax.jit(executable(graph, plan, mesh), compiler_options=FAST)(*placed))


def _words(results: Sequence[Any]) -> list[np.ndarray]:
    return [np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in results]


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def measure(case: Case, microbatches: int) -> Measured:
    """A case in so many microbatches.

    Raises:
        MicrobatchError: where that cannot be.
    """
    examples = examples_of(case.graph, case.state, microbatches)
    labels = best_labels(case.graph, case.state, examples, microbatches)
    pieces = spread(microbatched(case.graph, case.state, microbatches), case.state, case.leaves)
    pairs = list(zip(case.whole, pieces, strict=True))
    first = len(pairs) - case.gradients
    results = [p for i, p in enumerate(pairs[:first]) if i not in case.state]
    most = max((_largest(x) for x, _ in pairs[first:]), default=0.0)
    zeros = [p for p in pairs[first:] if _largest(p[0]) < ZERO * most]
    others = [i for i, p in enumerate(pairs) if i >= first and _largest(p[0]) >= ZERO * most]
    found = _differ([pairs[i] for i in others])
    from_exact = None
    if found is not None and found > EXACT and case.precision == SINGLE:
        exact = [(case.exact[i - first], *pairs[i]) for i in others]
        from_exact = _differ([(x, a) for x, a, _ in exact]) or 0.0, _differ([(x, b) for x, _, b in exact]) or 0.0
    apart = max(_apart(x, y) for x, y in zeros) / most if zeros else 0.0
    return Measured(
        case.name,
        microbatches,
        examples,
        share(labels),
        _differ(results),
        found,
        (len(zeros), apart),
        case.precision,
        from_exact,
    )


def row(case: Case, microbatches: int) -> tuple[str, ...]:
    """One line of the table."""
    try:
        return measure(case, microbatches).row()
    except asd.MicrobatchError as error:
        return (case.name, str(microbatches), *[""] * (len(HEADER) - 3), str(error))


def _differ(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """The largest of the relative differences."""
    return max((_apart(x, y) / (_largest(x) or 1.0) for x, y in pairs), default=None)


def _largest(x: np.ndarray) -> float:
    return float(np.max(np.abs(x.astype(np.float64)), initial=0.0))


def _apart(x: np.ndarray, y: np.ndarray) -> float:
    return _largest(y.astype(np.float64) - x.astype(np.float64))


def memory(devices: int, microbatches: int) -> tuple[int, int, int]:
    """Bytes on one device: of the step in microbatches, of the step on one piece of the batch, of one gradient."""
    target = target_of(MEASURED)
    state, batch = target.make()
    piece = jax.tree.map(lambda x: x[: len(x) // microbatches], batch)
    cut, gradient = held(target, (state, batch), devices, microbatches)
    alone, _ = held(target, (state, piece), devices, 1)
    return cut, alone, gradient


def memory_row(devices: int, microbatches: int) -> tuple[str, ...]:
    """One line of the table of memory."""
    cut, alone, gradient = memory(devices, microbatches)
    mib = [f"{n / 2**20:.2f}" for n in (cut, alone, gradient)]
    examples = len(jax.tree.leaves(target_of(MEASURED).make()[1])[0])
    return (str(devices), str(microbatches), str(examples), *mib, f"{cut / (alone + gradient):.3f}")


def held(target: Target, args: tuple[Any, ...], devices: int, microbatches: int) -> tuple[int, int]:
    """Bytes on one device: (of the compiled step, of the parameters)."""
    step = asd.parallelize(target.step, devices=jax.devices()[:devices], microbatches=microbatches)
    found = step.compile(*args).memory_analysis()
    sizes = (found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes)
    shapes, places = jax.tree.leaves(args[0].params), jax.tree.leaves(step.shardings(*args)[0].params)
    local = [np.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in zip(shapes, places, strict=True)]
    return sum(sizes) - found.alias_size_in_bytes, int(sum(local))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows in markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def kept(path: Path, header: Sequence[str], made: Sequence[tuple[str, ...]], keys: int) -> list[tuple[str, ...]]:
    """The rows made, and those of the file under this header for what was not run."""
    lines = path.read_text().splitlines() if path.exists() else []
    old = [tuple(c.strip() for c in line.strip().strip("|").split("|")) for line in lines if line.startswith("|")]
    rows = {row[:keys]: row for row in old if len(row) == len(header) and row[1].isdecimal()}
    rows |= {row[:keys]: row for row in made}
    return [rows[k] for k in sorted(rows, key=lambda k: (k[0], int(k[1])))]


def write(path: Path, rows: Sequence[tuple[str, ...]], memories: Sequence[tuple[str, ...]]) -> None:
    """Both tables."""
    cases, places = kept(path, HEADER, rows, 2), kept(path, MEMORY_HEADER, memories, 2)
    path.write_text(TEXT + table(HEADER, cases) + MEMORY_TEXT + table(MEMORY_HEADER, places))


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(models()))
    parser.add_argument("--microbatches", default=",".join(map(str, MICROBATCHES)))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", 8)
    rows: list[tuple[str, ...]] = []
    memories: list[tuple[str, ...]] = []
    numbers = [int(m) for m in options.microbatches.split(",")]
    for name in options.models.split(","):
        case = case_of(name)
        for m in numbers:
            rows.append(row(case, m))
            print(" | ".join(rows[-1]), flush=True)
        if name == MEASURED:
            for devices, m in product((1, 8), numbers):
                memories.append(memory_row(devices, m))
                print(" | ".join(memories[-1]), flush=True)
        if options.output:
            write(options.output, rows, memories)


if __name__ == "__main__":
    main()
