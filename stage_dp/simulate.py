"""A pipeline replayed: when each task and each transfer of a schedule runs, given the prices of the stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stage_dp.errors import StageError
from stage_dp.price import Price
from stage_dp.schedule import Kind, Schedule, Task


@dataclass(frozen=True, slots=True)
class Span:
    """A task and the seconds between which it ran."""

    task: Task
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Move:
    """The result of `sender` on its way to the stage of `receiver`, and the seconds between which it went."""

    sender: Task
    receiver: Task
    start: float
    end: float


@dataclass(frozen=True, slots=True, eq=False)
class MemoryCurve:
    """Bytes per device of one stage: `bytes[i]` are held from `seconds[i]` on."""

    seconds: np.ndarray
    bytes: np.ndarray

    @property
    def peak(self) -> int:
        """The most held at any moment."""
        return int(self.bytes.max())


@dataclass(frozen=True)
class Timeline:
    """One step as it runs."""

    schedule: Schedule
    prices: tuple[Price, ...]
    spans: tuple[Span, ...]
    """In the schedule's order."""
    moves: tuple[Move, ...]

    @cached_property
    def seconds(self) -> float:
        """Of the whole step."""
        return max(span.end + self._left[span.task.stage] for span in self.spans)

    @cached_property
    def _left(self) -> tuple[float, ...]:
        """Seconds per stage after the last microbatch that are no task's: where nothing is updated."""
        stages = range(0 if self.schedule.trains else self.n_stages)
        found = [sum(price.after for price in _pieces(self.schedule, self.prices, stage)) for stage in stages]
        return tuple(found) or (0.0,) * self.n_stages

    @cached_property
    def busy(self) -> tuple[float, ...]:
        """Seconds per stage in which it works, what comes before and after the microbatches included."""
        before = (sum(p.before for p in _pieces(self.schedule, self.prices, i)) for i in range(self.n_stages))
        busy = [a + b for a, b in zip(before, self._left, strict=True)]
        for span in self.spans:
            busy[span.task.stage] += span.end - span.start
        return tuple(busy)

    @property
    def n_stages(self) -> int:
        """Of the schedule."""
        return self.schedule.n_stages

    def bubble(self, devices: Sequence[int] | None = None) -> float:
        """Share of the step that devices stand idle, 0 to 1; `devices` per stage, one each when absent."""
        weights = np.ones(self.n_stages) if devices is None else np.asarray(devices, dtype=float)
        used = float(np.dot(weights, self.busy))
        return 1 - used / (float(weights.sum()) * self.seconds) if self.seconds else 0.0

    @cached_property
    def by_stage(self) -> tuple[tuple[Span, ...], ...]:
        """The tasks of each stage, in the order they ran."""
        lists: list[list[Span]] = [[] for _ in range(self.n_stages)]
        for span in self.spans:
            lists[span.task.stage].append(span)
        return tuple(map(tuple, lists))

    @cached_property
    def memory(self) -> tuple[MemoryCurve, ...]:
        """Per stage, state and activations in flight, and the working memory of the task that runs."""
        return tuple(self._memory(stage) for stage in range(self.n_stages))

    @property
    def peak_bytes(self) -> tuple[int, ...]:
        """Per stage, the most held per device."""
        return tuple(curve.peak for curve in self.memory)

    def _memory(self, stage: int) -> MemoryCurve:
        schedule = self.schedule
        changes = [(0.0, sum(price.state_bytes for price in _pieces(schedule, self.prices, stage)))]
        for span in self.by_stage[stage]:
            if span.task.kind is Kind.UPDATE:
                continue
            price = self.prices[schedule.piece(span.task)]
            changes.append((span.start, price.working_bytes + _taken(price, span.task)))
            changes.append((span.end, -price.working_bytes - _released(schedule, price, span.task)))
        seconds, change = (np.array(column) for column in zip(*changes, strict=True))
        held = np.cumsum(change.astype(np.int64))
        final = np.append(seconds[1:] > seconds[:-1], True)
        return MemoryCurve(seconds[final], held[final])


def peak_of(schedule: Schedule, prices: Sequence[Price]) -> Iterator[int]:
    """Per stage the most held per device, whatever the tasks' seconds; `prices` of each piece."""
    for stage in range(schedule.n_stages):
        yield stage_peak(schedule, stage, _pieces(schedule, prices, stage))


def stage_peak(schedule: Schedule, stage: int, prices: Sequence[Price]) -> int:
    """The most that a device of one stage holds; `prices` of its own pieces."""
    fixed = sum(price.state_bytes for price in prices)
    held, peak = 0, 0
    for task in schedule.lists[stage]:
        price = prices[task.chunk]
        held += _taken(price, task)
        peak = max(peak, held + (price.working_bytes if task.kind is not Kind.UPDATE else 0))
        held -= _released(schedule, price, task)
    return max(fixed + peak, sum(price.outside_bytes for price in prices))


