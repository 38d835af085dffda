"""A step as a pipeline: its program cut into pieces, each planned on its stage's devices, run by a schedule.

Nothing is marked in the step. Loops over layers are taken apart (`slices`). Layers are found, by cuts where little is
sent (`layers`), and priced (`prices`); which of them make a stage, and on which devices, is what the prices promise
most of (`stages`). The forward pass is cut there, all else follows its data (`assign`). Each piece is a graph of its
own (`piece`), planned as any graph is; its programs run parts of that one plan (`programs`), task by task (`runner`),
and what one makes for another goes over a channel: `channel` within a process, `transfer` and `permute` between them.
Where stages share the slices of an array unequally, these travel in every step, at a price (`travel`).
"""

from autosharding.pipeline.build import Pipeline as Pipeline
from autosharding.pipeline.build import Planner as Planner
from autosharding.pipeline.build import pipelined as pipelined
from autosharding.pipeline.piece import Piece as Piece
from autosharding.pipeline.piece_planner import PiecePlanner as PiecePlanner
from autosharding.pipeline.plan import RUNNABLE as RUNNABLE
from autosharding.pipeline.plan import PipelinePlan as PipelinePlan
from autosharding.pipeline.plan import load_plan as load_plan
from autosharding.pipeline.plan import plan_from_json as plan_from_json
from autosharding.pipeline.plan_diff import diff as pipeline_diff
from autosharding.pipeline.program import PipelineProgram as PipelineProgram
from autosharding.pipeline.program import plan_pipeline as plan_pipeline
from autosharding.pipeline.same import OnceForSame as OnceForSame
from autosharding.pipeline.spread import bring as bring
from autosharding.pipeline.spread import spread as spread
from autosharding.pipeline.stages import StageSearch as StageSearch
from autosharding.pipeline.transfer import CHANNELS as CHANNELS

__all__ = [
    "CHANNELS",
    "RUNNABLE",
    "OnceForSame",
    "Piece",
    "PiecePlanner",
    "Pipeline",
    "PipelinePlan",
    "PipelineProgram",
    "Planner",
    "StageSearch",
    "bring",
    "load_plan",
    "pipeline_diff",
    "pipelined",
    "plan_from_json",
    "plan_pipeline",
    "spread",
]
