"""Two processes on one problem: each searches in its own way and sees the best that the other found.

The partner is started before there is anything to do, so that it reads the program's modules while this process
presolves. What they tell each other is a board in shared memory, never waited for: the best cost and its choice, and
the best bound. A partner that dies takes nothing with it but its help.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ilp.problem import Problem

__all__ = ["Partner", "Post", "partner"]

HOLD = 1.0
"""Seconds that a board is waited for, should the other process have died while it wrote."""


class Board:
    """What one process has found: it alone writes, the other reads."""

    def __init__(self, context: Any, nodes: int) -> None:
        self.lock = context.Lock()
        self.figures = context.RawArray("d", [math.inf, -math.inf])
        self.choice = context.RawArray("i", max(nodes, 1))

    def write(self, cost: float, bound: float, choice: np.ndarray | None) -> None:
        """Put up a better cost and its choice, or a better bound."""
        if not self.lock.acquire(timeout=HOLD):
            return
        self.figures[1] = max(self.figures[1], bound)
        if choice is not None and cost < self.figures[0]:
            self.figures[0] = cost
            np.frombuffer(self.choice, dtype=np.int32)[: len(choice)] = choice
        self.lock.release()

    def read(self, nodes: int, below: float) -> tuple[float, float, np.ndarray | None]:
        """Cost, bound, and the choice if it costs less than ``below``."""
        if not self.lock.acquire(timeout=HOLD):
            return math.inf, -math.inf, None
        cost, bound = self.figures
        choice = np.frombuffer(self.choice, dtype=np.int32)[:nodes].astype(np.int64) if cost < below else None
        self.lock.release()
        return cost, bound, choice


@dataclass(slots=True)
class Post:
    """One process's view of the pair."""

    mine: Board
    theirs: Board
    nodes: int
    heard: float = field(default=math.inf)
    """The cost of the last choice heard of."""

    def tell(self, cost: float, bound: float, choice: np.ndarray | None) -> None:
        """Let the other process know of a choice, a bound, or both."""
        self.mine.write(cost, bound, choice)

    def hear(self) -> tuple[float, np.ndarray | None]:
        """The other's bound, and its choice if that is a new one."""
        cost, bound, choice = self.theirs.read(self.nodes, self.heard)
        self.heard = min(self.heard, cost)
        return bound, choice


Work = Callable[[Problem, Post, Any], None]
"""What the partner does: a problem, its view of the pair, and whatever else it was sent."""


class Partner:
    """The other process."""

    def __init__(self, nodes: int, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        there, self._connection = context.Pipe(duplex=False)
        self._boards = Board(context, nodes), Board(context, nodes)
        self._process = context.Process(target=_assist, args=(there, *self._boards[::-1], work), daemon=True)
        self._process.start()
        there.close()

    def begin(self, problem: Problem, rest: Any) -> Post:
        """Hand the partner its problem."""
        with suppress(BrokenPipeError):
            self._connection.send((problem, rest))
        return Post(*self._boards, nodes=len(problem.costs))

    def stop(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.terminate()
        self._process.join()


def _assist(connection: Connection, mine: Board, theirs: Board, work: Work) -> None:
    """The partner's main function. Interrupts are the first process's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        problem, rest = connection.recv()
    except EOFError:
        return
    work(problem, Post(mine, theirs, len(problem.costs)), rest)


@contextmanager
def partner(nodes: int, work: Work) -> Iterator[Partner]:
    """A second process as long as the block runs. ``nodes`` are the most that its problem may have."""
    other = Partner(nodes, work)
    try:
        yield other
    finally:
        other.stop()
