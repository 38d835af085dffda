import itertools
import json
import math
import pickle

import pytest

from cost_model import COLLECTIVES, HARDWARE, Axis, Cluster, ClusterError, Device, Topology

MB = 1 << 20


def two_nodes():
    return Cluster.parse("h100:8x8").topology({"data": 8, "model": 8})


# --- Alpa's figures ---


def all_reduce(mesh, bytes, axis):
    return mesh.seconds("all-reduce", axis, bytes)


@pytest.mark.parametrize("sizes", [(4, 1), (1, 4)])
def test_alpa_mlp_data_parallel(sizes):
    mesh = Topology.alpa(sizes)
    axis = "x" if sizes[0] == 4 else "y"
    kernels, biases = 6 * [32 * 32 * 4], 6 * [32 * 4]
    cost = sum(all_reduce(mesh, size, axis) for size in kernels + biases)
    assert cost == pytest.approx(38139.12, rel=0.01)
    assert cost == pytest.approx(6 * (1 + 1.5 * 4096) + 6 * (1 + 1.5 * 128))


def test_alpa_mlp_model_parallel():
    mesh = Topology.alpa((4, 1))
    assert 5 * all_reduce(mesh, 32 * 256 * 4, "x") == pytest.approx(245765.05, rel=1e-4)


def test_alpa_mlp_two_dimensional():
    mesh, batch, hidden = Topology.alpa((2, 2), alpha=1, beta=(1, 0.1)), 256, 32
    gradients = 6 * (all_reduce(mesh, hidden * hidden * 4 / 2, "x") + all_reduce(mesh, hidden * 4, "x"))
    activations = 5 * all_reduce(mesh, batch * hidden * 4 / 2, "y")
    assert gradients + activations == pytest.approx(21265.17, rel=1e-4)


@pytest.mark.parametrize(
    ("sizes", "beta", "terms", "figure"),
    [
        ((4, 1), 1.0, [(2, 128 * 128 * 4, "x")], 196610.02),
        ((4, 1), 1.0, [(1, 128 * 1024 * 4, "x")], 786433.01),
        ((4, 8), (1, 0.01), [(2, 128 * 128 * 4 / 8, "x"), (1, 1024 * 128 * 4 / 4, "y")], 26872.03),
        ((8, 4), (1, 0.01), [(2, 128 * 128 * 4 / 4, "x"), (1, 1024 * 128 * 4 / 8, "y")], 58330.03),
    ],
)
def test_alpa_two_layer_step(sizes, beta, terms, figure):
    mesh = Topology.alpa(sizes, beta=beta)
    cost = sum(count * all_reduce(mesh, size, axis) for count, size, axis in terms)
    assert cost == pytest.approx(figure, rel=1e-3)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_alpa_formulas(n):
    mesh, B = Topology.alpa((n,), alpha=3, beta=0.5), 4096
    assert mesh.seconds("all-gather", "x", B) == pytest.approx(3 + 0.5 * (n - 1) / n * B)
    assert mesh.seconds("reduce-scatter", "x", B) == pytest.approx(3 + 0.5 * (n - 1) / n * B)
    assert mesh.seconds("all-to-all", "x", B) == pytest.approx(3 + 0.5 * (n - 1) / n / n * B * (n / 2))
    assert mesh.seconds("collective-permute", "x", B) == pytest.approx(3 + 0.5 * B)


def test_alpa_refuses_lists_that_do_not_match():
    for arguments in [((2, 2), (1.0,)), ((2,), (1.0,), (1.0, 2.0)), ((2,) * 5,)]:
        with pytest.raises(ClusterError, match=r"Topology\.alpa takes"):
            Topology.alpa(*arguments)


# --- every topology ---

ALL = [
    mesh
    for name in ("v100:2x4", "a100:2x8", "h100:8x8", "b200:1x8", "cpu:8", "tpu-v5p:4x4x4", "tpu-v5e:4x8")
    for mesh in Cluster.parse(name).logical_meshes()
] + [Topology.alpa((4, 8), alpha=(1, 2), beta=(1, 0.1))]


def groups(mesh):
    names = mesh.axis_names
    return [axes for k in range(1, len(names) + 1) for axes in itertools.combinations(names, k)]


@pytest.mark.parametrize("mesh", ALL, ids=lambda mesh: f"{mesh.cluster}-{mesh.sizes}")
def test_prices_are_sane(mesh):
    for axes, kind in itertools.product(groups(mesh), COLLECTIVES):
        prices = [mesh.seconds(kind, axes, size) for size in (0, 1, MB, 64 * MB, 1024 * MB)]
        assert prices[0] == 0.0
        assert all(a < b for a, b in itertools.pairwise(prices))
        assert all(math.isfinite(price) for price in prices)
        assert mesh.seconds(kind, axes[::-1], MB) == pytest.approx(mesh.seconds(kind, axes, MB))
    for axes in groups(mesh):
        reduce, scatter, gather = (
            mesh.seconds(kind, axes, MB) for kind in ("all-reduce", "reduce-scatter", "all-gather")
        )
        assert scatter == gather < reduce <= scatter + gather
        assert mesh.seconds("all-to-all", axes, MB) <= gather


