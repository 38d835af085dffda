"""The best choice that fits, and those met on the way to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ilp.clock import Clock
from ilp.pair import Post
from ilp.relaxation import Relaxation

__all__ = ["Incumbent"]

MOST_SEEN = 60
"""Choices remembered."""

MOST_MIXED = 16
"""Choices that are mixed at once."""


@dataclass(slots=True)
class Incumbent:
    """The best choice that fits, and what it costs."""

    choice: np.ndarray | None = None
    cost: float = math.inf
    seen: dict[bytes, np.ndarray] = field(default_factory=dict)
    """The last choices looked at, whether they fit or not."""
    post: Post | None = None
    """Where a second process is on the same problem: what the two tell each other."""

    def offer(self, relaxation: Relaxation, choice: np.ndarray, clock: Clock) -> bool:
        """Keep ``choice`` if it fits and is cheaper; remember it anyway."""
        cost = relaxation.worth(choice)
        self.seen.setdefault(choice.tobytes(), choice.copy())
        if len(self.seen) > MOST_SEEN:
            del self.seen[next(iter(self.seen))]
        if cost >= min(self.cost, relaxation.big) or relaxation.excess(choice) > 0:
            return False
        self.choice, self.cost = choice.copy(), cost
        clock.objective = min(clock.objective, cost)
        if self.post is not None:
            self.post.tell(cost, choice)
        return True

    def exchange(self, relaxation: Relaxation, clock: Clock) -> None:
        """Tell the other process the bound, take over its own and its choice where they are better."""
        if self.post is None:
            return
        self.post.tell_bound(clock.bound, relaxation.best_prices)
        choice = self.post.hear()
        clock.bound = max(clock.bound, self.post.bound)
        if choice is not None:
            self.offer(relaxation, choice, clock)

    def follow(self, relaxation: Relaxation, share: float) -> bool:
        """Take over the other's prices, if its bound is better by ``share`` of the gap."""
        post = self.post
        if post is None or post.prices is None or post.bound - relaxation.bound <= share * (self.cost - post.bound):
            return False
        relaxation.bound, relaxation.best_prices = post.bound, post.prices
        relaxation.set_prices(post.prices)
        return True

    def best_seen(self, relaxation: Relaxation) -> list[np.ndarray]:
        """The best choice, then those seen, cheapest first at the best prices for memory."""
        prices = relaxation.best_prices

        def priced(choice: np.ndarray) -> float:
            return relaxation.worth(choice) + float(relaxation.held(choice) @ prices)

        ranked = sorted(self.seen.values(), key=priced)[:MOST_MIXED]
        return ranked if self.choice is None else [self.choice, *ranked]
