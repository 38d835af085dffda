"""How long it takes to plan a large model for a large cluster, and what the plan promises beside published ones.

    python benchmarks/plan_time.py [--rows "gpt:39b on v100:8x8"] [--output benchmarks/plan_time.md]

Stages, submeshes, meshes and microbatches are searched; no hardware is touched. The published plan of each row, its
stages, meshes and microbatches as printed, is planned with the same planner (method "megatron" on its mesh: batch over
the first axis, tensors over the last) and simulated at the same prices, whether it fits the memory by our account or
not. Planning takes one process; its time is given by the wall clock and in processor seconds.
With `--output` the rows of what was not run are kept.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import autosharding as asd
from autosharding.api import parallelize
from autosharding.leaves import shape_of
from autosharding.pipeline import OnceForSame, PiecePlanner, PipelinePlan
from autosharding.pipeline.build import Site, cut, forward_of
from autosharding.pipeline.layers import layers_of
from autosharding.pipeline.plan import schedule_of
from autosharding.pipeline.slices import in_slices
from autosharding.target import Target, find_target
from autosharding.traced import Traced, trace
from cost_model import Cluster, show_bytes, show_seconds

NO_LIMIT = 1 << 60
"""Bytes."""


@dataclass(frozen=True, slots=True)
class Published:
    """A plan that others have published.

    who: its source. stages: how many, of equal devices and equally many blocks. mesh: sizes of the logical mesh of each
    stage, (data, tensor). microbatches: in one step.
    """

    who: str
    stages: int
    mesh: tuple[int, int]
    microbatches: int


@dataclass(frozen=True, slots=True)
class Row:
    """A model on a cluster: one line of the table."""

    model: str
    batch: int
    sequence: int
    cluster: str
    published: Published | None
    target: float | None = None
    """Seconds that planning may take."""

    @property
    def name(self) -> str:
        """As `--rows` takes it."""
        return f"{self.model} on {self.cluster}"


def megatron(stages: int, data: int, microbatches: int) -> Published:
    """A row of Megatron-LM's table 1 (SC'21), tensors over the eight devices of a node."""
    return Published("Megatron-LM", stages, (data, 8), microbatches)


ROWS = (
    Row("gpt:39b", 1024, 1024, "v100:8x8", Published("Alpa", 16, (1, 4), 1024), 60),
    Row("gpt:175b", 1536, 2048, "a100:128x8", None, 180),
    Row("gpt:39b", 1536, 2048, "a100:64x8", megatron(2, 32, 12)),
    Row("gpt:76b", 1792, 2048, "a100:128x8", megatron(4, 32, 28)),
    Row("gpt:145b", 2304, 2048, "a100:192x8", megatron(8, 24, 48)),
)


def ours(target: Target, row: Row) -> tuple[Any, float, float]:
    """(the plan, seconds of planning by the clock, those of the processor)."""
    start, used = time.perf_counter(), time.process_time()
    say = lambda text: print(f"  {time.perf_counter() - start:6.1f} s  {text}", flush=True)  # noqa: E731
    plan = asd.plan(target.step, *target.args, cluster=row.cluster, stages="auto", donate_argnums=0, progress=say)
    return plan, time.perf_counter() - start, time.process_time() - used


def theirs(target: Target, row: Row, published: Published) -> PipelinePlan:
    """The published plan, at our prices."""
    traced, cluster = traced_of(target), Cluster.parse(row.cluster)
    sliced = in_slices(traced.graph, traced.state, traced.donated, published.stages)
    forward = forward_of(sliced, published.microbatches)
    starts = layers_of(forward)
    blocks = len(starts) - 2  # the last layer is the head: it goes with the last stage
    first = [starts[blocks * i // published.stages] for i in range(published.stages)]
    group = cluster.group(cluster.n_devices // published.stages)
    sizes = dict(zip(("data", "tensor"), published.mesh, strict=True))
    mesh = group.topology({axis: n for axis, n in sizes.items() if n > 1})
    sites = [Site(i * group.n_devices, mesh) for i in range(published.stages)]
    schedule = schedule_of("1f1b", published.stages, published.microbatches)
    pipeline = cut(sliced, forward, schedule, [*first, starts[-1]], independent=False)
    return pipeline.plan(cluster, sites, OnceForSame(PiecePlanner("megatron")), NO_LIMIT)


def traced_of(target: Target) -> Traced:
    """The step's graph, its state donated."""
    step = parallelize(target.step, donate_argnums=0)
    arrays, structure, _ = step.take(target.args, {})
    return trace(step.fn, structure, [shape_of(x) for x in arrays], step.name, step.options.donate)


