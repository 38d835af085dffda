# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a train step to a plan, and to another plan
#
# Nothing here needs an accelerator: the hardware is a name, the arguments are shapes.

# %%
import tempfile

import jax
import jax.numpy as jnp
import optax
from IPython.display import display
from jax.sharding import PartitionSpec as P

import autosharding as asd

# %% [markdown]
# ## The step
#
# Four dense layers and Adam, written for one device. The loss is
#
# $$L(w) = \frac{1}{n} \sum \left(\mathrm{relu}(\ldots \mathrm{relu}(x w_1) \ldots)\, w_4 - y\right)^2 .$$


# %%
def loss_fn(params, batch):
    x = batch["x"]
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return jnp.mean(jnp.square(x @ params[-1] - batch["y"]))


# %% [markdown]
# A train step takes the state and returns the next one.

# %%
adam = optax.adam(1e-3)


def train_step(state, batch):
    loss, gradients = jax.value_and_grad(loss_fn)(state["params"], batch)
    updates, optimizer = adam.update(gradients, state["adam"])
    return {"params": optax.apply_updates(state["params"], updates), "adam": optimizer}, loss


# %% [markdown]
# Its arguments, as shapes: 4 x 4096 x 4096 weights, twice as much for Adam's moments, 8192 rows of data.

# %%
params = [jax.ShapeDtypeStruct((4096, 4096), jnp.float32)] * 4
state = {"params": params, "adam": jax.eval_shape(adam.init, params)}
rows = jax.ShapeDtypeStruct((8192, 4096), jnp.float32)
args = (state, {"x": rows, "y": rows})

# %% [markdown]
# ## The plan
#
# One node of eight H100s. The plan draws itself: what is split where, what is sent, how long, how many bytes.

# %%
plan = asd.plan(train_step, *args, cluster="h100:1x8")
display(plan)

# %% [markdown]
# Every number in it is at hand. The gap says how far from the best plan this one can be at most.

# %%
print(f"{plan.seconds * 1e3:.2f} ms, of which {plan.communication_seconds * 1e3:.2f} ms are communication")
print(f"{plan.memory.peak / 2**20:.0f} MiB per device at the peak")
print(f"proved to be within {plan.gap:.2%} of the best")

# %% [markdown]
# Every collective knows the line of the step that caused it.

# %%
for c in plan.collectives:
    print(f"{c.kind:15} {','.join(c.axes):4} {c.bytes / 2**20:8.2f} MiB   {c.line}")

# %% [markdown]
# ## Another method
#
# The plans that people write by hand are constraints on the same program, so they compare under the same
# prices. Here every array of the state is split over all devices: FSDP, also known as ZeRO-3.

# %%
fsdp = asd.plan(train_step, *args, cluster="h100:1x8", method="fsdp")
print(f"auto {plan.seconds * 1e3:.2f} ms, fsdp {fsdp.seconds * 1e3:.2f} ms")
print(plan.diff(fsdp))

# %% [markdown]
# ## Less memory
#
# Give each device a quarter less than the plan wanted. The state moves out of the way; the step is no faster.

# %%
limit = plan.memory.peak * 3 // 4
tight = asd.plan(train_step, *args, cluster="h100:1x8", mesh={"x": 8}, memory=limit)
print(f"{tight.memory.peak / 2**20:.0f} MiB of {limit / 2**20:.0f} MiB, {tight.seconds * 1e3:.2f} ms")
print(plan.diff(tight))

# %% [markdown]
# ## A constraint
#
# Insist on the columns of the first weight being split; the rest is planned around it. A constraint is a
# `PartitionSpec` for the path of an argument.

# %%
constraints = {"[0]['params'][0]": P(None, "x")}
changed = asd.plan(train_step, *args, cluster="h100:1x8", constraints=constraints)
print(plan.diff(changed))

# %% [markdown]
# ## Keep it
#
# A plan is a JSON file. Loaded again, it runs the step without the solver:
# `asd.parallelize(train_step, plan=asd.load_plan("plan.json"))`.

# %%
path = tempfile.mkdtemp() + "/plan.json"
changed.save(path)
print(asd.load_plan(path) == changed)
