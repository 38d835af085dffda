"""What the parts of a piece take: seconds of each, and bytes per device by an account of its tasks one by one."""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate

from autosharding.pipeline.parts import AFTER, BACKWARD, BEFORE, FORWARD, GIVEN, WEIGHT, Key, Parts, is_backward
from autosharding.plan import AS_MADE
from autosharding.planner.account import Account, Alive
from autosharding.planner.liveness import liveness
from stage_dp import Price


def price_of(parts: Parts, microbatches: int) -> Price:
    """Seconds of each part and bytes per device."""
    return _Tally(parts).price(microbatches)


class _Tally:
    """Alive during one call of `price_of`."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.plan, self.graph = parts, parts.plan, parts.graph

    def price(self, microbatches: int) -> Price:
        """Seconds of each part and bytes per device."""
        seconds = [0.0] * self.parts.n_parts
        for index, part in self.parts.part_of.items():
            step = self.plan.steps[index]
            seconds[part] += (step.seconds + sum(e.seconds for e in step.exchanges)) * step.times
        for k, copy in enumerate(self.plan.copies):
            part = self.parts.home((copy.value, k))
            seconds[part] += sum(m.seconds for m in copy.moves) * copy.times
        kept, state = self.kept_bytes, self.held_bytes
        tasks = [p for p in (FORWARD, BACKWARD, WEIGHT) if p in self.parts.flows]
        others = [p for p in self.parts.flows if p >= AFTER]
        return Price(
            forward=seconds[FORWARD] / microbatches,
            backward=seconds[BACKWARD] / microbatches,
            weight=seconds[WEIGHT] / microbatches,
            before=seconds[BEFORE],
            after=sum(seconds[AFTER:]),
            state_bytes=state,
            microbatch_bytes=kept,
            released_bytes=max(0, kept - self._waiting_bytes),
            working_bytes=max((self._made_bytes(p) + self._passing_bytes(p) for p in tasks), default=0),
            outside_bytes=state + max((self._made_bytes(p) for p in others), default=0),
        )

    @cached_property
    def _waiting_bytes(self) -> int:
        """Bytes per device that a microbatch holds for its weight gradients alone."""
        received = {lane.inside for lane in self.parts.lanes if lane.kind == "received"}
        takes = self.parts.flows[WEIGHT].takes if WEIGHT in self.parts.flows else ()
        return sum(self.parts.bytes(k) for k in takes if k in received or self.parts.home(k) in (FORWARD, BACKWARD))

    def _made_bytes(self, part: int) -> int:
        """The most bytes per device at one time of what a part makes, but for what a microbatch holds from then on.

        What it takes is there as long as it runs; what is written before the loop and runs after it, when it is read.
        A sum is renewed in place: its program is given the old one's buffer.
        """
        kept = {self._alive_as(k) for k in self._kept}
        kept |= {self._alive_as(lane.leaves) for lane in self.parts.lanes if lane.kind == "sum" and lane.leaves}
        change: dict[int, int] = {}
        for a in self._alive:
            if self._part_of(a) == part and (a.op, a.copy) not in kept:
                begin = a.end - 1 if part >= AFTER and 0 <= a.op < self.parts.opening else a.begin
                change[begin] = change.get(begin, 0) + a.bytes
                change[a.end] = change.get(a.end, 0) - a.bytes
        return max(accumulate(change[t] for t in sorted(change)), default=0)

    def _passing_bytes(self, part: int) -> int:
        """Bytes per device of what is received for a part and used up by it."""
        backward = part != FORWARD
        received = [lane for lane in self.parts.lanes if lane.kind == "received" and lane.inside]
        passing = [lane.inside for lane in received if is_backward(self.parts.piece.inputs, lane) == backward]
        return sum(self.parts.bytes(k) for k in passing if k is not None and k not in self._kept)

    @cached_property
    def _alive(self) -> tuple[Alive, ...]:
        """What is in memory, and when, by the account of the plan."""
        plan, graph = self.plan, self.graph
        life = liveness(graph, self.parts.piece.streams)
        made = {v.id: self.parts.spec((v.id, AS_MADE)) for v in graph.values}
        account = Account(graph, life, made, plan.mesh, plan.steps, plan.copies, plan.outputs, self.parts.piece.donated)
        return tuple(account.alive())

    def _part_of(self, a: Alive) -> int:
        if a.copy >= 0:
            return self.parts.home((self.plan.copies[a.copy].value, a.copy)) if self._is_read(a.copy) else GIVEN
        return self.parts.part_of.get(a.op, GIVEN)

    def _is_read(self, copy: int) -> bool:
        return (self.plan.copies[copy].value, copy) in self.parts.readers

    def _alive_as(self, key: Key) -> tuple[int, int]:
        """(op, copy) by which the account knows a value or copy."""
        op = self.graph.producer[key[0]]
        return (op.index if op is not None else -1, -1) if key[1] == AS_MADE else (-1, key[1])

    @cached_property
    def kept_bytes(self) -> int:
        """Bytes per device that a microbatch holds from its forward part on."""
        return sum(self.parts.bytes(k) for k in self._kept)

    @cached_property
    def _kept(self) -> frozenset[Key]:
        """What a microbatch holds from its forward part on."""
        later = [self.parts.flows[part] for part in (BACKWARD, WEIGHT) if part in self.parts.flows]
        keys = {k for flow in later for k in flow.takes if self.parts.home(k) == FORWARD}
        received = [lane for lane in self.parts.lanes if lane.kind == "received" and lane.inside]
        if WEIGHT not in self.parts.flows:  # a cotangent is used up by the task that receives it
            received = [lane for lane in received if not is_backward(self.parts.piece.inputs, lane)]
        return frozenset(keys | {lane.inside for lane in received if lane.inside})

    @cached_property
    def held_bytes(self) -> int:
        """Bytes per device that are held all the time: the arguments, what is made of them once, the sums."""
        loop = [self.parts.flows[part] for part in (FORWARD, BACKWARD, WEIGHT) if part in self.parts.flows]
        received = {lane.inside for lane in self.parts.lanes if lane.kind == "received"}
        keys = {self.parts.source_of_lane(k) for flow in loop for k in flow.takes if k not in received}
        keys -= {k for k in keys if k[0] < 0 or self.graph.is_free(self.graph.values[k[0]])}
        made = sum(self.parts.bytes(k) for k in keys if self.parts.home(k) == BEFORE)
        sums = {lane.inside for lane in self.parts.lanes if lane.kind == "sum" and lane.inside}
        return self.plan.memory.arguments + made + sum(self.parts.bytes(k) for k in sums)
