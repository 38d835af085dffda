"""The command line: plan | show | diff | verify | rules.

Results go to standard output as plain text, progress to standard error. Everything raised on purpose ends as a
paragraph on standard error and exit status 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import jax
import typer
from rich.console import Console

from autosharding.api import parallelize
from autosharding.api import plan as make_plan
from autosharding.errors import AutoshardingError, MeshMismatch, PlanError, StageError
from autosharding.pipeline import RUNNABLE, PipelinePlan, load_plan, pipeline_diff
from autosharding.plan import Plan
from autosharding.plan_json import dumps
from autosharding.plan_mlir import plan_mlir
from autosharding.rules import rules_table
from autosharding.table import Table
from autosharding.target import find_target
from autosharding.verify import verify as verify_step
from cost_model import ClusterError

_COUNT = "jax_num_cpu_devices"

app = typer.Typer(
    help="Plan an unchanged JAX step for many devices, look at plans, and check that programs keep them.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Format(StrEnum):
    """How `show` prints a plan."""

    text = "text"
    json = "json"
    mlir = "mlir"
    html = "html"


TargetArgument = Annotated[
    str, typer.Argument(help="file.py:name, a callable that returns (step, example_args); or a zoo model, gpt:1.3b")
]
MeshOption = Annotated[str | None, typer.Option(help="axes and sizes, x=2,y=4; the best one by default")]
MemoryOption = Annotated[str | None, typer.Option(help="what a device may hold, 70GiB; the device's own by default")]
MethodOption = Annotated[str, typer.Option(help="auto, data, fsdp, zero1, zero2 or megatron")]
BatchOption = Annotated[int | None, typer.Option(help="global batch of a zoo model")]
SequenceOption = Annotated[int | None, typer.Option(help="tokens per sequence of a zoo model")]
RematOption = Annotated[bool, typer.Option(help="each block of a zoo model under jax.checkpoint")]
MicrobatchesOption = Annotated[
    str, typer.Option(help="into how many pieces the batch is cut; auto takes as few as the memory allows")
]
StagesOption = Annotated[
    str, typer.Option(help="stages of a pipeline; auto takes the fastest by the prices of the layers, or one mesh")
]
ScheduleOption = Annotated[str, typer.Option(help=f"of the stages: {', '.join(RUNNABLE)}, or auto")]
ChunksOption = Annotated[
    int | None, typer.Option(min=1, help="pieces for each stage, with --schedule interleaved; else the best number")
]
DonateOption = Annotated[bool, typer.Option(help="let new state take the buffers of the old")]


@app.command()
def plan(
    target: TargetArgument,
    cluster: Annotated[str, typer.Option(help="h100:8x8, tpu-v5p:4x4x4, cpu:8, or a device file")],
    mesh: MeshOption = None,
    memory: MemoryOption = None,
    method: MethodOption = "auto",
    microbatches: MicrobatchesOption = "auto",
    stages: StagesOption = "1",
    schedule: ScheduleOption = "1f1b",
    chunks: ChunksOption = None,
    batch: BatchOption = None,
    sequence: SequenceOption = None,
    remat: RematOption = True,
    donate: DonateOption = True,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write the plan to this file")] = None,
    trace: Annotated[Path | None, typer.Option(help="write the simulated schedule, for Perfetto")] = None,
) -> None:
    """Plan a step for a cluster that need not be here."""
    axes = _axes(mesh)
    with _progress(f"reading {target}") as say:
        found = find_target(target, batch=batch, sequence=sequence, remat=remat)
        made = make_plan(
            found.step,
            *found.args,
            cluster=cluster,
            mesh=axes,
            memory=memory,
            method=method,
            microbatches=_number("--microbatches", microbatches),
            stages=_number("--stages", stages),
            schedule=schedule,
            chunks=chunks,
            donate_argnums=tuple(range(len(found.args))) if donate else None,
            progress=say,
        )
    if output is not None:
        made.save(output)
    if trace is not None:
        trace.write_text(json.dumps(_pipeline(made, "--trace").trace()), encoding="utf-8")
    print(made)
    for path in filter(None, (output, trace)):
        print(f"\nwritten to {path}")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="a plan file")],
    format: Annotated[Format, typer.Option(help="how to print it")] = Format.text,
    piece: Annotated[int | None, typer.Option(help="of a pipeline, the plan of this piece alone")] = None,
) -> None:
    """Print a plan."""
    loaded = load_plan(file)
    if piece is not None:
        pieces = _pipeline(loaded, "--piece").plans
        if not 0 <= piece < len(pieces):
            raise PlanError(f"{file} is the plan of a pipeline of {len(pieces)} pieces: there is no piece {piece}.")
        loaded = pieces[piece]
    if format is Format.text:
        print(loaded)
    elif format is Format.html:
        print(loaded._repr_html_())
    elif format is Format.json:
        print(dumps(loaded), end="") if isinstance(loaded, Plan) else print(json.dumps(loaded.to_json()))
    elif isinstance(loaded, Plan):
        print(plan_mlir(loaded), end="")
    else:
        raise PlanError(f"{file} is the plan of a pipeline, which is many programs: say which, --piece 0.")


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="a plan file")],
    b: Annotated[Path, typer.Argument(help="another")],
) -> None:
    """Print what differs between two plans."""
    first, second = load_plan(a), load_plan(b)
    if isinstance(first, Plan) and isinstance(second, Plan):
        print(first.diff(second))
    else:
        print(pipeline_diff(first, second))


@app.command()
def verify(
    target: TargetArgument,
    devices: Annotated[int, typer.Option(help="virtual CPU devices to run on")] = 8,
    mesh: MeshOption = None,
    memory: MemoryOption = None,
    method: MethodOption = "auto",
    microbatches: MicrobatchesOption = "auto",
    stages: StagesOption = "1",
    schedule: ScheduleOption = "1f1b",
    chunks: ChunksOption = None,
    batch: BatchOption = None,
    sequence: SequenceOption = None,
    remat: RematOption = True,
    donate: DonateOption = True,
    plan: Annotated[Path | None, typer.Option(help="verify this plan instead of making one")] = None,
    steps: Annotated[int, typer.Option(min=1, help="steps to run, the state fed on")] = 1,
) -> None:
    """Compile and run a step on virtual devices: collectives and memory beside the plan, numbers beside one device."""
    axes = _axes(mesh)
    _virtual_devices(devices)
    given = load_plan(plan) if plan is not None else None
    with _progress(f"reading {target}") as say:
        found = find_target(target, batch=batch, sequence=sequence, remat=remat)
        args = found.make()
        step = parallelize(
            found.step,
            mesh=axes,
            memory=memory,
            method=method,
            microbatches=_number("--microbatches", microbatches),
            stages=_number("--stages", stages),
            schedule=schedule,
            chunks=chunks,
            plan=given,
            donate_argnums=tuple(range(len(args))) if donate else None,
            progress=say,
        )
        done = verify_step(step, args, steps=steps, progress=say)
    print(done)
    if not done.agrees:
        raise typer.Exit(1)


@app.command()
def rules() -> None:
    """Print the rule of every operator."""
    lines = tuple(tuple(line) for line in rules_table())
    print(Table(f"{len(lines)} rules", ("primitive", "rule", "notes"), lines).text())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; leaves by `SystemExit`."""
    try:
        app(args=arguments, prog_name="autosharding")
    except (AutoshardingError, ClusterError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


@contextmanager
def _progress(first: str) -> Iterator[Callable[[str], None]]:
    """A spinner on standard error with what is being done, where that is a terminal."""
    with Console(stderr=True).status(first) as status:
        yield status.update


def _pipeline(made: Plan | PipelinePlan, option: str) -> PipelinePlan:
    """The plan, which must be a pipeline's for an option.

    Raises:
        StageError: where it is not.
    """
    if isinstance(made, PipelinePlan):
        return made
    raise StageError(f"{option} is for pipelines, and this is a plan of one mesh: say --stages 2 or more.")


def _number(option: str, said: str) -> int | Literal["auto"]:
    """What an option says.

    Raises:
        StageError: for something else than a number above 0 or "auto".
    """
    if said == "auto":
        return "auto"
    if said.isdigit() and int(said):
        return int(said)
    raise StageError(f"{option} {said!r} is neither a number above 0 nor auto.")


def _axes(text: str | None) -> dict[str, int] | None:
    """`x=2,y=4`."""
    if text is None:
        return None
    axes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (p.strip() for p in part.partition("="))
        if not name.isidentifier() or not size.isdecimal() or name in axes:
            raise MeshMismatch(
                f"{text!r} is no mesh: {part.strip()!r} does not say an axis and its size. Write it as x=2,y=4, each "
                "axis once; the sizes multiply to the number of devices."
            )
        axes[name] = int(size)
    return axes


def _virtual_devices(count: int) -> None:
    """Make this process see so many CPU devices; possible before JAX has started."""
    try:
        if getattr(jax.config, _COUNT) != count:
            jax.config.update(_COUNT, count)
            jax.config.update("jax_platforms", "cpu")
    except RuntimeError as error:
        raise MeshMismatch(f"JAX already runs in this process, so {count} devices cannot be made: {error}") from error
    if len(jax.devices()) != count:
        raise MeshMismatch(
            f"{count} virtual devices were asked for, JAX has {len(jax.devices())}. Run the command in a process of "
            "its own, without XLA_FLAGS that set a device count."
        )
