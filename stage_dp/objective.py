"""What a split costs and what it must hold, for each schedule.

Stage i runs a microbatch in t_i seconds, receives it in x_i (there and back) and adds D_i seconds per step. The
step of M microbatches takes

    w·max_i P_i  +  Σ_i (f_i + x_i)  +  max_i (D_i − Σ_{j<i} f_j − Σ_{j≤i} x_j)                          (1)

where f_i = t_i, w = M − 1, and P_i is the period of stage i (Alpa, section 5.2, with the last term of Mist's
section on inter-stage tuning: a stage that is not the first has its own work per step done while the pipeline
fills and drains). By schedule:

    gpipe, 1f1b-eager   P_i = max(t_i, seconds of one transfer): transfers run beside the tasks
    1f1b                P_i = t_i + x_i: with S − i microbatches in flight the round trip from stage i to stage k and
                        back takes k − i + 1 periods, so a period is at least the mean of t_j + x_j over any stages in
                        a row (x_i left out) and at most the greatest: the transfers show although they overlap
    zero-bubble         as 1f1b, and f_i = F_i + B_i − W_i for i > 0: cotangents leave before weight gradients. No
                        more stages than microbatches, unless asked for (then M − 1 of S − 1 weight gradients count)
    interleaved         S groups of v stages each, all submeshes equal: w = v(M − S) + S − 1, P_i as for gpipe
    latency             one microbatch, forward: w = 0
    throughput          seconds between two microbatches: max_i P_i alone, P_i as for gpipe

For equal stages without transfers each is the closed form of `schedules`, to the letter. For unequal ones a
replayed 1f1b step is no longer than (1), and a replayed gpipe step no shorter: (1) takes the slowest stage
forward and the slowest backward to be one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from stage_dp.errors import StageError
from stage_dp.price import Columns, Layers

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

    @property
    def least_in_flight(self) -> np.ndarray:
        """int64 [layers + 1]: what a stage holds at least when r or more follow."""
        return np.minimum.accumulate(self.in_flight[::-1])[::-1]

    def periods(self, columns: Columns) -> np.ndarray:
        """t_i: seconds per microbatch of every row."""
        forward, backward, weight = columns.seconds[:, :3].T
        return forward + backward + weight if self.trains else forward

    def fills_of(self, columns: Columns) -> np.ndarray:
        """f_i of every row: its stage is the first if its first layer is."""
        forward, backward, weight = columns.seconds[:, :3].T
        if not self.fills:
            return np.zeros_like(forward)
        share = np.where(columns.first == 0, 1.0, self.weight_share)
        return forward + backward + share * weight if self.trains else forward

    def steps(self, columns: Columns) -> np.ndarray:
        """D_i: seconds per step, beside the microbatches, of every row."""
        return columns.seconds[:, 3:].sum(1) if self.trains else np.zeros(len(columns.first))


def objectives(layers: Layers, name: str, n_stages: int | None = None) -> list[Objective]:
    """The objectives whose least value, over all of them, is the least of schedule `name`.

    One, but for zero-bubble when `n_stages` is free: there what a stage holds hangs on the number of stages, so
    there is one for each number that stages may not exceed.
    """
    if name not in TRAINING + INFERENCE:
        raise StageError(f"There is no schedule {name!r} to split for; there are {', '.join(TRAINING + INFERENCE)}.")
    most = min(layers.n_layers, layers.devices)
    count = layers.microbatches
    follow = np.arange(layers.n_layers + 1, dtype=np.int64)
    if name in INFERENCE:
        latency = name == "latency"
        return [Objective(0.0 if latency else 1.0, latency, False, False, 1.0, np.ones_like(follow), most)]
    if name == "zero-bubble":
        return [
            Objective(
                count - 1.0, True, True, True, _share(stages, count), np.full_like(follow, min(count, stages)), stages
            )
            for stages in ([n_stages] if n_stages else range(1, min(most, count) + 1))
        ]
    held: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "gpipe": lambda follow: np.full_like(follow, count),
        "1f1b": lambda follow: np.minimum(count, follow + 1),
        "1f1b-eager": lambda follow: np.minimum(count, 2 * follow + 1),
    }
    return [Objective(count - 1.0, True, name == "1f1b", True, 1.0, held[name](follow), most)]


def optimistic(layers: Layers) -> Objective:
    """For zero-bubble: no more than the least of its objectives. Each stage holds what those behind it ask for."""
    plain = objectives(layers, "1f1b")[0]
    return replace(plain, weight_share=-1.0, max_stages=min(plain.max_stages, layers.microbatches))


def _share(stages: int, microbatches: int) -> float:
    """Part of W_i that f_i counts for zero-bubble."""
    return -(min(microbatches, stages) - 1) / (stages - 1) if stages > 1 else 1.0
