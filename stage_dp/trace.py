"""A simulated step in Chrome's trace format, for Perfetto (ui.perfetto.dev) and chrome://tracing."""

from __future__ import annotations

from typing import Any

from stage_dp.schedule import Kind, Task
from stage_dp.simulate import Timeline

MICROSECONDS = 1e6
"""Per second: the format's unit of time."""

THREADS = 3
"""Of the trace, per stage."""

NAMES = {Kind.FORWARD: "forward", Kind.BACKWARD: "backward", Kind.WEIGHT: "weight gradient", Kind.UPDATE: "update"}


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """The timeline as plain values for `json.dump`.

    Per stage a thread with its tasks, one with the activations it sends and one with the cotangents, and a
    counter of the bytes that each of its devices holds.
    """
    events: list[dict[str, Any]] = []
    for stage in range(timeline.n_stages):
        names = (f"stage {stage}", f"stage {stage} sends activations", f"stage {stage} sends cotangents")
        events += [_name("thread_name", THREADS * stage + i, name) for i, name in enumerate(names)]
    events.append(_name("process_name", 0, str(timeline.schedule)))
    for span in timeline.spans:
        events.append(_slice(_label(span.task), NAMES[span.task.kind], THREADS * span.task.stage, span.start, span.end))
        events[-1]["args"] = _details(span.task)
    for move in timeline.moves:
        label = f"{_label(move.sender)} to stage {move.receiver.stage}"
        thread = THREADS * move.sender.stage + (2 if move.sender.kind is Kind.BACKWARD else 1)
        events.append(_slice(label, "transfer", thread, move.start, move.end))
    for stage, curve in enumerate(timeline.memory):
        for seconds, held in zip(curve.seconds, curve.bytes, strict=True):
            counter = {"name": f"stage {stage} bytes per device", "ph": "C", "pid": 0, "args": {"bytes": int(held)}}
            events.append({**counter, "ts": float(seconds) * MICROSECONDS})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _slice(name: str, category: str, thread: int, start: float, end: float) -> dict[str, Any]:
    times = {"ts": start * MICROSECONDS, "dur": (end - start) * MICROSECONDS}
    return {"name": name, "cat": category, "ph": "X", "pid": 0, "tid": thread, **times}


def _name(kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": 0, "tid": thread, "args": {"name": name}}


def _label(task: Task) -> str:
    if task.kind is Kind.UPDATE:
        return str(task.kind)
    chunk = f".{task.chunk}" if task.chunk else ""
    return f"{task.kind}{task.microbatch}{chunk}"


def _details(task: Task) -> dict[str, int]:
    return {} if task.kind is Kind.UPDATE else {"microbatch": task.microbatch, "chunk": task.chunk}
