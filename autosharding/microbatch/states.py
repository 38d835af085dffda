"""What a value is to a step whose batch is worked through piece by piece, and how pieces go through factors.

A batch dim of `outer * M * inner` elements is cut so that microbatch `m` has, of each of `outer` blocks, the `m`-th run
of `inner`. What is cut is a digit of the positions; merging and splitting dims keeps it, and changes `outer` and
`inner` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from autosharding.rules import Rule
from autosharding.rules.notation import Dims
from autosharding.spec import Spec

TIME = "time"
"""The axis along which microbatches lie, as a mesh axis to the rules."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A scalar known only after the loop, by which something will have been multiplied or divided.

    Attributes:
        value: its id.
        divides: whether it divides.
    """

    value: int
    divides: bool


@dataclass(frozen=True, slots=True)
class Whole:
    """The same for every microbatch: made before the loop."""


@dataclass(frozen=True, slots=True)
class Sliced:
    """Each microbatch has its part, along one dim of `outer * M * inner` elements.

    Attributes:
        dim: the dim.
        outer: blocks along it.
        inner: elements of a run.
        factors: what it is still to be multiplied by.
    """

    dim: int
    outer: int
    inner: int
    factors: tuple[Factor, ...] = ()

    def spec(self, rank: int) -> Spec:
        """As a split over `TIME`; of what is not contiguous (`outer > 1`) it tells the sizes alone."""
        return Spec(tuple((TIME,) if d == self.dim else () for d in range(rank)))

    def stacked(self, more: int) -> Sliced:
        """In an array of so many leading dims more."""
        return replace(self, dim=self.dim + more)


@dataclass(frozen=True, slots=True)
class Partial:
    """Each microbatch has a term: the value is their sum (max, ...), known after the loop.

    Attributes:
        monoid: what joins the terms.
        factors: what their sum is still to be multiplied by.
    """

    monoid: str
    factors: tuple[Factor, ...] = ()

    def spec(self, rank: int) -> Spec:
        """As partial over `TIME`."""
        return Spec(((),) * rank, (TIME,), self.monoid)


@dataclass(frozen=True, slots=True)
class Own:
    """Each microbatch has its own, where the whole batch would have one: a statistic of its own examples.

    The whole batch's is then the mean of theirs, and as a term each counts `1 / M`.
    """


@dataclass(frozen=True, slots=True)
class Each:
    """In a loop of the user's own over the batch: each run has another example, or another run of them."""

    outer: int
    inner: int


@dataclass(frozen=True, slots=True)
class After:
    """Known only when all microbatches are through."""


@dataclass(frozen=True, slots=True)
class Ones:
    """Known only after the loop, a scalar in which the op is linear: ones stand for it until then.

    Attributes:
        like: how the array of them is sliced.
    """

    like: Sliced | Whole

    def spec(self, rank: int) -> Spec:
        """As a split over `TIME`."""
        return self.like.spec(rank) if isinstance(self.like, Sliced) else Spec.replicated(rank)


State = Whole | Sliced | Partial | Own | Each | After | Ones

WHOLE, AFTER, OWN = Whole(), After(), Own()


@dataclass(frozen=True, slots=True)
class Cut:
    """A factor of an op cut by microbatch: of `outer * M * inner` elements.

    Attributes:
        factor: its name.
        outer: blocks along it.
        inner: elements of a run.
        twin: a looked-up factor in which each example looks up itself, and which is cut alike.
    """

    factor: str
    outer: int
    inner: int
    twin: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Both factors."""
        return (self.factor,) if self.twin is None else (self.factor, self.twin)


def cut_of(state: Sliced, dims: Dims, sizes: Mapping[str, int], microbatches: int) -> Cut | None:
    """The factor that a sliced operand cuts; None where the cut goes through several, or through none."""
    before = 1
    for f in dims[state.dim]:
        size = sizes[f]
        if state.outer % before == 0 and size % (state.outer // before * microbatches) == 0:
            outer = state.outer // before
            return Cut(f, outer, size // (outer * microbatches))
        before *= size
    return None


def sliced_by(cut: Cut, dims: Dims, sizes: Mapping[str, int]) -> Sliced | None:
    """How an array with these dims is sliced when a factor is cut; None where it has not the factor."""
    for d, factors in enumerate(dims):
        if name := next((f for f in cut.names if f in factors), None):
            at = factors.index(name)
            before, after = (prod(sizes[f] for f in side) for side in (factors[:at], factors[at + 1 :]))
            return Sliced(d, before * cut.outer, cut.inner * after)
    return None


def is_uncuttable(rule: Rule, cut: Cut, microbatches: int) -> bool:
    """Whether the rule itself says that the factor stays in one piece."""
    if not rule.known or rule.specs is not None or {*rule.whole, *rule.slides}.intersection(cut.names):
        return True
    return rule.admits is not None and not rule.admits({cut.factor: microbatches})
