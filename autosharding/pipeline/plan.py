"""The plan of a pipeline: a plan for each piece, what each costs, and the schedule that runs them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import stage_dp
from autosharding.errors import PlanError, StageError
from autosharding.pipeline.plan_diff import Difference, diff
from autosharding.pipeline.plan_tables import chart, pipeline_tables
from autosharding.plan import Plan
from autosharding.plan_json import to_json
from autosharding.plan_load import from_json, read_file
from stage_dp import SCHEDULES, Price, Schedule, Timeline, chrome_trace, interleaved, peak_of, simulate

FORMAT = "autosharding-pipeline"
VERSION = 3

RUNNABLE = ("gpipe", "1f1b", "1f1b-eager", "interleaved", "zero-bubble")
"""The schedules that can be run."""

FORWARD = "forward"
"""The schedule of a step without a backward pass."""


@dataclass(frozen=True)
class PipelinePlan:
    """A step over the stages of a pipeline.

    Attributes:
        name: the step's name.
        fingerprint: of the graph that was cut.
        schedule: which task runs when.
        plans: of each piece, in program order; piece `chunk * n_stages + stage` runs on `stage`.
        prices: of each piece.
        transfers: (forward, backward) seconds per microbatch from each piece to the next.
        cuts: where the pieces begin among the units that a cut parts, and the number of these.
        firsts: number of the first device of each stage; it has those that follow.
        independent: whether each microbatch takes the statistics of its own examples for those of the batch.
        slices: into how many pieces loops over layers were to be cut; more than there are, where stages are uneven.
    """

    name: str
    fingerprint: str
    schedule: Schedule
    plans: tuple[Plan, ...]
    prices: tuple[Price, ...]
    transfers: tuple[tuple[float, float], ...]
    cuts: tuple[int, ...]
    firsts: tuple[int, ...]
    independent: bool
    slices: int

    @property
    def microbatches(self) -> int:
        """Into how many pieces the batch is cut."""
        return self.schedule.n_microbatches

    @cached_property
    def timeline(self) -> Timeline:
        """One step, simulated with the prices."""
        return simulate(self.schedule, self.prices, self.transfers)

    @property
    def seconds(self) -> float:
        """Predicted seconds of a step."""
        return self.timeline.seconds

    @property
    def peaks(self) -> tuple[int, ...]:
        """The most bytes per device that each stage holds, its microbatches in flight included."""
        return tuple(peak_of(self.schedule, self.prices))

    def trace(self) -> dict[str, Any]:
        """The simulated step in the Chrome trace format, for Perfetto."""
        return chrome_trace(self.timeline)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without loss."""
        s = self.schedule
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "schedule": {
                "name": s.name,
                "stages": s.n_stages,
                "microbatches": s.n_microbatches,
                "chunks": s.n_chunks,
            },
            "plans": [to_json(p) for p in self.plans],
            "prices": [asdict(p) for p in self.prices],
            "transfers": [list(t) for t in self.transfers],
            "cuts": list(self.cuts),
            "firsts": list(self.firsts),
            "independent": self.independent,
            "slices": self.slices,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that `load_plan` reads, whole or not at all."""
        target = Path(path)
        draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            draft.write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8")
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def diff(self, other: Plan | PipelinePlan) -> Difference:
        """What is otherwise in the other plan."""
        return diff(self, other)

    def __str__(self) -> str:
        return "\n\n".join([*(t.text() for t in pipeline_tables(self)), chart(self)])

    def _repr_html_(self) -> str:
        tables = "".join(t.html() for t in pipeline_tables(self))
        return f"<div>{tables}<pre>{escape(chart(self))}</pre></div>"


def pipeline_from_json(data: Mapping[str, Any]) -> PipelinePlan:
    """Read what `to_json` made.

    Raises:
        PlanError: saying what is wrong with it.
    """
    if data.get("version") != VERSION:
        raise PlanError(
            f"This is a pipeline's plan of version {data.get('version')!r}, and this release reads version {VERSION}. "
            "Plan the step again."
        )
    try:
        s = data["schedule"]
        schedule = schedule_of(s["name"], s["stages"], s["microbatches"], s["chunks"])
        known = {f.name for f in fields(Price)}
        return PipelinePlan(
            data["name"],
            data["fingerprint"],
            schedule,
            tuple(from_json(p) for p in data["plans"]),
            tuple(Price(**{k: v for k, v in p.items() if k in known}) for p in data["prices"]),
            tuple((float(a), float(b)) for a, b in data["transfers"]),
            tuple(map(int, data["cuts"])),
            tuple(map(int, data["firsts"])),
            bool(data["independent"]),
            int(data["slices"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"The file says it is a pipeline's plan, and cannot be read: {error!r}.") from error


def schedule_of(name: str, n_stages: int, microbatches: int, chunks: int = 1) -> Schedule:
    """A schedule by its name.

    Raises:
        StageError: for an unknown name, or numbers that do not suit it.
    """
    if name not in (*RUNNABLE, FORWARD) or (chunks > 1) != (name == "interleaved"):
        raise StageError(
            f"There is no schedule {name!r} of {chunks} chunks that can be run. The schedules are "
            f"{', '.join(RUNNABLE)}; of these interleaved takes 2 chunks or more."
        )
    try:
        if name == "interleaved":
            return interleaved(n_stages, microbatches, chunks)
        return SCHEDULES[name](n_stages, microbatches)
    except stage_dp.StageError as error:
        raise StageError(str(error)) from error


def load_plan(path: str | os.PathLike[str]) -> Plan | PipelinePlan:
    """Read a plan, of one mesh or of a pipeline.

    Raises:
        PlanError: when the file is not there, is no plan, is of another version, or is damaged.
    """
    return plan_from_json(read_file(path), os.fspath(path))


def plan_from_json(data: Any, source: str = "this") -> Plan | PipelinePlan:
    """Read what `to_json` of either kind made.

    Raises:
        PlanError: when it is no plan, is of another version, or is damaged.
    """
    if isinstance(data, dict) and data.get("format") == FORMAT:
        return pipeline_from_json(data)
    return from_json(data, source)
