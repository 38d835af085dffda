"""Everything that can go wrong, as one small tree; each message is a paragraph: asked, in the way, what to try.

AutoshardingError
├── UnsupportedProgram   the step cannot be compiled for many devices (an ordered effect, an unhashable static)
├── ConstraintError      a user's PartitionSpec cannot be met (unknown path, unknown axis, indivisible dim)
├── Infeasible           no plan fits the memory of the devices
├── MeshMismatch         the mesh or the devices do not match what was asked
├── PlanError            a plan file is unreadable, foreign, of another version, or damaged
├── PlanMismatch         a plan was made for another step, other shapes, or another mesh
├── TargetError          the command line was given no step: no such file, no such name, something else in it
├── RuleError            a user's rule contradicts the shapes of its operator
└── UnknownModel         no such model in the zoo
"""


class AutoshardingError(Exception):
    """Base of all errors raised on purpose by `autosharding`."""


class UnsupportedProgram(AutoshardingError):
    """The step contains something that no multi-device program can do; names the op and the user's line."""


class ConstraintError(AutoshardingError, ValueError):
    """A user's sharding constraint names what is not there or asks for an impossible split."""


class Infeasible(AutoshardingError):
    """No choice of shardings fits the memory; tells the smallest that would and what is largest in it.

    Attributes:
        needs: bytes per device of the smallest that was found; None where that is not known.
    """

    def __init__(self, message: str, needs: int | None = None) -> None:
        super().__init__(message)
        self.needs = needs


class MeshMismatch(AutoshardingError, ValueError):
    """The mesh asked for does not match the devices at hand."""


class PlanError(AutoshardingError, ValueError):
    """A plan file cannot be read, or what it says contradicts itself."""


class PlanMismatch(AutoshardingError, ValueError):
    """A plan was made for another program, other shapes or another mesh than the ones at hand."""


class TargetError(AutoshardingError, ValueError):
    """The command line was pointed at something that is no step."""


class RuleError(AutoshardingError, ValueError):
    """A rule contradicts the shapes of the operator it is for."""


class UnknownModel(AutoshardingError, KeyError):
    """No model of that name in the zoo."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MicrobatchError(AutoshardingError, ValueError):
    """A step cannot be cut into so many microbatches; names the op that has to see the whole batch."""


class StageError(AutoshardingError, ValueError):
    """A step cannot be cut into so many pipeline stages, or these do not suit the devices or the schedule."""
