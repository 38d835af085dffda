"""Two processes on one problem: each searches in its own way and sees the best that the other found.

The partner is started before there is anything to do, so that it reads the program's modules while this process
presolves. What they tell each other stands on boards in shared memory, never waited for: the best choice and its cost,
the best bound and its prices for memory. A partner that dies takes nothing with it but its help.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ilp.problem import Problem

__all__ = ["Partner", "Post", "partner"]

HOLD = 1.0
"""Seconds that a board is waited for, should the other process have died while it wrote."""


class Board:
    """What one process has found: it alone writes, the other reads."""

    def __init__(self, context: Any, nodes: int, moments: int) -> None:
        self.lock = context.Lock()
        self.figures = context.RawArray("d", [math.inf, -math.inf])
        self.choice = context.RawArray("i", max(nodes, 1))
        self.prices = context.RawArray("d", max(moments, 1))

    def write(self, cost: float, choice: np.ndarray) -> None:
        """Put up a choice, if it costs less than the last."""
        if not self.lock.acquire(timeout=HOLD):
            return
        if cost < self.figures[0]:
            self.figures[0] = cost
            np.frombuffer(self.choice, dtype=np.int32)[: len(choice)] = choice
        self.lock.release()

    def write_bound(self, bound: float, prices: np.ndarray) -> None:
        """Put up a bound and prices for memory that go with it, if it is more than the last."""
        if not self.lock.acquire(timeout=HOLD):
            return
        if bound > self.figures[1]:
            self.figures[1] = bound
            np.frombuffer(self.prices)[: len(prices)] = prices
        self.lock.release()

    def read(self, below: float, above: float) -> tuple[float, float, np.ndarray | None, np.ndarray | None]:
        """Cost and bound; the choice if it costs less than ``below``, prices if the bound is more than ``above``."""
        if not self.lock.acquire(timeout=HOLD):
            return math.inf, -math.inf, None, None
        cost, bound = self.figures
        choice = np.frombuffer(self.choice, dtype=np.int32).astype(np.int64) if cost < below else None
        prices = np.frombuffer(self.prices).copy() if bound > above else None
        self.lock.release()
        return cost, bound, choice, prices


@dataclass(slots=True)
class Post:
    """One process's view of the pair."""

    mine: Board
    theirs: Board
    nodes: int
    moments: int
    cost: float = math.inf
    """What the last choice heard of costs."""
    bound: float = -math.inf
    """The other's bound."""
    prices: np.ndarray | None = None
    """Its prices for memory."""

    def tell(self, cost: float, choice: np.ndarray) -> None:
        """Let the other process know of a choice."""
        self.mine.write(cost, choice)

    def tell_bound(self, bound: float, prices: np.ndarray) -> None:
        """Let it know of a bound, and of prices for memory that go with it."""
        self.mine.write_bound(bound, prices)

    def hear(self) -> np.ndarray | None:
        """Take in the other's bound and prices; return its choice if that is a new one."""
        cost, bound, choice, prices = self.theirs.read(self.cost, self.bound)
        self.cost, self.bound = min(self.cost, cost), max(self.bound, bound)
        if prices is not None:
            self.prices = prices[: self.moments]
        return None if choice is None else choice[: self.nodes]


def _post(mine: Board, theirs: Board, problem: Problem) -> Post:
    return Post(mine, theirs, len(problem.costs), 0 if problem.limit is None else len(problem.times))


Work = Callable[[Problem, Post, Any], None]
"""What the partner does: a problem, its view of the pair, and whatever else it was sent."""


class Partner:
    """The other process."""

    def __init__(self, nodes: int, moments: int, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        there, self._connection = context.Pipe(duplex=False)
        self._boards = Board(context, nodes, moments), Board(context, nodes, moments)
        self._process = context.Process(target=_assist, args=(there, *self._boards[::-1], work), daemon=True)
        self._process.start()
        there.close()

    def begin(self, problem: Problem, rest: Any) -> Post:
        """Hand the partner its problem."""
        with suppress(BrokenPipeError):
            self._connection.send((problem, rest))
        return _post(*self._boards, problem)

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
    work(problem, _post(mine, theirs, problem), rest)


@contextmanager
def partner(nodes: int, moments: int, work: Work) -> Iterator[Partner]:
    """A second process as long as the block runs; its problem has at most so many nodes and moments."""
    other = Partner(nodes, moments, work)
    try:
        yield other
    finally:
        other.stop()
