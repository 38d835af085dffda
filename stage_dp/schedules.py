"""The schedules: GPipe, 1F1B (two kinds), interleaved 1F1B, zero-bubble, and forward only.

Stages S, microbatches M; t = F + B + W seconds per microbatch and stage, stages equal. Shares of the step that
devices stand idle, and activations held by stage i:

    gpipe            (S-1) / (M+S-1)                           M
    1f1b             the same                                  min(M, S-i)
    1f1b-eager       the same; hides transfers                 min(M, 2(S-i)-1)
    interleaved      (S-1) / (vM+S-1), v chunks                min(vM, 2(S-i-1)+(v-1)S+1) chunks, each 1/v of a stage
    zero-bubble      (S-1)(F+B-W) / (Mt + (S-1)(F+B-W))        min(M, S)

1F1B: PipeDream (SOSP'19), Megatron-LM (SC'21) for the interleaved kind. The eager kind, with twice the warm-up:
Zhuang et al., "On optimizing the communication of model parallelism" (MLSys'23). Zero-bubble is ZB-H1 of
Qi et al. (ICLR'24): stage i puts weight gradients off by i microbatches, so that all stages hold as much as
1F1B's first.
"""

from __future__ import annotations

from collections.abc import Callable

from stage_dp.errors import ScheduleError, StageError
from stage_dp.schedule import Kind, Schedule, Task


def gpipe(n_stages: int, n_microbatches: int) -> Schedule:
    """All forward tasks, then all backward tasks."""
    return _build("gpipe", n_stages, n_microbatches, lambda stage: n_microbatches)


def one_f_one_b(n_stages: int, n_microbatches: int) -> Schedule:
    """As many forward tasks as stages follow, one more, then backward and forward by turns."""
    return _build("1f1b", n_stages, n_microbatches, lambda stage: n_stages - stage)


def eager_one_f_one_b(n_stages: int, n_microbatches: int) -> Schedule:
    """1F1B with twice the warm-up: a transfer each way hides behind a task."""
    return _build("1f1b-eager", n_stages, n_microbatches, lambda stage: 2 * (n_stages - stage) - 1)


def zero_bubble(n_stages: int, n_microbatches: int) -> Schedule:
    """ZB-H1: cotangents first, weight gradients i microbatches later on stage i."""
    _check(n_stages, n_microbatches)
    return Schedule(
        "zero-bubble",
        n_stages,
        n_microbatches,
        tuple(_zero_bubble_list(stage, n_stages, n_microbatches) for stage in range(n_stages)),
    )


def interleaved(n_stages: int, n_microbatches: int, n_chunks: int) -> Schedule:
    """Megatron-LM's interleaved 1F1B: groups of `n_stages` microbatches run through chunk after chunk."""
    _check(n_stages, n_microbatches)
    if n_chunks < 1:
        raise StageError(f"Interleaving takes at least one chunk per stage; {n_chunks} was asked for.")
    if n_microbatches % n_stages:
        below = n_microbatches - n_microbatches % n_stages
        raise StageError(
            f"Interleaved 1F1B sends microbatches through the chunks in groups of as many as there are stages; "
            f"{n_microbatches} microbatches do not divide into groups of {n_stages}. The nearest counts that do: "
            f"{f'{below} and ' if below else ''}{below + n_stages}."
        )
    return Schedule(
        "interleaved",
        n_stages,
        n_microbatches,
        tuple(_interleaved_list(stage, n_stages, n_microbatches, n_chunks) for stage in range(n_stages)),
        n_chunks,
    )


def forward_only(n_stages: int, n_microbatches: int) -> Schedule:
    """Inference: every microbatch forward, nothing kept."""
    _check(n_stages, n_microbatches)
    lists = tuple(
        tuple(Task(Kind.FORWARD, stage, 0, microbatch) for microbatch in range(n_microbatches))
        for stage in range(n_stages)
    )
    return Schedule("forward", n_stages, n_microbatches, lists)


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "1f1b-eager": eager_one_f_one_b,
    "zero-bubble": zero_bubble,
    "forward": forward_only,
}
"""By name, those with one chunk per stage; `interleaved` takes the number of chunks as well."""


def _build(name: str, n_stages: int, n_microbatches: int, warm_up: Callable[[int], int]) -> Schedule:
    """Forward tasks up to the warm-up of each stage, then backward and forward by turns."""
    _check(n_stages, n_microbatches)
    lists = []
    for stage in range(n_stages):
        pairs = [(0, microbatch) for microbatch in range(n_microbatches)]
        lists.append(_by_turns(stage, pairs, pairs, warm_up(stage)))
    return Schedule(name, n_stages, n_microbatches, tuple(lists))


def _by_turns(
    stage: int, forward: list[tuple[int, int]], backward: list[tuple[int, int]], warm_up: int
) -> tuple[Task, ...]:
    """`warm_up` forward tasks, then backward and forward by turns, then the update; (chunk, microbatch) pairs."""
    tasks = [Task(Kind.FORWARD, stage, *pair) for pair in forward[:warm_up]]
    for done, pair in enumerate(backward):
        tasks.append(Task(Kind.BACKWARD, stage, *pair))
        tasks += [Task(Kind.FORWARD, stage, *pair) for pair in forward[warm_up + done :][:1]]
    return (*tasks, Task(Kind.UPDATE, stage))


def _zero_bubble_list(stage: int, n_stages: int, n_microbatches: int) -> tuple[Task, ...]:
    warm_up = min(n_stages - stage, n_microbatches)
    tasks = [Task(Kind.FORWARD, stage, 0, microbatch) for microbatch in range(warm_up)]
    for microbatch in range(n_microbatches):
        tasks.append(Task(Kind.BACKWARD, stage, 0, microbatch))
        if microbatch >= stage:
            tasks.append(Task(Kind.WEIGHT, stage, 0, microbatch - stage))
        if microbatch + warm_up < n_microbatches:
            tasks.append(Task(Kind.FORWARD, stage, 0, microbatch + warm_up))
    left = range(max(0, n_microbatches - stage), n_microbatches)
    tasks += [Task(Kind.WEIGHT, stage, 0, microbatch) for microbatch in left]
    return (*tasks, Task(Kind.UPDATE, stage))


def _interleaved_list(stage: int, n_stages: int, n_microbatches: int, n_chunks: int) -> tuple[Task, ...]:
    groups = range(0, n_microbatches, n_stages)
    forward = [(chunk, first + r) for first in groups for chunk in range(n_chunks) for r in range(n_stages)]
    backward = [(n_chunks - 1 - chunk, microbatch) for chunk, microbatch in forward]
    return _by_turns(stage, forward, backward, 2 * (n_stages - stage - 1) + (n_chunks - 1) * n_stages + 1)


def _check(n_stages: int, n_microbatches: int) -> None:
    if min(n_stages, n_microbatches) < 1:
        raise ScheduleError(
            f"A schedule has at least one stage and one microbatch; {n_stages} and {n_microbatches} were asked for."
        )
