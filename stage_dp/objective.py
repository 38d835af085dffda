"""What a split costs and what it must hold, for each schedule.

Stage i runs a microbatch in t_i seconds, receives it in x_i (there and back) and adds D_i seconds per step. The
step of M microbatches takes

    w·max_i P_i  +  Σ_i (f_i + x_i)  +  max_i (D_i − Σ_{j<i} f_j − Σ_{j≤i} x_j)                          (1)

where f_i = t_i, w = M − 1, and P_i is the period of stage i (Alpa, section 5.2, with the last term of Mist's
section on inter-stage tuning: a stage that is not the first has its own work per step done while the pipeline
fills and drains). By schedule:

    gpipe, 1f1b-eager   P_i = max(t_i, seconds of one transfer): transfers run beside the tasks
    1f1b                P_i = t_i + x_i: with S − i microbatches in flight a round trip to the last stage hides nothing
    zero-bubble         as 1f1b, and f_i = F_i + B_i − W_i for i > 0: cotangents leave before weight gradients
                        (while there are as many microbatches as stages; else only M − 1 of them come for S − 1)
    latency             one microbatch, forward: w = 0
    throughput          seconds between two microbatches: max_i P_i alone, P_i as for gpipe

For equal stages without transfers each is the closed form of `schedules`, to the letter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from stage_dp.errors import StageError
from stage_dp.price import Layers, Price

TRAINING = ("gpipe", "1f1b", "1f1b-eager", "zero-bubble")
INFERENCE = ("latency", "throughput")


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """The numbers of (1), and the microbatches that a stage must hold."""

    weight: float
    """w of (1)."""
    fills: bool
    """Whether the sums of (1) count; they do not for throughput."""
    charged: bool
    """Whether x_i is part of P_i, or a period of its own."""
    trains: bool
    weight_share: float
    """Part of W_i that f_i counts, when i > 0: 1, and down to -1 where weight gradients fill the bubble."""
    in_flight: np.ndarray
    """int64 [layers + 1]: microbatches held by a stage that r others follow."""
    max_stages: int

    def period(self, price: Price) -> float:
        """t_i: seconds per microbatch."""
        return price.seconds if self.trains else price.forward

    def fill(self, price: Price) -> float:
        """f_i of a stage that is not the first."""
        if not self.fills:
            return 0.0
        return price.forward + price.backward + self.weight_share * price.weight if self.trains else price.forward

    def first_fill(self, price: Price) -> float:
        """f_0."""
        return self.period(price) if self.fills else 0.0

    def step(self, price: Price) -> float:
        """D_i: seconds per step, beside the microbatches."""
        return price.step_seconds if self.trains else 0.0


def objectives(layers: Layers, name: str) -> Iterator[Objective]:
    """The objectives whose least value, over all of them, is the least of schedule `name`.

    One, but for zero-bubble: there what a stage holds hangs on the number of stages, so there is one for each
    number that stages may not exceed.
    """
    most = min(layers.n_layers, layers.devices)
    count = layers.microbatches
    rest = np.arange(layers.n_layers + 1, dtype=np.int64)
    if name not in TRAINING + INFERENCE:
        raise StageError(f"There is no schedule {name!r} to split for; there are {', '.join(TRAINING + INFERENCE)}.")
    if name in INFERENCE:
        latency = name == "latency"
        yield Objective(0.0 if latency else 1.0, latency, False, False, 1.0, np.ones_like(rest), most)
    elif name == "zero-bubble":
        for stages in range(1, most + 1):
            filled = (min(count, stages) - 1) / (stages - 1) if stages > 1 else 1.0
            held = np.full_like(rest, min(count, stages))
            yield Objective(count - 1.0, True, True, True, -filled, held, stages)
    else:
        held_by: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "gpipe": lambda rest: np.full_like(rest, count),
            "1f1b": lambda rest: np.minimum(count, rest + 1),
            "1f1b-eager": lambda rest: np.minimum(count, 2 * rest + 1),
        }
        yield Objective(count - 1.0, True, name == "1f1b", True, 1.0, held_by[name](rest), most)
