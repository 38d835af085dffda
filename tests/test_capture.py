import contextlib
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autosharding._jax import user_line
from autosharding.capture import capture
from autosharding.errors import UnsupportedProgram
from autosharding.graph import Graph

pytestmark = pytest.mark.core

F32 = jax.ShapeDtypeStruct((4, 4), jnp.float32)


def names(graph: Graph) -> list[str]:
    return [op.name for op in graph.ops]


def test_calls_are_inlined_and_dead_code_goes():
    def f(x):
        jnp.cos(x)
        return [jax.nn.relu(jax.jit(jnp.tanh)(x))]

    assert names(capture(f, [F32])) == ["tanh", "max"]


def test_what_means_just_its_body_is_replaced_by_it():
    batched = jax.custom_batching.custom_vmap(jnp.tanh)
    batched.def_vmap(lambda size, is_batched, x: (jnp.tanh(x), is_batched[0]))

    def f(x):
        named = jax.lax.composite(jnp.sin, "my.sine")(x)
        linear = jax.custom_derivatives.linear_call(lambda r, x: r * x, lambda r, t: r * t, x, named)
        return [batched(linear)]

    assert names(capture(f, [F32])) == ["sin", "mul", "tanh"]


def test_common_subexpressions_once():
    assert names(capture(lambda x: [jnp.sin(x) * jnp.sin(x)], [F32])) == ["sin", "mul"]


def test_a_sum_of_a_sum_is_the_sum_itself():
    def f(x):
        once = jnp.sum(x, (0, 1, 2))
        twice = jnp.sum(jnp.sum(x, (1, 2), keepdims=True)[:, 0], (0, 1))
        other = jnp.sum(jnp.sum(x, 0), (0, 2))
        return [once, twice, other]

    graph = capture(f, [jax.ShapeDtypeStruct((4, 3, 1, 3), jnp.float32)])
    assert graph.outputs[0] == graph.outputs[1] != graph.outputs[2]
    assert names(graph) == ["reduce_sum"] * 3


PACKAGES = Path(jax.__file__).parent.parent


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (["jax/_src/lax.py", "flax/nnx/linear.py", contextlib.__file__, "/home/me/train.py"], "train.py:3 (f3)"),
        (["jax/_src/lax.py", "/home/me/train.py", "models/gpt.py"], "train.py:1 (f1)"),
        (
            ["flax/linen/linear.py", "models/gpt.py", "models/top.py", "/home/me/train.py"],
            "gpt.py:1 (f1), from train.py:3",
        ),
        (["jax/_src/lax.py", "optax/adam.py", "models/fit.py"], "fit.py:2 (f2)"),
        (["jax/_src/lax.py", "optax/adam.py", "<string>"], "adam.py:1 (f1)"),
        ([], ""),
    ],
)
def test_the_line_of_an_op_is_the_users_or_that_of_a_model(files, line):
    frames = [
        SimpleNamespace(file_name=f if f[0] in "/<" else str(PACKAGES / f), line_num=i, function_name=f"f{i}")
        for i, f in enumerate(files)
    ]
    assert user_line(SimpleNamespace(traceback=SimpleNamespace(frames=frames))) == line


def test_phases_scopes_and_source():
    def loss(w, x):
        with jax.named_scope("layer"):
            return jnp.sum(jnp.tanh(x @ w))

    def step(w, x):
        return [w - 0.1 * jax.grad(loss)(w, x)]

    graph = capture(step, [F32, F32])
    by_name = {op.name: op for op in graph.ops}
    assert by_name["tanh"].phase == "forward"
    assert by_name["tanh"].scope == "layer"
    assert "test_capture.py" in by_name["tanh"].source
    assert by_name["transpose"].phase == "backward"
    assert by_name["sub"].phase in ("backward", "update")
    assert graph.ops[-1].phase == "update"


def test_a_step_without_gradient_is_all_forward():
    assert {op.phase for op in capture(lambda x: [x @ x], [F32]).ops} == {"forward"}


def test_checkpoint_recomputes_behind_a_barrier():
    def loss(w, x):
        return jnp.sum(jax.checkpoint(lambda w, x: jnp.sin(jnp.sin(x @ w)))(w, x))

    graph = capture(lambda w, x: [jax.grad(loss)(w, x)], [F32, F32])
    found = names(graph)
    assert "optimization_barrier" in found
    assert found.index("optimization_barrier") < found.index("cos")
    assert found.count("dot_general") >= 2


def test_closed_over_arrays_become_inputs():
    table = np.ones((4, 4), np.float32)
    graph = capture(lambda x: [x + table, x * table], [F32])
    assert graph.input_names == ("[0]", "const_0")
    assert len(graph.constants) == 1


def test_typed_keys():
    graph = capture(lambda k: [jax.random.normal(k, (4,))], [jax.eval_shape(lambda: jax.random.key(0))])
    assert graph.inputs[0].dtype == "key<fry>"
    assert graph.inputs[0].itemsize == 8


def test_control_flow_lies_between_its_borders():
    def f(x):
        return [jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=3)[0]]

    assert names(capture(f, [F32])) == ["scan", "sin", "scan.end"]


def test_ordered_effects_are_refused_with_the_line():
    def f(x):
        jax.debug.print("{}", x, ordered=True)
        return [x]

    with pytest.raises(UnsupportedProgram, match=r"ordered.*test_capture.py"):
        capture(f, [F32])


def test_prints_like_jax_and_has_a_fingerprint():
    graph = capture(lambda x: [jnp.sin(x)], [F32], name="wave")
    assert "b:f32[4,4] = sin" in str(graph)
    assert "wave" in graph._repr_html_()
    other = capture(lambda x: [jnp.sin(x)], [jax.ShapeDtypeStruct((8, 4), jnp.float32)], name="wave")
    assert graph.fingerprint == capture(lambda x: [jnp.sin(x)], [F32], name="wave").fingerprint
    assert graph.fingerprint != other.fingerprint


def test_params_that_are_numbers_of_numpy():
    graph = capture(lambda x: [jax.lax.concatenate([x, x], np.int64(0))], [F32])
    assert "concatenate[dimension=0] a a" in str(graph)
    assert graph.fingerprint == capture(lambda x: [jax.lax.concatenate([x, x], 0)], [F32]).fingerprint
