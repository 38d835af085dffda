"""Problems shaped like a transformer's train step, made without JAX: specs per mesh axis, partial sums, Adam."""

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ilp import Edge, Memory, Problem

R, P = -1, -2


@dataclass(frozen=True)
class Axis:
    size: int
    bandwidth: float
    latency: float = 5e-6

    def move(self, a: int, b: int, bytes_: float) -> float:
        """One tensor of local size bytes_ (on the other axes) from code a to code b on this axis."""
        k, n = self.size, bytes_ * (self.size - 1) / self.size / self.bandwidth
        start = self.latency * (k - 1)
        if a in (b, R):
            return 0.0 if b != P or a == P else 1e-7
        if a == P:
            return 2 * (start + n) if b == R else start + n
        return start + n if b == R else start + n / k if b != P else 1e-7


@dataclass
class Builder:
    axes: tuple[Axis, ...]
    flops: float = 4e14
    hbm: float = 2e12
    costs: list = field(default_factory=list)
    outs: list = field(default_factory=list)
    sizes: list = field(default_factory=list)
    births: list = field(default_factory=list)
    edges: list = field(default_factory=list)
    deaths: dict = field(default_factory=dict)
    cache: dict = field(default_factory=dict)

    def factor(self, codes) -> float:
        f = 1.0
        for code, axis in zip(codes, self.axes, strict=True):
            f *= axis.size if code >= 0 else 1
        return f

    def reshard(self, outs, ins, bytes_: float) -> np.ndarray:
        """Seconds from every spec in ``outs`` to every one in ``ins``."""
        key = (tuple(outs), tuple(ins), bytes_)
        if key not in self.cache:
            cost = np.zeros((len(outs), len(ins)))
            for i, a in enumerate(outs):
                for j, b in enumerate(ins):
                    local = bytes_
                    for axis, x, y in zip(self.axes, a, b, strict=True):
                        cost[i, j] += axis.move(x, y, local)
                        local /= axis.size if y >= 0 else 1
            self.cache[key] = cost
        return self.cache[key]

    def node(self, options, bytes_: float, seconds, inputs=()) -> int:
        """options: per axis a list of (out code, in codes, share of work); all combinations are strategies."""
        combos = list(itertools.product(*([options] * len(self.axes))))
        outs = tuple(tuple(o[0] for o in c) for c in combos)
        key = ("cost", tuple(options), seconds)
        if key not in self.cache:
            work = [
                seconds / np.prod([axis.size if o[2] else 1 for o, axis in zip(c, self.axes, strict=True)])
                + sum(axis.move(P, R, bytes_ * o[3]) for o, axis in zip(c, self.axes, strict=True))
                for c in combos
            ]
            self.cache[key] = np.array(work)
        at = len(self.costs)
        self.costs.append(self.cache[key])
        self.outs.append(outs)
        self.sizes.append(bytes_)
        for slot, source in enumerate(inputs):
            ins = tuple(tuple(o[1][slot] for o in c) for c in combos)
            self.edges.append(Edge(source, at, self.reshard(self.outs[source], ins, self.sizes[source])))
            self.deaths[source] = at + 1
        return at

    def alias(self, source: int) -> int:
        """The value in the one other sharding that several consumers share."""
        specs = self.outs[source]
        free = np.zeros(len(specs))
        at = len(self.costs)
        self.costs.append(self.cache.setdefault(("free", len(specs)), free))
        self.outs.append(specs)
        self.sizes.append(self.sizes[source])
        self.edges.append(Edge(source, at, self.reshard(specs, specs, self.sizes[source])))
        self.deaths[source] = at + 1
        return at

    def follow(self, a: int, b: int) -> None:
        k = len(self.outs[a])
        eye = self.cache.setdefault(("eye", k), np.where(np.eye(k, dtype=bool), 0.0, np.inf))
        self.edges.append(Edge(a, b, eye))

    @cached_property
    def end(self) -> int:
        return len(self.costs) + 1

    def problem(self, name: str) -> Problem:
        memory = []
        shared: dict = {}
        for u, (specs, size) in enumerate(zip(self.outs, self.sizes, strict=True)):
            key = (specs, size)
            if key not in shared:
                shared[key] = np.array([int(size / self.factor(s)) for s in specs], dtype=np.int64)
            memory.append(Memory(u, u, self.deaths.get(u, u + 1), shared[key]))
        return Problem(name, tuple(self.costs), tuple(self.edges), tuple(memory))


