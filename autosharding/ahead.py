"""The ahead-of-time stages of a step: lowered, and compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autosharding.errors import PlanMismatch
from autosharding.pipeline import PipelineProgram
from autosharding.program import Program

if TYPE_CHECKING:
    from autosharding.api import Step


class Lowered:
    """A step planned and lowered, not compiled: the first of the ahead-of-time stages, as `jax.stages.Lowered`."""

    def __init__(self, step: Step, program: Program | PipelineProgram) -> None:
        self._step = step
        self._program = program
        self.plan = program.plan
        self._lowered = program.lower() if program.compiled is None else None

    def as_text(self) -> str:
        """The program in StableHLO."""
        return (self._lowered or self._program.lower()).as_text()

    def compile(self) -> Compiled:
        """Compile; calls of the step itself use the same program from then on."""
        if self._program.compiled is None and self._lowered is not None:
            self._program.compiled = self._lowered.compile()
        return Compiled(self._step, self._program)


class Compiled:
    """A step compiled for arguments of one kind; called as the step is.

    Attributes:
        plan: what it runs.
        jax: the `jax.stages.Compiled` over the arrays alone (constants last).
    """

    def __init__(self, step: Step, program: Program | PipelineProgram) -> None:
        self._step = step
        self._program = program
        self.plan = program.plan
        self.jax = program.compile()

    def as_text(self) -> str:
        """The compiled program, in HLO."""
        return self.jax.as_text()

    def memory_analysis(self) -> Any:
        """XLA's own account of bytes per device."""
        return self.jax.memory_analysis()

    def cost_analysis(self) -> Any:
        """XLA's own account of floating-point operations and bytes."""
        return self.jax.cost_analysis()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on arguments of the structure it was compiled for."""
        arrays, structure, objects = self._step.take(args, kwargs)
        if structure != self._program.traced.structure:
            raise PlanMismatch(
                f"{self._step.name!r} was compiled for arguments of another structure. Call the step itself, which "
                "plans and compiles for each kind of arguments, or compile it for these."
            )
        return self._program.traced.result.build(self._program.run(arrays), objects)