def _taken(price: Price, task: Task) -> int:
    """Bytes that a task takes for its microbatch."""
    return price.microbatch_bytes if task.kind is Kind.FORWARD else 0


def _released(schedule: Schedule, price: Price, task: Task) -> int:
    """Bytes that are let go of after a task."""
    early = price.released_bytes if schedule.splits_backward else 0
    if task.kind is schedule.last_kind:
        return price.microbatch_bytes - early
    return early if task.kind is Kind.BACKWARD else 0


def simulate(
    schedule: Schedule,
    prices: Sequence[Price],
    transfers: Sequence[tuple[float, float]] | None = None,
    overlap: bool = True,
    joint_update: bool = False,
) -> Timeline:
    """Replay `schedule`.

    prices: of each piece, in program order (with one chunk per stage: of each stage). transfers: seconds
    (forward, backward) per microbatch between each piece and the next; nothing when absent, and none between
    pieces of one stage. overlap: transfers run beside tasks, one at a time per boundary and direction; else the
    sending stage stands still meanwhile. joint_update: no stage updates before all have their gradients
    (clipping by the global norm). A task starts when its stage is free and all it needs has come; stages keep
    to their lists.
    """
    sent = [(0.0, 0.0)] * (schedule.n_pieces - 1) if transfers is None else list(transfers)
    if len(prices) != schedule.n_pieces or len(sent) != schedule.n_pieces - 1:
        raise StageError(
            f"{schedule} has {schedule.n_pieces} pieces and {schedule.n_pieces - 1} boundaries between them; "
            f"prices are given for {len(prices)} and transfers for {len(sent)}."
        )
    clock = _Clock(schedule, tuple(prices), sent, overlap)
    tasks = [task for task in schedule.order if task.kind is not Kind.UPDATE]
    spans = {task: clock.run(task) for task in tasks}
    if joint_update:
        clock.free = [max(clock.free)] * schedule.n_stages
    spans |= {task: clock.run(task) for task in schedule.order if task.kind is Kind.UPDATE}
    return Timeline(schedule, tuple(prices), tuple(spans[task] for task in schedule.order), tuple(clock.moves))


class _Clock:
    """When each stage and each link is free again, and when results have come."""

    def __init__(
        self, schedule: Schedule, prices: tuple[Price, ...], sent: list[tuple[float, float]], overlap: bool
    ) -> None:
        self.schedule = schedule
        self.prices = prices
        self.sent = sent
        self.overlap = overlap
        self.free = [
            sum(price.before for price in _pieces(schedule, prices, stage)) for stage in range(schedule.n_stages)
        ]
        self.link_free: dict[tuple[int, Kind], float] = {}
        self.came: dict[Task, float] = {}
        self.moves: list[Move] = []

    def run(self, task: Task) -> Span:
        """Run a task as early as can be, and send its result."""
        start = max(self.free[task.stage], self.came.pop(task, 0.0))
        span = Span(task, start, start + self._duration(task))
        self.free[task.stage] = span.end
        receiver = self.schedule.feeds(task)
        if receiver is not None:
            self._send(span, receiver)
        return span

    def _duration(self, task: Task) -> float:
        if task.kind is Kind.UPDATE:
            return sum(price.after for price in _pieces(self.schedule, self.prices, task.stage))
        price = self.prices[self.schedule.piece(task)]
        match task.kind:
            case Kind.FORWARD:
                return price.forward
            case Kind.WEIGHT:
                return price.weight
            case _:
                return price.backward + (0.0 if self.schedule.splits_backward else price.weight)

    def _send(self, span: Span, receiver: Task) -> None:
        boundary = min(self.schedule.piece(span.task), self.schedule.piece(receiver))
        seconds = self.sent[boundary][span.task.kind is Kind.BACKWARD]
        if span.task.stage == receiver.stage or not seconds:
            self.came[receiver] = span.end
            return
        link = (boundary, span.task.kind)
        start = max(span.end, self.link_free.get(link, 0.0))
        end = self.link_free[link] = self.came[receiver] = start + seconds
        self.moves.append(Move(span.task, receiver, start, end))
        if not self.overlap:
            self.free[span.task.stage] = end


def _pieces(schedule: Schedule, prices: Sequence[Price], stage: int) -> Sequence[Price]:
    """Prices of the pieces that a stage holds."""
    return prices[stage :: schedule.n_stages]