def elementwise(n: int, partial: bool = False, dims=(0, 1, 2)):
    opts = [(R, (R,) * n, False, 0)] + [(d, (d,) * n, True, 0) for d in dims]
    return opts + ([(P, (P,) * n, False, 0)] if partial else [])


DOT = [  # x[b,s,k] @ w[k,n] -> [b,s,n]
    (R, (R, R), False, 0), (0, (0, R), True, 0), (1, (1, R), True, 0), (2, (R, 1), True, 0),
    (P, (2, 0), True, 0), (P, (P, R), False, 0), (P, (R, P), False, 0),
]  # fmt: skip
GRAD = [  # x[b,s,k], dy[b,s,n] -> [k,n]
    (R, (R, R), False, 0), (P, (0, 0), True, 0), (P, (1, 1), True, 0), (0, (2, R), True, 0), (1, (R, 2), True, 0),
    (P, (P, R), False, 0), (P, (R, P), False, 0),
]  # fmt: skip
BACK = [  # dy[b,s,n] @ w[k,n] -> [b,s,k]
    (R, (R, R), False, 0), (0, (0, R), True, 0), (1, (1, R), True, 0), (2, (R, 0), True, 0),
    (P, (2, 1), True, 0), (P, (P, R), False, 0), (P, (R, P), False, 0),
]  # fmt: skip
NORM = [(R, (R,), False, 0), (0, (0,), True, 0), (1, (1,), True, 0), (2, (2,), True, 1e-3)]
ATTEND = [(R, (R,) * 3, False, 0), (0, (0,) * 3, True, 0), (2, (2,) * 3, True, 0)]


@dataclass
class Weight:
    master: int
    cast: int
    bytes_: float
    state: tuple[int, ...]


class Step(Builder):
    """The forward, backward and update of a GPT block, in program order."""

    def weight(self, k: int, n: int) -> Weight:
        master = self.node(elementwise(0, dims=(0, 1)), 4.0 * k * n, 0.0)
        state = tuple(self.node(elementwise(0, dims=(0, 1)), 4.0 * k * n, 0.0) for _ in range(2))
        return Weight(master, -1, 4.0 * k * n, state)

    def use(self, w: Weight) -> int:
        cast = self.node(elementwise(1, dims=(0, 1)), w.bytes_ / 2, w.bytes_ / self.hbm, (w.master,))
        return self.alias(cast)

    def matmul(self, options, a: int, b: int, bytes_: float, work: float) -> int:
        return self.node(options, bytes_, work / self.flops, (a, b))

    def unary(self, a: int, partial=False) -> int:
        size = self.sizes[a]
        return self.node(elementwise(1, partial), size, size / self.hbm, (a,))

    def add(self, a: int, b: int) -> int:
        return self.node(elementwise(2, True), self.sizes[a], self.sizes[a] / self.hbm, (a, b))

    def norm(self, a: int) -> int:
        stats = self.node(NORM, self.sizes[a] / 1000, self.sizes[a] / self.hbm, (a,))
        scaled = self.node(elementwise(2), self.sizes[a], self.sizes[a] / self.hbm, (a, stats))
        return self.unary(scaled)

    def update(self, w: Weight, grad: int) -> None:
        flat = elementwise(2, dims=(0, 1))
        cost = w.bytes_ / self.hbm
        moments = []
        for old in w.state:
            g = self.node(elementwise(1, True, dims=(0, 1)), w.bytes_, cost, (grad,))
            g = self.node(elementwise(1, dims=(0, 1)), w.bytes_, cost, (g,))
            decay = self.node(elementwise(1, True, dims=(0, 1)), w.bytes_, cost, (old,))
            new = self.node(flat, w.bytes_, cost, (decay, g))
            moments.append(new)
            out = self.node(elementwise(1, dims=(0, 1)), w.bytes_, 0.0, (new,))
            self.follow(old, out)
        root = self.node(elementwise(1, dims=(0, 1)), w.bytes_, cost, (moments[1],))
        root = self.node(elementwise(1, dims=(0, 1)), w.bytes_, cost, (root,))
        ratio = self.node(flat, w.bytes_, cost, (moments[0], root))
        scaled = self.node(elementwise(1, True, dims=(0, 1)), w.bytes_, cost, (ratio,))
        new = self.node(flat, w.bytes_, cost, (w.master, scaled))
        out = self.node(elementwise(1, dims=(0, 1)), w.bytes_, 0.0, (new,))
        self.follow(w.master, out)


