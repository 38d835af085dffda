"""One problem solved in a process of its own: cost, bound, time, and the most memory the process ever held."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ilp.iopddl import read_problem
from ilp.solution import Progress, Solution
from ilp.solve import solve

__all__ = ["Row", "bench_file", "run_file"]

Timer = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Row:
    """What a run on one file gave."""

    name: str
    solution: Solution
    seconds: float
    """Wall time from opening the file."""
    cpu: float
    """Seconds of processor time of all processes, from their start."""
    first: float
    """Seconds from opening the file until a choice was known; inf if none was."""
    memory: int
    """Bytes, the most at any time, of both processes together."""

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


def bench_file(
    file: Path, seconds: float, gap: float, seed: int = 0, processes: int = 2, timer: Timer = time.perf_counter
) -> Row:
    """Read and solve one file in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(run_file, file, seconds, gap, seed, processes, timer).result()


def run_file(file: Path, seconds: float, gap: float, seed: int, processes: int, timer: Timer) -> Row:
    """Read and solve one file here; ``seconds`` count from opening it."""
    began, opened = time.perf_counter(), timer()
    problem = read_problem(file)
    first: list[float] = []

    def tell(known: Progress) -> None:
        if not first and known.objective < float("inf"):
            first.append(timer() - opened)

    left = max(0.1, seconds - (timer() - opened))
    found = solve(problem, seconds=left, gap=gap, progress=tell, seed=seed, processes=processes, timer=timer)
    first.append(timer() - opened if found.choice else float("inf"))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(each.ru_utime + each.ru_stime for each in used)
    unit = 1 if sys.platform == "darwin" else 1024
    memory = sum(each.ru_maxrss for each in used) * unit
    return Row(problem.name, found, time.perf_counter() - began, cpu, first[0], memory)