def described(plan: Any) -> str:
    """Stages of a plan, in a few words: `8 x (8)` for eight stages of eight devices on one axis."""
    if not isinstance(plan, PipelinePlan):
        return f"one mesh {tuple(plan.mesh.values())}, {plan.microbatches} microbatches"
    meshes = [tuple(p.mesh.values()) for p in plan.plans]
    found: list[tuple[tuple[int, ...], int]] = []
    for m in meshes:
        if found and found[-1][0] == m:
            found[-1] = m, found[-1][1] + 1
        else:
            found.append((m, 1))
    said = " + ".join(f"{n} x ({','.join(map(str, m))})" for m, n in found)
    return f"{said}, {plan.microbatches} microbatches"


def held(plan: Any) -> int:
    """The most bytes that a device holds."""
    return max(plan.peaks) if isinstance(plan, PipelinePlan) else plan.memory.peak


def line(row: Row) -> str:
    """The row of the table."""
    print(row.name, flush=True)
    target = find_target(row.model, batch=row.batch, sequence=row.sequence)
    plan, seconds, used = ours(target, row)
    print(f"  ours: {described(plan)}, {plan.seconds:.2f} s, {show_bytes(held(plan))}", flush=True)
    cells = [
        row.name,
        str(row.batch),
        f"{seconds:.0f} s, {used:.0f} s of processor" + (f" (target {row.target:.0f} s)" if row.target else ""),
    ]
    cells += [described(plan), show_seconds(plan.seconds), show_bytes(held(plan))]
    if row.published is None:
        cells += ["", "", "", ""]
    else:
        other = theirs(target, row, row.published)
        print(
            f"  {row.published.who}: {described(other)}, {other.seconds:.2f} s, {show_bytes(held(other))}", flush=True
        )
        cells += [row.published.who, described(other), show_seconds(other.seconds), show_bytes(held(other))]
    return f"| {' | '.join(cells)} |"


HEAD = """# Planning time, and the plans beside published ones

`python benchmarks/plan_time.py --output benchmarks/plan_time.md`; see its docstring for what is compared.

| model and cluster | batch | planned in | our plan | a step takes | holds | plan of | stages | a step takes | holds |
|---|---|---|---|---|---|---|---|---|---|
"""


def written(path: Path, lines: dict[str, str]) -> None:
    """Put the lines into the file, keeping the rows that were not run and the text below the table."""
    old = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = {r.name: text for r in ROWS for text in old if text.startswith(f"| {r.name} |")}
    below = old[max((i for i, text in enumerate(old) if text.startswith("|")), default=-1) + 1 :] if old else []
    table = [(known | lines)[r.name] for r in ROWS if r.name in known | lines]
    path.write_text("\n".join([HEAD.rstrip("\n"), *table, *below]).rstrip("\n") + "\n", encoding="utf-8")


def main() -> None:
    """Run the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="", help="names of rows, separated by commas; all by default")
    parser.add_argument("--output", type=Path, help="file to write the table to")
    options = parser.parse_args()
    wanted = {r.strip() for r in options.rows.split(",") if r.strip()}
    for row in ROWS:
        if not wanted or row.name in wanted:
            text = line(row)
            print(text, flush=True)
            if options.output is not None:
                written(options.output, {row.name: text})


if __name__ == "__main__":
    main()