def gpt(layers: int, axes: tuple[Axis, ...], batch: int = 8, s: int = 1024, d: int = 2048) -> Problem:  # noqa: PLR0915
    """A train step of ``layers`` blocks and a head."""
    t = Step(axes)
    act = 2.0 * batch * s * d
    shapes = {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d), "1": (d, 4 * d), "2": (4 * d, d)}
    weights = [{name: t.weight(*kn) for name, kn in shapes.items()} for _ in range(layers)]
    head = t.weight(d, 50304)
    x = t.node(elementwise(0), act, act / t.hbm)
    tape = []

    def dot(a, w, name, wide=1.0):
        k, n = shapes[name]
        return t.matmul(DOT, a, w, 2.0 * batch * s * n, 2.0 * batch * s * k * n)

    for layer in weights:
        w = {name: t.use(layer[name]) for name in shapes}
        x = t.alias(x)
        h = t.alias(t.norm(x))
        q, k, v = (t.unary(dot(h, w[n], n), True) for n in "qkv")
        a = t.node(ATTEND, act, 4.0 * batch * s * s * d / t.flops, (q, k, v))
        o = dot(a, w["o"], "o")
        y = t.alias(t.add(x, o))
        g = t.alias(t.norm(y))
        u = dot(g, w["1"], "1")
        z = t.unary(u)
        m = dot(z, w["2"], "2")
        tape.append((layer, w, x, h, q, k, v, a, y, g, u, z))
        x = t.add(y, m)
    w = t.use(head)
    h = t.alias(t.norm(x))
    n_head = 50304
    logits = t.matmul(DOT, h, w, 2.0 * batch * s * n_head, 2.0 * batch * s * d * n_head)
    grad = t.unary(t.alias(t.norm(logits)))
    grads = [(head, t.matmul(GRAD, h, grad, 4.0 * d * n_head, 2.0 * batch * s * d * n_head))]
    dx = t.matmul(BACK, grad, w, act, 2.0 * batch * s * d * n_head)

    def back(dy, name, w, source):
        k, n = shapes[name]
        work = 2.0 * batch * s * k * n
        dw = t.matmul(GRAD, source, dy, 4.0 * k * n, work)
        return t.matmul(BACK, dy, w[name], 2.0 * batch * s * k, work), dw

    for layer, w, x, h, q, k, v, a, y, g, u, z in reversed(tape):
        dx = t.alias(t.unary(dx, True))
        dz, dw2 = back(dx, "2", w, z)
        du = t.alias(t.node(elementwise(2), t.sizes[dz], t.sizes[dz] / t.hbm, (dz, u)))
        dg, dw1 = back(du, "1", w, g)
        dg = t.node(elementwise(2), act, act / t.hbm, (t.unary(dg), y))
        dy = t.alias(t.add(dx, dg))
        da, dwo = back(dy, "o", w, a)
        ds = t.alias(t.node([(o[0], o[1] + (o[1][0],), o[2], 0) for o in ATTEND], act, 1e-3, (q, k, v, da)))
        parts = [back(t.alias(t.unary(ds)), n, w, h) for n in "qkv"]
        dh = t.add(t.add(parts[0][0], parts[1][0]), parts[2][0])
        dh = t.node(elementwise(2), act, act / t.hbm, (t.unary(dh), x))
        dx = t.add(dy, dh)
        grads += [(layer[n], p[1]) for n, p in zip("qkv", parts, strict=True)]
        grads += [(layer["o"], dwo), (layer["1"], dw1), (layer["2"], dw2)]
    for weight, dw in grads:
        t.update(weight, t.alias(dw))
    return t.problem(f"gpt-{layers}-" + "x".join(str(a.size) for a in axes))


ONE = (Axis(8, 2e11),)
TWO = (Axis(2, 2.5e10), Axis(4, 2e11))
