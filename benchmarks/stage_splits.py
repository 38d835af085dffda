"""Stages by dynamic programming beside stages of equally many layers and stages of equal work, simulated.

    python benchmarks/stage_splits.py [--model wresnet:4b] [--batch 1536] [--cluster v100:2x8]
        [--microbatches 24,32,64,128] [--output benchmarks/stage_splits.md]

All three are splits of one price table, each stage on the logical mesh that is best for it. The rivals have as many
stages as equal submeshes of the cluster allow, each number by itself: the best of them stands in the table too.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

from autosharding.api import parallelize
from autosharding.leaves import shape_of
from autosharding.pipeline import OnceForSame, PiecePlanner, StageSearch
from autosharding.pipeline.stages import Candidate
from autosharding.target import find_target
from autosharding.traced import trace
from cost_model import Cluster, show_bytes, show_seconds
from stage_dp import NoStages, StageError, Stages, Submesh, cluster_layers, split_layers

LOOSE = 8.0
"""By how much a stage of equal work may miss the mean: as equal as the layers allow is taken."""


HEAD = ("", "| split | layers of each stage | a step takes | times the first | holds |", "|---|---|---|---|---|")


def candidate(model: str, batch: int, cluster: Cluster, microbatches: int) -> Candidate:
    """The price table of a model, and its best stages. Each microbatch takes its own statistics."""
    target = find_target(model, batch=batch)
    step = parallelize(target.step, donate_argnums=0)
    arrays, structure, _ = step.take(target.args, {})
    traced = trace(step.fn, structure, [shape_of(x) for x in arrays], step.name, step.options.donate)
    search = StageSearch(
        traced.graph,
        traced.state,
        cluster,
        OnceForSame(PiecePlanner()),
        None,
        "1f1b",
        None,
        True,
        traced.donated,
        print,
    )
    return search.candidate(microbatches)


def rival(found: Candidate, starts: tuple[int, ...], submesh: Submesh) -> Stages | None:
    """Given stages, on equal submeshes; None where they do not fit."""
    stages = [(a, b, submesh) for a, b in pairwise(starts)]
    try:
        return split_layers(found.table.layers.only(stages), "1f1b", len(stages))
    except (NoStages, StageError):
        return None


def table(found: Candidate) -> list[str]:
    """The rows: how it was split, stages, what a step takes, what the fullest device holds."""
    layers, n = found.table.layers, found.table.layers.n_layers
    work = [sum(found.forward.work[a:b]) for a, b in pairwise(found.table.starts)]
    rows = [_row("dynamic program", found.stages, found.stages)]
    for submesh in layers.submeshes:
        count = layers.devices // submesh.devices
        if not 1 < count <= n:
            continue
        equal = tuple(n * i // count for i in range(count + 1))
        for name, starts in (("equal layers", equal), ("equal work", cluster_layers(work, [0] * n, count, LOOSE))):
            stages = rival(found, starts, submesh)
            what = f"{name}, {count} stages of {submesh}"
            rows.append(_row(what, stages, found.stages) if stages else f"| {what} | | does not fit | | |")
    return rows


def _row(name: str, stages: Stages, best: Stages) -> str:
    seconds, least = stages.simulate().seconds, best.simulate().seconds
    shapes = ", ".join(f"{s.first}-{s.end - 1} on {s.submesh}" for s in stages.stages)
    cells = (name, shapes, show_seconds(seconds), f"{seconds / least:.2f}", show_bytes(stages.peak_bytes))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="wresnet:4b")
    parser.add_argument("--batch", type=int, default=1536)
    parser.add_argument("--cluster", default="v100:2x8")
    parser.add_argument("--microbatches", default="24,32,64,128", help="numbers, separated by commas")
    parser.add_argument("--output", type=Path)
    o = parser.parse_args()
    text = "# Stages by prices\n\n`python benchmarks/stage_splits.py`; see its docstring for what is compared.\n"
    for m in map(int, o.microbatches.split(",")):
        found = candidate(o.model, o.batch, Cluster.parse(o.cluster), m)
        text += (
            "\n".join(["", f"{o.model}, batch {o.batch}, {o.cluster}, {m} microbatches", *HEAD, *table(found)]) + "\n"
        )
    print(text)
    if o.output is not None:
        o.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
