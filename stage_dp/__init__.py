"""Cuts: layers into pipeline stages.

This room decides where a program of layers is cut into stages, which submesh each stage gets, and how many
microbatches run through them under which schedule. `Layers` go in: a table of prices, seconds and bytes for
each range of layers on each submesh; `Stages` come out of `split_layers`, which minimises the time of a whole step with
every device's memory respected, exactly. Schedules are lists of tasks, one per stage; `simulate` replays them. It
knows numbers only: no JAX, no other room.

    stages = split_layers(Layers(24, 2, 8, submesh_shapes(2, 8), fronts, 64, transfers, memory=70 << 30))
    stages.simulate().bubble()
"""

from stage_dp.cluster_layers import cluster_layers as cluster_layers
from stage_dp.errors import NoStages as NoStages
from stage_dp.errors import ScheduleError as ScheduleError
from stage_dp.errors import StageError as StageError
from stage_dp.microbatches import check_microbatches as check_microbatches
from stage_dp.price import Front as Front
from stage_dp.price import Layers as Layers
from stage_dp.price import Price as Price
from stage_dp.price import Transfers as Transfers
from stage_dp.price import pareto as pareto
from stage_dp.schedule import Kind as Kind
from stage_dp.schedule import Schedule as Schedule
from stage_dp.schedule import Task as Task
from stage_dp.schedules import SCHEDULES as SCHEDULES
from stage_dp.schedules import eager_one_f_one_b as eager_one_f_one_b
from stage_dp.schedules import forward_only as forward_only
from stage_dp.schedules import gpipe as gpipe
from stage_dp.schedules import interleaved as interleaved
from stage_dp.schedules import one_f_one_b as one_f_one_b
from stage_dp.schedules import zero_bubble as zero_bubble
from stage_dp.simulate import MemoryCurve as MemoryCurve
from stage_dp.simulate import Move as Move
from stage_dp.simulate import Span as Span
from stage_dp.simulate import Timeline as Timeline
from stage_dp.simulate import peak_of as peak_of
from stage_dp.simulate import simulate as simulate
from stage_dp.simulate import stage_peak as stage_peak
from stage_dp.split import split_best as split_best
from stage_dp.split import split_layers as split_layers
from stage_dp.stages import Stage as Stage
from stage_dp.stages import Stages as Stages
from stage_dp.submesh import Submesh as Submesh
from stage_dp.submesh import place as place
from stage_dp.submesh import submesh_shapes as submesh_shapes
from stage_dp.trace import chrome_trace as chrome_trace

__all__ = [
    "SCHEDULES",
    "Front",
    "Kind",
    "Layers",
    "MemoryCurve",
    "Move",
    "NoStages",
    "Price",
    "Schedule",
    "ScheduleError",
    "Span",
    "Stage",
    "StageError",
    "Stages",
    "Submesh",
    "Task",
    "Timeline",
    "Transfers",
    "check_microbatches",
    "chrome_trace",
    "cluster_layers",
    "eager_one_f_one_b",
    "forward_only",
    "gpipe",
    "interleaved",
    "one_f_one_b",
    "pareto",
    "peak_of",
    "place",
    "simulate",
    "split_best",
    "split_layers",
    "stage_peak",
    "submesh_shapes",
    "zero_bubble",
]
