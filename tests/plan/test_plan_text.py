"""A plan and a difference as a reader sees them: text, HTML, MLIR's notation."""

from dataclasses import replace

from jax.sharding import PartitionSpec as P
from small_plan import COLUMNS, other_plan, small_plan

from autosharding.plan_mlir import plan_mlir, sharding, tensor
from autosharding.plan_tables import MOST_ROWS, common_name
from autosharding.spec import Spec

TEXT = """\
plan of step<T>, 3 ops
  method     auto
  mesh       x=2, y=4 on h100:1x8: 8 x H100-SXM5-80GB
  time       23.1 us = 4.5 us compute + 18.6 us communication
  bound      no such plan takes less than 23.0 us: gap 0.45%
  memory     5.5 KiB per device, of 64.0 MiB, reached at step 2 (mystery, train.py:7 (loss_fn))
  arguments  2.5 KiB per device in 2 arrays

inputs
  path           array           role       per device
  [0]['w<0>']    f32[64@y,32]    parameter     2.0 KiB
  [1]['x']       f32[16@x,64@y]  batch           512 B

collectives
  kind        axes  count    bytes     time  phase    line                  cause
  all-reduce  y         1  1.0 KiB  18.6 us  forward  train.py:7 (loss_fn)  partial sums over y
  1 in all, 1.0 KiB, 18.6 us

largest at the peak
  array        per device
  [0]['w<0>']     2.0 KiB

run replicated, because nothing is known of them
  op  where                           reason
   2  mystery (train.py:7 (loss_fn))  there is no rule for it

tried and not taken
  mesh           time  note
  x=8          9.1 us
  x=4,y=2  not solved  its bound is above the best

notes
  note
  a hint was not taken"""


def test_text():
    assert str(small_plan()) == TEXT


def test_inputs_that_are_alike_share_a_row():
    plan = small_plan()
    layers = [replace(plan.inputs[0], name=f"[0].layers[{n}].w", becomes=None) for n in range(12)]
    text = str(replace(plan, inputs=(*plan.inputs, *layers), outputs=()))
    assert "  [0].layers[*].w  x 12  f32[64@y,32]    parameter    24.0 KiB" in text


def test_a_long_list_is_cut():
    plan = small_plan()
    many = [replace(plan.inputs[1], name="abcdefgh"[i % 8] * (i + 1)) for i in range(MOST_ROWS + 3)]
    assert "and 3 more kinds of inputs" in str(replace(plan, inputs=tuple(many), outputs=()))


def test_common_name():
    assert common_name(["a[0].w3.b", "a[0].w14.b"]) == "a[0].w*.b"
    assert common_name(["a[0]"]) == "a[0]"


def test_html_escapes():
    html = small_plan()._repr_html_()
    assert "step&lt;T&gt;" in html
    assert "w&lt;0&gt;" in html
    assert "<T>" not in html
    assert html.count("<table>") == html.count("</table>") == 7


def test_shardings_for_plain_jax():
    assert small_plan().shardings == {"[0]['w<0>']": P("y", None), "[1]['x']": P("x", "y")}


# ---- MLIR ------------------------------------------------------------------------------------------------


def test_mlir_notation():
    mesh = ("data", "model")
    assert sharding(Spec((("data",), (), ("model",))), mesh) == "<@mesh, [[0], [], [1]]>"
    assert sharding(Spec((("data",), ("model",), ())), mesh) == "<@mesh, [[0], [1]]>"
    assert sharding(Spec((("data",), (), ()), ("model",)), mesh) == "<@mesh, [[0]], partial = sum[1]>"
    assert sharding(Spec((("model", "data"),)), mesh) == "<@mesh, [[1, 0]]>"
    assert sharding(Spec((), ("data",), "or"), mesh) == "<@mesh, [[]], partial = bitwise_or[0]>"
    assert sharding(Spec(((), ())), mesh) == "<@mesh, [[]]>"


def test_mlir_types():
    types = ["f32[8,4]", "bool[3]", "u8[]", "c64[2]", "key<fry>[4]"]
    assert [tensor(t) for t in types] == [
        "tensor<8x4xf32>",
        "tensor<3xi1>",
        "tensor<ui8>",
        "tensor<2xcomplex<f32>>",
        "tensor<4x!jax.key<fry>>",
    ]


def test_mlir_of_a_plan():
    text = plan_mlir(small_plan())
    assert "mesh.mesh @mesh(shape = 2x4)  // x, y" in text
    assert (
        "%c = dot_general(<@mesh, [[0], [1]]>, <@mesh, [[1]]>) -> <@mesh, [[0]], partial = sum[1]> : "
        "tensor<16x32xf32>" in text
    )
    assert (
        "%c_0 = mesh.all_reduce %c on @mesh mesh_axes = [1] : <@mesh, [[0]], partial = sum[1]> -> <@mesh, [[0]]>"
        in text
    )


# ---- differences -----------------------------------------------------------------------------------------


def test_no_difference():
    found = small_plan().diff(small_plan())
    assert not found
    assert found.ops == 0
    assert "0 ops split otherwise" in str(found)


def test_a_difference():
    found = small_plan().diff(other_plan())
    assert found
    assert [(c.name, c.before, c.after) for c in found.inputs] == [
        ("[0]['w<0>']", "f32[64@y,32]", "f32[64,32]"),
        ("[1]['x']", "f32[16@x,64@y]", "f32[16@x,64]"),
    ]
    (traffic,) = found.traffic
    assert (traffic.kind, traffic.axes, traffic.count, traffic.bytes) == ("all-reduce", ("y",), (1, 0), (1024, 0))
    assert (found.ops, found.memory, found.method) == (2, (5632, 20480), ("auto", "data"))
    assert "[0]['w<0>']    parameter  f32[64@y,32]" in str(found)
    assert "w&lt;0&gt;" in found._repr_html_()


def test_other_programs():
    plan = small_plan()
    other = replace(plan, fingerprint="f", inputs=(replace(plan.inputs[0], spec=COLUMNS),), outputs=())
    found = plan.diff(other)
    assert found.ops is None
    assert found.inputs[1].after == ""
    assert "other programs" in str(found)
