"""The exact program on what is left of a problem: how large that may be, how long it may take."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ilp.clock import Clock
from ilp.engines import Stop
from ilp.incumbent import Incumbent
from ilp.mip import Answer, entries, exact
from ilp.presolve import Reduced
from ilp.relaxation import Relaxation

__all__ = ["SHARE", "Part", "most_entries", "solve_outright"]

Part = Literal["all", "improve", "prove"]
"""What a process does: everything, or, of two, one looks for better choices first, the other for proofs."""

EXACT = 60_000
"""Table entries up to which the exact program is tried on a kernel."""

UNTIMED_PRICE = 200_000
"""Work that the exact program counts per table entry where no seconds are there to end it."""

UNTIMED_EXACT = 7_000
"""Table entries up to which it is tried then."""

LIMITED_EXACT = 6_000
"""The same where memory is limited besides."""

LIMITED_NODES = 10
"""Branch-and-bound nodes, where seconds are not limited, for a problem whose memory is: its root alone may take
seconds."""

FREE_NODES = 200
"""The same for a problem whose memory is not limited."""

SHARE = {"all": 0.3, "improve": 0.1, "prove": 0.5}
"""Of the seconds left, what the exact program on one kernel may take."""


def most_entries(clock: Clock, limited: bool) -> int:
    """Table entries up to which the exact program is tried."""
    if clock.seconds is not None:
        return EXACT
    return LIMITED_EXACT if limited else UNTIMED_EXACT


def solve_outright(
    relaxation: Relaxation, incumbent: Incumbent, reduced: Reduced, clock: Clock, share: float
) -> Answer:
    """Solve what is left by the exact program, in a share of the seconds left, and offer its choice."""
    assert reduced.small is not None
    limited = reduced.small.limit is not None
    gap = max(clock.gap, 1e-6) / 2
    if clock.left is None:
        clock.spend((1000 if limited else UNTIMED_PRICE) * entries(reduced.small))
        stop = Stop(None, gap, LIMITED_NODES if limited else FREE_NODES)
    else:
        clock.spend(1000 * entries(reduced.small))
        stop = Stop(clock.left * share, gap)
    known = incumbent.cost if incumbent.choice is not None else None
    answer = exact(reduced.small, stop, around=relaxation.bound, known=known)
    if answer.choice is not None:
        incumbent.offer(relaxation, np.array(reduced.undo(answer.choice), dtype=np.int64), clock)
    return answer
