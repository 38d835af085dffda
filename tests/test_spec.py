import pytest

from autosharding.spec import Spec

pytestmark = pytest.mark.core

MESH = {"x": 2, "y": 4}


def test_prints_in_jax_notation():
    assert Spec((("x",), ()), ("y",)).annotate("f32", (8, 4)) == "f32[8@x,4]{U:y}"
    assert Spec((("x", "y"), ())).annotate("bf16", (8, 4)) == "bf16[8@(x,y),4]"
    assert str(Spec(((), ("y",)), ("x",), "max")) == "[-,@y]{U:x max}"


def test_local_shape_and_bytes():
    spec = Spec((("x", "y"), ()))
    assert spec.local_shape((16, 3), MESH) == (2, 3)
    assert spec.local_bytes((16, 3), 4, MESH) == 24


@pytest.mark.parametrize(
    "spec",
    [
        Spec((("x",), ("x",))),  # an axis twice
        Spec((("x",), ()), ("x",)),  # split and partial
        Spec((("z",), ())),  # unknown
        Spec(((), ("y",))),  # 6 does not divide by 4
        Spec(((),)),  # rank
    ],
)
def test_what_does_not_fit(spec):
    assert not spec.fits((8, 6), MESH)
