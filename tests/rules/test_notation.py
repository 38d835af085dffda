"""The sentence of a rule: read, written, wrong; and rules of the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental.pallas import pallas_call
from jax.extend.core import Primitive
from jax.interpreters import mlir

from autosharding.capture import capture
from autosharding.errors import RuleError
from autosharding.graph import Op, Value
from autosharding.rules import REGISTRY, Notation, parse, register_user_rule, rule_for, rules_table
from autosharding.spec import MONOIDS
from tests.rules.harness import check

FACTORS = st.sampled_from(["a", "b", "heads", "d_1", "K"])


@st.composite
def notations(draw: st.DrawFn) -> Notation:
    def dims() -> Any:
        names = iter(draw(st.lists(FACTORS, unique=True, max_size=5)))
        found = []
        for f in names:
            more = [f, *(g for g in [next(names, None)] if g)] if draw(st.booleans()) else [f]
            found.append(tuple(more))
        return (*found, *[()] * draw(st.integers(0, 2)))

    operands = tuple(dims() for _ in range(draw(st.integers(0, 3))))
    results = tuple(dims() for _ in range(draw(st.integers(0, 2))))
    shown = sorted({f for side in (*operands, *results) for d in side for f in d})
    kept = {f for side in results for d in side for f in d}
    whole, reduced = set(), {}
    for f in shown:
        kind = draw(st.sampled_from(["", "whole", *MONOIDS]))
        if kind == "whole":
            whole.add(f)
        elif kind or f not in kept:
            reduced[f] = kind or "sum"
    positions = st.frozensets(st.integers(0, max(0, len(operands) - 1)), min_size=1, max_size=2)
    some = [draw(positions) for _ in range(draw(st.integers(0, 2)))] if operands else []
    added = draw(positions) if operands and draw(st.booleans()) else frozenset()
    return Notation(operands, results, reduced, frozenset(whole), tuple(some), draw(st.booleans()), added)


@given(notations())
def test_what_is_written_is_read(said: Notation) -> None:
    assert parse(str(said)) == said


def test_every_built_in_rule_is_read_back() -> None:
    table = rules_table()
    assert len(table) == len(REGISTRY)
    for line in table:
        said = parse(line.rule)
        assert str(said) == line.rule
        assert line.notes, f"{line.primitive} has no docstring"


def test_what_a_user_rule_cannot_say() -> None:
    with pytest.raises(RuleError, match="halo"):
        register_user_rule("a_window", "i h -> i h {h: slides}")
    with pytest.raises(RuleError, match="`run`"):
        register_user_rule("a_search", "i j -> i {j: joined}")
    assert "a_window" not in REGISTRY


def test_sums_as_einsum_does() -> None:
    said = parse("b s d, d f -> b s f")
    assert said.reduced == {"d": "sum"}
    assert str(said) == "b s d, d f -> b s f  {d: sum}"
    assert parse("i j -> i {j: max}").reduced == {"j": "max"}
    assert parse("i j -> i {j: whole}").reduced == {}
    assert parse("... (h d), . -> ... h d").operands == ((("...",), ("h", "d")), ())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("i k, k j", "one `->`"),
        ("i -> j -> k", "one `->`"),
        ("i k, -> i", "nothing between two commas"),
        ("i (k -> i", "a `)` is missing"),
        ("i k) -> i", "out of place"),
        ("i () -> i", "out of place"),
        ("i i -> i", "stands twice"),
        ("i $ -> i", "something other than names"),
        ("i 2 -> i", "something other than names"),
        ("i linear -> i", "word of the notes"),
        ("i (a 1) -> i", "can only hold names"),
        ("i j -> i {j: product}", "should say whole"),
        ("i j -> i {k: sum}", "no factor of the rule"),
        ("i j -> i {j: sum", "do not end with"),
        ("i j -> i {linear: 1}", "positions of operands"),
    ],
)
def test_what_cannot_be_read(text: str, reason: str) -> None:
    with pytest.raises(RuleError, match=r"cannot be read") as e:
        parse(text)
    assert reason in str(e.value)


def primitive(name: str, f: Any) -> Primitive:
    """A new primitive that XLA knows as `f`."""
    p = Primitive(name)
    p.def_impl(f)
    p.def_abstract_eval(lambda *avals, **params: jax.core.ShapedArray(*_of(jax.eval_shape(f, *avals))))
    mlir.register_lowering(p, mlir.lower_fun(f, multiple_results=False))
    return p


def _of(x: Any) -> tuple[Any, Any]:
    return x.shape, x.dtype


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


@pytest.mark.usefixtures("registry")
def test_a_user_rule_runs_sharded() -> None:
    p = primitive("project", lambda x, w: jnp.einsum("bsd,df->bsf", x, w))
    args = np.ones((4, 2, 4), np.float32), np.arange(16, dtype=np.float32).reshape(4, 4)
    assert check(p.bind, *args) == {"project": 0}
    register_user_rule(p, "b s d, d f -> b s f  {linear: 0; linear: 1}")
    assert check(p.bind, *args)["project"] > 20
    register_user_rule(p, "... d, d f -> ... f")
    assert check(p.bind, *args)["project"] > 10


def double(x: Any) -> Any:
    def kernel(read: Any, written: Any) -> None:
        written[...] = 2 * read[...]

    return pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True, name="double")(x)


@pytest.mark.usefixtures("registry")
def test_a_kernel_has_a_rule_by_its_name() -> None:
    x = np.arange(32, dtype=np.float32).reshape(8, 4)
    register_user_rule("pallas_call:another", "i j -> i j", run=lambda shard, x: [x])
    assert check(double, x) == {"pallas_call": 0}
    register_user_rule("pallas_call:double", "i j -> i j  {linear: 0}", run=lambda shard, x: [double(x)])
    assert check(double, x)["pallas_call"] > 4


@pytest.mark.usefixtures("registry")
def test_a_call_of_foreign_code_has_a_rule_by_its_target() -> None:
    def step(x: Any) -> Any:
        return [jax.ffi.ffi_call("my_code", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)]

    op = capture(step, [jax.ShapeDtypeStruct((8, 4), np.float32)]).ops[0]
    assert 'asd.rule("ffi_call:my_code", ...)' in rule_for(op).reason
    register_user_rule("ffi_call:my_code", "i j -> i j")
    assert rule_for(op).known


@pytest.mark.usefixtures("registry")
def test_compound_dims_and_maxima() -> None:
    p = primitive("head_max", lambda x, y: jnp.max(x.reshape(x.shape[0], -1, 4), -1) + y)
    register_user_rule(p, "b (h d), 1 h -> b h  {d: whole}")
    x, y = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32), np.ones((1, 2), np.float32)
    counts = check(p.bind, x, y)
    assert counts["head_max"] > 4
    register_user_rule(p, "b (h d), 1 1 -> b 1  {d: whole}")
    with pytest.raises(RuleError, match="sizes of h and d"):
        check(p.bind, x, y)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a b -> a b", "1 operands and 1 results"),
        ("a, b c -> a c", "is given 1 dims"),
        ("a b, a c -> b c", "a dim of size 4 should be a=3"),
        ("a b c ..., b d -> a d", "is given|too few"),
    ],
)
def test_a_rule_against_the_shapes(text: str, reason: str) -> None:
    register_user_rule("tricky", text)
    shapes = [(3, 4), (4, 5), (3, 5)]
    a, b, out = (Value(i, s, "f32", "float32", 4, None) for i, s in enumerate(shapes))
    op = Op(0, "tricky", (a, b), (out,), {}, "", "forward", "train.py:3 (loss)", False, None, None)
    with pytest.raises(RuleError, match=reason) as e:
        rule_for(op)
    assert "train.py:3" in str(e.value)
