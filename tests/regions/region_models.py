"""Small steps with control flow in them: name -> (step, arguments, how many of the results are fed back)."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape, seed=0):
    scale = shape[-2] ** 0.5 if len(shape) > 1 else 1.0
    return jnp.asarray(np.random.default_rng(seed + sum(shape)).standard_normal(shape) / scale, jnp.float32)


def adam(params, moments, gradients):
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradients)
    second = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, moments[1], gradients)
    params = jax.tree.map(lambda p, m, v: p - 0.01 * m / (jnp.sqrt(v) + 1e-3), params, first, second)
    return params, (first, second)


# ---- a llama: grouped-query attention, gated MLP, remat, layers scanned or unrolled -----------------------------


def rms_norm(x, gain):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * gain


def layer(x, p, heads=4):
    batch, length, width = x.shape
    h = rms_norm(x, p["norm1"])
    q, k, v = ((h @ p[n]).reshape(batch, length, -1, width // heads) for n in ("wq", "wk", "wv"))
    k, v = (jnp.repeat(a, q.shape[2] // a.shape[2], 2) for a in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, jnp.finfo(x.dtype).min)
    x = x + jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(x.shape) @ p["wo"]
    h = rms_norm(x, p["norm2"])
    return x + (jax.nn.silu(h @ p["up"]) * (h @ p["gate"])) @ p["down"]


def llama_shapes(layers, width, vocabulary, dtype=jnp.float32):
    def array(*shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    d, h = width, 4 * width
    sizes = {"wq": (d, d), "wk": (d, d // 2), "wv": (d, d // 2), "wo": (d, d)}
    sizes |= {"up": (d, h), "gate": (d, h), "down": (h, d), "norm1": (d,), "norm2": (d,)}
    return {
        "embed": array(vocabulary, d),
        "layers": {n: array(layers, *s) for n, s in sizes.items()},
        "head": array(d, vocabulary),
    }


def llama_loss(params, tokens):
    """`params["layers"]` are stacked arrays, to be scanned, or a list of layers."""
    x = params["embed"][tokens[:, :-1]]
    block = jax.checkpoint(layer)
    if isinstance(params["layers"], list):
        for p in params["layers"]:
            x = block(x, p)
    else:
        x, _ = jax.lax.scan(lambda x, p: (block(x, p), None), x, params["layers"])
    logits = (x @ params["head"]).astype(jnp.float32)
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, -1) - picked)


def llama_step(state, tokens):
    params, moments = state
    loss, gradients = jax.value_and_grad(llama_loss)(params, tokens)
    return adam(params, moments, gradients), loss


def llama():
    params = jax.tree.map(lambda a: normal(*a.shape), llama_shapes(2, 16, 32))
    zeros = jax.tree.map(jnp.zeros_like, params)
    tokens = np.random.default_rng(1).integers(0, 32, (16, 9)).astype(np.int32)
    return llama_step, ((params, (zeros, zeros)), tokens)


# ---- others ----------------------------------------------------------------------------------------------------


def lstm():
    hidden = 16
    params = {
        "x": normal(8, 4 * hidden),
        "h": normal(hidden, 4 * hidden),
        "b": normal(4 * hidden),
        "out": normal(16, 4),
    }

    def cell(params, carry, x):
        h, c = carry
        i, f, o, g = jnp.split(x @ params["x"] + h @ params["h"] + params["b"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def loss(params, x, y):
        zeros = jnp.zeros((x.shape[0], hidden))
        _, h = jax.lax.scan(lambda c, x: cell(params, c, x), (zeros, zeros), x.swapaxes(0, 1))
        return jnp.mean((h.swapaxes(0, 1) @ params["out"] - y) ** 2)

    def step(params, x, y):
        value, gradients = jax.value_and_grad(loss)(params, x, y)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), value

    return step, (params, normal(16, 6, 8), normal(16, 6, 4))


def loops():
    """`fori_loop`s of a count that is known and of one that is not."""

    def step(w, x, n):
        y = jax.lax.fori_loop(0, n, lambda i, x: jnp.tanh(x @ w) + i, x)
        y = jax.lax.fori_loop(0, 3, lambda i, x: jnp.sin(x @ w), y)
        return w - 0.1 * (x.T @ y), y.sum()

    return step, (normal(16, 16), normal(32, 16), jnp.int32(5))


def until():
    """A `while_loop` that ends by what it computes."""

    def step(w, x):
        def goes_on(state):
            return (state[0] < 20) & (jnp.sum(state[1] ** 2) > 1.0)

        n, y = jax.lax.while_loop(goes_on, lambda s: (s[0] + 1, 0.5 * jnp.tanh(s[1] @ w)), (0, x))
        return w - 0.1 * (x.T @ y), n

    return step, (normal(16, 16), normal(32, 16))


def loss_scaling():
    def loss(params, x, y):
        return jnp.mean((jnp.tanh(x @ params[0]) @ params[1] - y) ** 2)

    def step(state, x, y):
        params, scale = state
        gradients = jax.grad(lambda p: loss(p, x, y) * scale)(params)
        gradients = jax.tree.map(lambda g: g / scale, gradients)
        finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(g)) for g in gradients]))
        params = jax.lax.cond(
            finite, lambda p, g: jax.tree.map(lambda p, g: p - 0.1 * g, p, g), lambda p, g: p, params, gradients
        )
        return (params, jnp.where(finite, scale * 2, scale * 0.5)), finite

    return step, (([normal(16, 32), normal(32, 8)], jnp.float32(8)), normal(16, 16), normal(16, 8))


def decode():
    """One token through a scan over layers, each with its own KV cache."""
    layers, batch, length, heads, size = 2, 8, 16, 4, 8
    width = heads * size
    params = {n: normal(layers, width, width, seed=i) for i, n in enumerate("qkvo")}

    def step(cache, params, x, at):
        def one(x, stacked):
            p, (keys, values) = stacked
            q, k, v = ((x @ p[n]).reshape(batch, 1, heads, size) for n in "qkv")
            keys = jax.lax.dynamic_update_slice(keys, k, (0, at, 0, 0))
            values = jax.lax.dynamic_update_slice(values, v, (0, at, 0, 0))
            scores = jnp.where(jnp.arange(length) <= at, jnp.einsum("bqhd,bkhd->bhqk", q, keys), -1e9)
            out = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), values).reshape(batch, width)
            return x + out @ p["o"], (keys, values)

        x, cache = jax.lax.scan(one, x, (params, cache))
        return cache, x

    zeros = jnp.zeros((layers, batch, length, heads, size))
    return step, ((zeros, zeros), params, normal(batch, width), jnp.int32(3))


def nested():
    """A scan in a scan, differentiated, closing over an array; a `custom_vjp` and random bits inside."""
    table = normal(16, 16, seed=9)

    @jax.custom_vjp
    def clipped(x):
        return jnp.clip(x, -1, 1)

    clipped.defvjp(lambda x: (clipped(x), x), lambda x, g: (g * (jnp.abs(x) < 2),))

    def step(w, x, key):
        def outer(c, stacked):
            w, k = stacked
            c, means = jax.lax.scan(lambda c, _: (clipped(c @ w) @ table, c.mean(0)), c, None, length=3)
            return c * (jax.random.bits(k, c.shape) > 2**30), means

        def loss(w):
            c, means = jax.lax.scan(outer, x, (w, jax.random.split(key, w.shape[0])), unroll=2)
            return jnp.mean(c**2) + jnp.sum(means)

        value, gradient = jax.value_and_grad(loss)(w)
        return w - 0.1 * gradient, value

    return step, (normal(4, 16, 16), normal(32, 16), jax.random.key(3))


def branches():
    def step(w, x, i):
        def nothing(x):
            return jnp.zeros((x.shape[0], w.shape[1]))

        y = jax.lax.switch(i, [lambda x: x @ w, lambda x: jnp.tanh(x) @ w, nothing], x)
        return w - 0.01 * (x.T @ y), y.sum()

    return step, (normal(16, 16), normal(32, 16), jnp.int32(1))


def updates():
    """Several updates in one step, and gradients accumulated by hand: differentiation inside a scan."""

    def loss(w, x):
        return jnp.mean(jnp.tanh(x @ w) ** 2)

    def update(w, x):
        value, gradient = jax.value_and_grad(loss)(w, x)
        return w - 0.1 * gradient, value

    def step(w, x):
        w, losses = jax.lax.scan(update, w, x.reshape(4, 16, 16))
        total, _ = jax.lax.scan(lambda g, x: (g + jax.grad(loss)(w, x), None), jnp.zeros_like(w), x.reshape(2, 32, 16))
        return w - 0.05 * total, losses

    return step, (normal(16, 8), normal(64, 16))


def rows():
    """`lax.map` over the batch: the time of the loop is the batch."""

    def step(w, x):
        y = jax.lax.map(lambda row: jnp.tanh(row @ w).sum(), x)
        return w * y.mean(), y

    return step, (normal(16, 16), normal(32, 16))


MODELS = {f.__name__: f for f in (llama, lstm, loops, until, loss_scaling, decode, nested, branches, updates, rows)}
