"""A schedule: for each stage the list of tasks it runs, one after another.

Stages hold `n_chunks` pieces of the program each. Piece q = chunk * n_stages + stage is the q-th in program
order: with one chunk the pieces are the stages, with several (interleaved) the program winds through all
stages `n_chunks` times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from stage_dp.errors import ScheduleError


class Kind(StrEnum):
    """What a task does with its microbatch.

    Where a schedule has WEIGHT tasks, BACKWARD makes the cotangents of activations only; elsewhere it makes
    those of the weights too. UPDATE comes once, after the last microbatch: gradients are synchronised and the
    state is renewed.
    """

    FORWARD = "F"
    BACKWARD = "B"
    WEIGHT = "W"
    UPDATE = "U"


@dataclass(frozen=True, slots=True)
class Task:
    """One program, run once, on one stage. An update has chunk 0 and microbatch 0 and is for all of them."""

    kind: Kind
    stage: int
    chunk: int = 0
    microbatch: int = 0

    def __str__(self) -> str:
        place = f"stage {self.stage}" if self.chunk == 0 else f"stage {self.stage} chunk {self.chunk}"
        return f"{self.kind}{'' if self.kind is Kind.UPDATE else self.microbatch} of {place}"


@dataclass(frozen=True)
class Schedule:
    """What every stage runs, in order. `lists[i]` are the tasks of stage i."""

    name: str
    n_stages: int
    n_microbatches: int
    lists: tuple[tuple[Task, ...], ...]
    n_chunks: int = 1

    @property
    def n_pieces(self) -> int:
        """Pieces of the program: stages times chunks."""
        return self.n_stages * self.n_chunks

    @cached_property
    def trains(self) -> bool:
        """Whether there is a backward pass."""
        return any(task.kind is Kind.BACKWARD for task in self.lists[0])

    @cached_property
    def splits_backward(self) -> bool:
        """Whether weight gradients are tasks of their own."""
        return any(task.kind is Kind.WEIGHT for task in self.lists[0])

    @property
    def last_kind(self) -> Kind:
        """The kind of task that is the last to read a microbatch's activations."""
        return Kind.WEIGHT if self.splits_backward else Kind.BACKWARD if self.trains else Kind.FORWARD

    def piece(self, task: Task) -> int:
        """The position in program order of the piece that the task runs."""
        return task.chunk * self.n_stages + task.stage

    def needs(self, task: Task) -> tuple[Task, ...]:
        """Tasks whose results this one reads, other than the state; those of other stages are sent to it."""
        match task.kind:
            case Kind.FORWARD:
                return self._neighbour(task, -1)
            case Kind.BACKWARD:
                forward = Task(Kind.FORWARD, task.stage, task.chunk, task.microbatch)
                return (forward, *self._neighbour(task, 1))
            case Kind.WEIGHT:
                return (Task(Kind.BACKWARD, task.stage, task.chunk, task.microbatch),)
            case Kind.UPDATE:
                return ()

    def feeds(self, task: Task) -> Task | None:
        """The task on the neighbouring piece that reads this one's result, or None at the ends of the program."""
        step = {Kind.FORWARD: 1, Kind.BACKWARD: -1}.get(task.kind)
        return next(iter(self._neighbour(task, step)), None) if step else None

    @cached_property
    def clocks(self) -> tuple[tuple[Task | None, ...], ...]:
        """Per clock what each stage runs (None: it waits) when every task takes one clock.

        Raises `ScheduleError` when the lists wait for one another, with the tasks they are stuck at.
        """
        rows: list[tuple[Task | None, ...]] = []
        done: set[Task] = set()
        at = [0] * self.n_stages
        while any(position < len(tasks) for position, tasks in zip(at, self.lists, strict=True)):
            row = tuple(
                tasks[position] if position < len(tasks) and done.issuperset(self.needs(tasks[position])) else None
                for position, tasks in zip(at, self.lists, strict=True)
            )
            if not any(row):
                raise ScheduleError(self._stuck(at, done))
            done.update(task for task in row if task)
            at = [position + (task is not None) for position, task in zip(at, row, strict=True)]
            rows.append(row)
        return tuple(rows)

    @cached_property
    def order(self) -> tuple[Task, ...]:
        """All tasks in one order in which a single process can start them: by clock, then by stage."""
        return tuple(task for row in self.clocks for task in row if task)

    @cached_property
    def in_flight(self) -> tuple[int, ...]:
        """Per stage the most (chunk, microbatch) pairs whose activations are held at once.

        From the start of the forward task to the end of the last task that reads them.
        """
        return tuple(max(self._held(tasks), default=0) for tasks in self.lists)

    def verify(self) -> None:
        """Raise `ScheduleError` at the first task that is missing, doubled, misplaced, or never starts."""
        if len(self.lists) != self.n_stages:
            raise ScheduleError(f"{self.name}: {self.n_stages} stages, but lists of tasks for {len(self.lists)}.")
        for stage, tasks in enumerate(self.lists):
            self._verify_list(stage, tasks)
        self.clocks  # noqa: B018  raises when the lists wait for one another

    def __str__(self) -> str:
        chunks = f", {self.n_chunks} chunks each" if self.n_chunks > 1 else ""
        return f"{self.name}: {self.n_stages} stages{chunks}, {self.n_microbatches} microbatches"

    def _neighbour(self, task: Task, step: int) -> tuple[Task, ...]:
        piece = self.piece(task) + step
        if not 0 <= piece < self.n_pieces:
            return ()
        chunk, stage = divmod(piece, self.n_stages)
        return (Task(task.kind, stage, chunk, task.microbatch),)

    def _held(self, tasks: tuple[Task, ...]) -> Iterator[int]:
        held = 0
        for task in tasks:
            held += task.kind is Kind.FORWARD
            yield held
            held -= task.kind is self.last_kind

    def _verify_list(self, stage: int, tasks: tuple[Task, ...]) -> None:
        kinds = [Kind.FORWARD, *([Kind.BACKWARD] * self.trains), *([Kind.WEIGHT] * self.splits_backward)]
        wanted = {
            Task(kind, stage, chunk, microbatch)
            for kind in kinds
            for chunk in range(self.n_chunks)
            for microbatch in range(self.n_microbatches)
        }
        update = Task(Kind.UPDATE, stage)
        wanted |= {update} if self.trains else set()
        if len(set(tasks)) != len(tasks):
            doubled = next(task for i, task in enumerate(tasks) if task in tasks[:i])
            raise ScheduleError(f"{self.name}: {doubled} is listed twice; each task runs once.")
        if wanted != set(tasks):
            odd = min(wanted.symmetric_difference(tasks), key=str)
            raise ScheduleError(
                f"{self.name}: {odd} is {'missing' if odd in wanted else 'not one of the tasks'} of stage {stage}. "
                f"A stage runs {', '.join(kinds)} once for each chunk and microbatch"
                f"{', then its update' if self.trains else ''}."
            )
        if self.trains and tasks[-1] != update:
            raise ScheduleError(f"{self.name}: stage {stage} ends with {tasks[-1]}; its update must be the last task.")

    def _stuck(self, at: list[int], done: set[Task]) -> str:
        heads = [tasks[position] for position, tasks in zip(at, self.lists, strict=True) if position < len(tasks)]
        waits = "; ".join(
            f"{task} waits for {next(need for need in self.needs(task) if need not in done)}" for task in heads
        )
        return f"{self.name}: the lists wait for one another for ever: {waits}. Move one of these tasks up its list."
