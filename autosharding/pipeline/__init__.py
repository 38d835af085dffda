"""A step as a pipeline: its program cut into pieces, each planned on the devices of its stage, run by a schedule.

Nothing is marked in the step. The forward pass is cut in program order where little is sent, all else follows its data
(`assign`); each piece is a graph of its own (`piece`), planned as any graph is; its programs run parts of that one plan
(`programs`), task by task (`runner`).
"""

from autosharding.pipeline.build import Pipeline as Pipeline
from autosharding.pipeline.build import pipelined as pipelined
from autosharding.pipeline.runner import Runner as Runner

__all__ = ["Pipeline", "Runner", "pipelined"]
