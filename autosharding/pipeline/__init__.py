"""A step as a pipeline: its program cut into pieces, each planned on the devices of its stage, run by a schedule.

Nothing is marked in the step. The forward pass is cut in program order where little is sent, all else follows its data
(`assign`); each piece is a graph of its own (`piece`), planned as any graph is; its programs run parts of that one plan
(`programs`), task by task (`runner`).
"""

from autosharding.pipeline.build import Pipeline as Pipeline
from autosharding.pipeline.build import Planner as Planner
from autosharding.pipeline.build import pipelined as pipelined
from autosharding.pipeline.plan import RUNNABLE as RUNNABLE
from autosharding.pipeline.plan import PipelinePlan as PipelinePlan
from autosharding.pipeline.plan import load_plan as load_plan
from autosharding.pipeline.plan import plan_from_json as plan_from_json
from autosharding.pipeline.program import PipelineProgram as PipelineProgram
from autosharding.pipeline.program import plan_pipeline as plan_pipeline
from autosharding.pipeline.spread import bring as bring
from autosharding.pipeline.spread import spread as spread

__all__ = [
    "RUNNABLE",
    "Pipeline",
    "PipelinePlan",
    "PipelineProgram",
    "Planner",
    "bring",
    "load_plan",
    "pipelined",
    "plan_from_json",
    "plan_pipeline",
    "spread",
]