def test_more_devices_on_an_axis_cost_more():
    for name in ("cpu:{}", "h100:1x{}", "a100:1x{}", "h100:{}x8", "h100:{}x1"):
        prices = [
            Cluster.parse(name.format(n)).logical_meshes(1)[0].seconds("all-reduce", "x", 64 * MB) for n in (2, 4, 8)
        ]
        assert prices == sorted(prices), name


def test_nothing_moves_over_one_device():
    mesh = Cluster.parse("cpu:8").topology({"data": 1, "model": 8})
    assert all(mesh.seconds(kind, ("data",), MB) == 0.0 for kind in COLLECTIVES)
    assert mesh.seconds("all-gather", (), MB) == 0.0
    assert mesh.seconds("all-gather", ("data", "model"), MB) == mesh.seconds("all-gather", ("model",), MB)
    free = Topology(Device.ideal(), (Axis("a", 1, 5.0, 1.0), Axis("b", 2, 7.0, 2.0)))
    assert free.seconds("all-gather", ("a", "b"), 8) == 7 + 8 / 2 / 2


def test_sizes():
    mesh = Topology.alpa((2, 3, 4))
    assert (mesh.axis_names, mesh.sizes, mesh.n_devices) == (("x", "y", "z"), (2, 3, 4), 24)
    assert (mesh.size("y"), mesh.size(("x", "z")), mesh.size(())) == (3, 8, 1)
    assert mesh.shape == {"x": 2, "y": 3, "z": 4}


def test_axes_known_by_nothing_but_their_numbers_add_up():
    axes = (Axis("slow", 2, 1.0, 10.0), Axis("fast", 4, 0.5, 100.0))
    mesh = Topology(Device.ideal(), axes)
    assert mesh.seconds("all-gather", ("slow", "fast"), 80) == pytest.approx(1.5 + 7 / 8 * 80 / 10)
    assert mesh.seconds("all-to-all", "fast", 400) == pytest.approx(0.5 + 3 / 4 * 100 / 100)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda mesh: mesh.seconds("broadcast", "data", 1),
            "no collective 'broadcast'. The kinds are all-reduce",
        ),
        (lambda mesh: mesh.seconds("all-reduce", "x", 1), "no mesh axis 'x'. The axes are data, model"),
        (lambda mesh: mesh.size(("data", "z")), "no mesh axis 'z'"),
        (lambda mesh: mesh.seconds("all-reduce", ("data", "data"), 1), "each mesh axis once"),
    ],
)
def test_wrong_questions(ask, message):
    with pytest.raises(ClusterError, match=message):
        ask(two_nodes())


@pytest.mark.parametrize("axes", [(), (Axis("x", 2, 0, 1), Axis("x", 2, 0, 1)), (Axis("x", 0, 0, 1),)])
def test_wrong_axes(axes):
    with pytest.raises(ClusterError, match="A mesh needs"):
        Topology(Device.ideal(), axes)


# --- JSON, text ---


@pytest.mark.parametrize("mesh", ALL, ids=lambda mesh: f"{mesh.cluster}-{mesh.sizes}")
def test_json_is_loss_free(mesh):
    again = Topology.from_json(json.loads(json.dumps(mesh.to_json(), allow_nan=False)))
    assert again == mesh
    assert hash(again) == hash(mesh)
    assert again.seconds("all-reduce", mesh.axis_names, MB) == mesh.seconds("all-reduce", mesh.axis_names, MB)


def test_pickle_and_cache():
    mesh = two_nodes()
    before = mesh.seconds("all-reduce", "data", MB)
    assert pickle.loads(pickle.dumps(mesh)) == mesh == two_nodes()
    assert mesh.seconds("all-reduce", "data", MB) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("device"),
        lambda data: data.update(axes=3),
        lambda data: data["axes"][0].update(size="8"),
        lambda data: data["axes"][0].update(bandwidth="fast"),
        lambda data: data["axes"][0].update(pieces=[[7, 8, 1]]),
        lambda data: data["axes"][0].update(pieces=[]),
        lambda data: data["wiring"].pop("fast"),
        lambda data: data.update(wiring=[]),
    ],
)
def test_damaged_json_is_refused(damage):
    data = two_nodes().to_json()
    damage(data)
    with pytest.raises(ClusterError):
        Topology.from_json(data)


def test_explain_reads_as_a_table():
    assert (
        str(two_nodes())
        == two_nodes().explain()
        == (
            "h100:8x8: 64 x H100-SXM5-80GB, 72.0 GiB usable on each\n"
            "  axis   size  latency   bandwidth   lies on\n"
            "  data   8     106.4 us  48.0 GB/s   8 of 8 nodes, 1 of 8 devices of each\n"
            "  model  8     32.2 us   345.0 GB/s  8 of 8 devices of a node"
        )
    )
    assert "inf B/s" in str(Topology.alpa((2,), beta=0))
    assert "2 of dim 0 (line), 4 of dim 1 (line)" in str(Cluster.parse("tpu-v5e:2x4").topology({"x": 8}))
    assert HARDWARE["h100"].device.name in str(Cluster.parse("h100:8x8"))
