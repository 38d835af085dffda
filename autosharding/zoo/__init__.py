"""Model zoo: well-known models as plain JAX train steps, made to be planned at full size.

What the zoo believes: a model is a train step `(state, batch) -> (state, loss)` and the shapes of its
arguments. Building one allocates nothing: `Model.args` are `jax.ShapeDtypeStruct`s, so that a model of 175
billion parameters is planned on a laptop. The steps are written as users write them: bfloat16 compute,
float32 master weights and Adam moments, unrolled layers, each under `jax.checkpoint`, einsum attention; no
library but JAX. Every family also has a size `tiny`, small enough to train on one core.

    model = zoo.build("gpt:1.3b", batch=64, sequence=1024)
    plan = asd.plan(model.step, *model.args, cluster="h100:1x8")
"""

from autosharding.zoo.build import build, names
from autosharding.zoo.model import Model, State

__all__ = ["Model", "State", "build", "names"]
