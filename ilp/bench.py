"""One problem solved in a process of its own: cost, bound, time, and the most memory the process ever held."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ilp import clock
from ilp.iopddl import read_problem
from ilp.solution import Progress, Solution
from ilp.solve import solve

__all__ = ["Row", "bench_file", "run_file"]


@dataclass(frozen=True, slots=True)
class Row:
    """What a run on one file gave."""

    name: str
    solution: Solution
    seconds: float
    """Wall time from opening the file."""
    cpu: float
    """Seconds of processor time of all the process."""
    first: float
    """Processor seconds until a choice was known; inf if none was."""
    memory: int
    """Bytes, the most at any time."""

    def cells(self) -> tuple[str, ...]:
        """The row of a table."""
        s = self.solution
        return (
            self.name,
            f"{s.objective:.15g}",
            f"{s.bound:.12g}",
            f"{s.gap:.3%}",
            f"{self.seconds:.1f}",
            f"{self.cpu:.1f}",
            f"{self.first:.1f}",
            f"{self.memory >> 20}",
            s.status,
        )


def bench_file(file: Path, seconds: float, gap: float) -> Row:
    """Read and solve one file in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(run_file, file, seconds, gap).result()


def run_file(file: Path, seconds: float, gap: float) -> Row:
    """Read and solve one file here; ``seconds`` count from opening it."""
    began, spent, opened = time.perf_counter(), time.process_time(), clock.now()
    problem = read_problem(file)
    first: list[float] = []

    def tell(known: Progress) -> None:
        if not first and known.objective < float("inf"):
            first.append(time.process_time() - spent)

    found = solve(problem, seconds=max(0.1, seconds - (clock.now() - opened)), gap=gap, progress=tell)
    cpu = time.process_time() - spent
    if found.choice and not first:
        first.append(cpu)
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    first.append(float("inf"))
    return Row(problem.name, found, time.perf_counter() - began, cpu, first[0], memory)
