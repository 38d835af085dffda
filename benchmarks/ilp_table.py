"""The solver beside stock solvers on the raw problem, as a table in benchmarks/ilp.md.

    python benchmarks/ilp_table.py DIR [DIR ...] [--seconds 60] [--gap 1e-9] [--cpu] [--seeds 0 1 2] [--stock]

Every file of the directories is solved in processes of its own, two unless --processes says otherwise, one file after
another; with several --seeds the row is the run of the median cost. With --cpu the solver's seconds are processor
seconds of its first process: on a machine that others use too, wall time says little. With --stock PuLP's CBC and
HiGHS (through OR-tools MathOpt) get the textbook form of the same file for as long, where it has at most a million
columns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import ilp
from ilp.bench import bench_file
from ilp.iopddl import read_problem
from ilp.mip import entries
from ilp.presolve import presolve

OUT = Path(__file__).parent / "ilp.md"

MOST_COLUMNS = 1_000_000
"""Columns of the textbook form beyond which stock solvers are not tried: they would not be done reading it."""

HEAD = (
    "| instance | nodes, left | table entries, left | cost | bound | gap | seconds | cpu | first | MiB | status |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def alone(work: Callable[..., Any], *arguments: object) -> Any:
    """Run in a new process, so that time and memory are its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def sizes(file: Path) -> tuple[str, str]:
    """Nodes and table entries, before and after presolve."""
    problem = read_problem(file)
    small = presolve(problem).small
    if small is None:
        return f"{len(problem.costs)}, 0", f"{entries(problem)}, 0"
    return f"{len(problem.costs)}, {len(small.costs)}", f"{entries(problem)}, {entries(small)}"


def stock(file: Path, engine: str, seconds: float) -> str:
    """The textbook form of the raw problem by a stock solver: a row's last cells."""
    problem = read_problem(file)
    columns = entries(problem) + sum(map(len, problem.costs))
    if columns > MOST_COLUMNS:
        return f"- | - | - | - | - | - | - | not tried: {columns:,} columns"
    spent = time.process_time()
    found = ilp.solve_textbook(problem, "cbc" if engine == "CBC" else "highs", seconds=seconds)
    cpu = "-" if engine == "CBC" else f"{time.process_time() - spent:.1f}"
    return (
        f"{found.objective:.15g} | {found.bound:.12g} | {found.gap:.3%} | {found.seconds:.1f} | {cpu} | - | - | "
        f"{found.status}"
    )


def main() -> None:
    """Solve and write the table, after every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--gap", type=float, default=1e-9)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--append", action="store_true", help="keep what the file has and add a table")
    options = parser.parse_args()
    kind = "processor" if options.cpu else "wall"
    timer = time.process_time if options.cpu else time.perf_counter
    lines = [
        f"{options.seconds:g} {kind} seconds, {options.processes} process(es), {len(options.seeds)} seed(s), relative "
        f"gap {options.gap:g}.",
        "",
        *HEAD.split("\n"),
    ]
    before = OUT.read_text().rstrip() + "\n\n" if options.append and OUT.exists() else INTRODUCTION
    for directory in options.directories:
        for file in sorted([*directory.glob("*.json"), *directory.glob("*.json.gz")]):
            nodes, tables = alone(sizes, file)
            runs = [
                bench_file(file, options.seconds, options.gap, seed, options.processes, timer) for seed in options.seeds
            ]
            row = sorted(runs, key=lambda run: run.solution.objective)[len(runs) // 2]
            name, *cells = row.cells()
            lines.append(f"| {name} | {nodes} | {tables} | {' | '.join(cells)} |")
            for engine in ("CBC", "HiGHS") if options.stock else ():
                lines.append(f"| {name} by {engine}, raw | | | {alone(stock, file, engine, options.seconds)} |")
            print(lines[-1], flush=True)
            OUT.write_text(before + "\n".join(lines) + "\n")


INTRODUCTION = """# The solver beside others

Made by `python benchmarks/ilp_table.py`. "left" is what presolve leaves; "first" is the seconds until a first
feasible choice was known, reading the file included; "cpu" the processor seconds of all processes, their start
included; MiB the most memory that they held together. Costs are in the file's own unit.

"""


if __name__ == "__main__":
    main()
