"""The command line: solve | check | info | bench.

Results go to standard output, progress to standard error. A damaged file ends as a paragraph on standard error and
exit status 1; nothing is written then.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ilp.bench import bench_file
from ilp.check import check as check_files
from ilp.iopddl import read_problem, write_solution
from ilp.problem import ProblemError
from ilp.report import report
from ilp.solution import Progress
from ilp.solve import solve as solve_problem

app = typer.Typer(
    help="Solve, check and look at 0-1 programs in the public IOPDDL format.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

FileArgument = Annotated[Path, typer.Argument(help="a problem, .json or .json.gz")]
SecondsOption = Annotated[float, typer.Option(min=0.1, help="wall time, from opening the file to the answer")]
ProcessesOption = Annotated[int, typer.Option(min=1, max=2, help="the second looks for proofs")]
SeedOption = Annotated[int, typer.Option(min=0, help="of the search's random moves")]
GapOption = Annotated[float, typer.Option(min=0.0, help="relative gap that is good enough")]


@app.command()
def solve(
    file: FileArgument,
    seconds: SecondsOption = 60.0,
    gap: GapOption = 1e-9,
    deterministic: Annotated[
        int | None, typer.Option(min=1, help="stop by this much counted work instead of by seconds")
    ] = None,
    processes: ProcessesOption = 2,
    seed: SeedOption = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write the choice to this file")] = None,
) -> None:
    """Find a cheap choice that fits; the last line says how good it is proved to be."""
    began = time.perf_counter()
    with _progress(f"reading {file}") as tell, _silenced():
        problem = read_problem(file)
        left = None if deterministic else max(0.1, seconds - (time.perf_counter() - began))
        found = solve_problem(
            problem, seconds=left, gap=gap, work=deterministic, progress=tell, seed=seed, processes=processes
        )
    if found.infeasibility is not None:
        print(found.infeasibility.reason)
    if output is not None and found.choice:
        write_solution(found.choice, output)
    print(replace(found, seconds=time.perf_counter() - began))


@app.command()
def check(
    file: FileArgument, solution: Annotated[Path, typer.Argument(help="a choice, a JSON list of strategy indices")]
) -> None:
    """Recompute an answer's cost and memory from the file in exact integers; exit status 1 unless it is valid."""
    verdict = check_files(file, solution)
    print(verdict)
    if verdict.wrong:
        raise typer.Exit(1)


@app.command()
def info(file: FileArgument) -> None:
    """Print a problem's sizes, what presolve leaves of it, and where memory binds."""
    print(report(read_problem(file)))


@app.command()
def bench(
    directory: Annotated[Path, typer.Argument(help="a directory of problems")],
    seconds: SecondsOption = 60.0,
    gap: GapOption = 1e-9,
    processes: ProcessesOption = 2,
    seed: SeedOption = 0,
) -> None:
    """Solve every problem of a directory, each in a process of its own, and print a table."""
    files = sorted([*directory.glob("*.json"), *directory.glob("*.json.gz")])
    if not files:
        raise ProblemError(f"{directory}: no *.json or *.json.gz in it; name a directory of IOPDDL problems.")
    columns = ("instance", "cost", "bound", "gap", "seconds", "cpu", "first", "MiB", "status")
    table = Table(*columns, title=f"{seconds:g} s each")
    with Console(stderr=True).status("") as status, _silenced():
        for file in files:
            status.update(f"solving {file.name}")
            table.add_row(*bench_file(file, seconds, gap, seed, processes).cells())
    Console(width=120 if not sys.stdout.isatty() else None).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; leaves by `SystemExit`."""
    try:
        app(args=arguments, prog_name="python -m ilp")
    except ProblemError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


@contextmanager
def _progress(first: str) -> Iterator[Callable[[Progress], None]]:
    """A spinner on standard error with the best cost, the bound and the gap, where that is a terminal."""
    with Console(stderr=True).status(first) as status:

        def tell(known: Progress) -> None:
            status.update(
                f"{known.phase}: cost {known.objective:.9g}, bound {known.bound:.9g}, gap {known.gap:.2%}, "
                f"{known.seconds:.0f} s"
            )

        yield tell


@contextmanager
def _silenced() -> Iterator[None]:
    """Standard output closed to the solvers' C code, which prints a line of its own now and then."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
