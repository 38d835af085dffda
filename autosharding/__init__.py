"""An unchanged JAX step, planned by a 0-1 program and run on many devices.

import autosharding as asd

step = asd.parallelize(train_step)                                # for the devices that are there
state, loss = step(state, batch)
plan = asd.plan(train_step, state, batch, cluster="h100:8x8")     # for hardware that is not
"""

from autosharding.api import Step as Step
from autosharding.api import parallelize as parallelize
from autosharding.api import plan as plan
from autosharding.capture import capture as capture
from autosharding.compare import compare as compare
from autosharding.errors import AutoshardingError as AutoshardingError
from autosharding.errors import ConstraintError as ConstraintError
from autosharding.errors import Infeasible as Infeasible
from autosharding.errors import MeshMismatch as MeshMismatch
from autosharding.errors import MicrobatchError as MicrobatchError
from autosharding.errors import PlanError as PlanError
from autosharding.errors import PlanMismatch as PlanMismatch
from autosharding.errors import RuleError as RuleError
from autosharding.errors import StageError as StageError
from autosharding.errors import UnknownModel as UnknownModel
from autosharding.errors import UnsupportedProgram as UnsupportedProgram
from autosharding.graph import Graph as Graph
from autosharding.pipeline import PipelinePlan as PipelinePlan
from autosharding.pipeline import bring as bring
from autosharding.pipeline import load_plan as load_plan
from autosharding.pipeline import spread as spread
from autosharding.plan import Plan as Plan
from autosharding.rules.user import register_user_rule as rule
from autosharding.spec import Spec as Spec

__all__ = [
    "AutoshardingError",
    "ConstraintError",
    "Graph",
    "Infeasible",
    "MeshMismatch",
    "MicrobatchError",
    "PipelinePlan",
    "Plan",
    "PlanError",
    "PlanMismatch",
    "RuleError",
    "Spec",
    "StageError",
    "Step",
    "UnknownModel",
    "UnsupportedProgram",
    "bring",
    "capture",
    "compare",
    "load_plan",
    "parallelize",
    "plan",
    "rule",
    "spread",
]
