"""A small plan made by hand, without the planner: a split matmul, its all-reduce, and a state that is updated."""

from dataclasses import replace

from autosharding.plan import (
    AS_MADE,
    Alternative,
    Copy,
    Held,
    Input,
    Memory,
    Output,
    Plan,
    Step,
    Unresolved,
)
from autosharding.reshard import SpecSpace
from autosharding.spec import Spec
from cost_model import Cluster

WHOLE = Spec(((), ()))
ROWS = Spec((("x",), ()))
COLUMNS = Spec(((), ("y",)))
DOWN = Spec((("y",), ()))
BOTH = Spec((("x",), ("y",)))
PARTIAL = Spec((("x",), ()), ("y",))


def small_plan() -> Plan:
    """`x @ w` with the summed dim split over y, on a mesh x=2,y=4; then `w - 1`; then a primitive unknown."""
    topology = Cluster.parse("h100:1x8").topology({"x": 2, "y": 4})
    moves = SpecSpace((16, 32), 4, "sum", topology).path(PARTIAL, ROWS)
    line = "train.py:7 (loss_fn)"
    matmul = Step(
        "dot_general",
        "forward",
        "layer_<0>",
        line,
        (("i", ("x",)), ("k", ("y",))),
        (AS_MADE, AS_MADE),
        (BOTH, DOWN),
        (PARTIAL,),
        ("c",),
        ("f32[16,32]",),
        1.5e-6,
    )
    update = Step("sub", "update", "", "", (), (AS_MADE,), (DOWN,), (DOWN,), ("d",), ("f32[64,32]",), 1e-6)
    strange = Step("mystery", "forward", "", line, (), (0,), (ROWS,), (ROWS,), ("e",), ("f32[16,32]",), 2e-6)
    return Plan(
        name="step<T>",
        fingerprint="0123456789abcdef",
        method="auto",
        topology=topology,
        inputs=(
            Input("[0]['w<0>']", "f32", (64, 32), 4, DOWN, "parameter", 0),
            Input("[1]['x']", "f32", (16, 64), 4, BOTH, "batch", None),
        ),
        steps=(matmul, update, strange),
        copies=(Copy(2, "c", "f32[16,32]", AS_MADE, ROWS, moves, 2, False, line, "forward", "partial sums over y"),),
        outputs=(
            Output("[0]['w<0>']", "f32[64,32]", AS_MADE, DOWN, 0),
            Output("[1]", "f32[16,32]", AS_MADE, ROWS, None),
        ),
        memory=Memory(64 << 20, 2560, 5632, 2, (3584, 5632, 5632), (Held("[0]['w<0>']", 2048),)),
        bound=2.3e-5,
        unlimited=0.0,
        unresolved=(Unresolved(2, f"mystery ({line})", "there is no rule for it"),),
        alternatives=(Alternative("x=8", 9.1e-6, ""), Alternative("x=4,y=2", None, "its bound is above the best")),
        notes=("a hint was not taken",),
    ).verify()


def other_plan() -> Plan:
    """The same step with everything split over x alone and no collective."""
    plan = small_plan()
    return replace(
        plan,
        method="data",
        inputs=(replace(plan.inputs[0], spec=WHOLE), replace(plan.inputs[1], spec=ROWS)),
        steps=(
            replace(plan.steps[0], factors=(("i", ("x",)),), operands=(ROWS, WHOLE), results=(ROWS,)),
            replace(plan.steps[1], operands=(WHOLE,), results=(WHOLE,)),
            replace(plan.steps[2], reads=(AS_MADE,)),
        ),
        copies=(),
        outputs=(replace(plan.outputs[0], spec=WHOLE), plan.outputs[1]),
        memory=replace(plan.memory, peak=20480),
    ).verify()
