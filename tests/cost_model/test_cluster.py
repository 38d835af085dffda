import json
import math

import pytest

from cost_model import HARDWARE, Cluster, ClusterError, Torus


@pytest.mark.parametrize(
    ("text", "shape", "devices"),
    [
        ("h100:8x8", (8, 8), 64),
        ("H100:8", (1, 8), 8),
        ("v100:1x4", (1, 4), 4),
        ("a100:2x8", (2, 8), 16),
        ("tpu-v5p:4x4x4", (4, 4, 4), 64),
        ("tpu-v5e:16x16", (16, 16), 256),
        ("tpu-v5p:8", (8,), 8),
        ("cpu:8", (1, 8), 8),
        ("cpu:2x4", (2, 4), 8),
    ],
)
def test_parse(text, shape, devices):
    cluster = Cluster.parse(text)
    assert (cluster.shape, cluster.n_devices) == (shape, devices)
    assert cluster.device == HARDWARE[text.split(":")[0].lower()].device


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h10:8x8", "Did you mean h100"),
        ("tpu-v5:4x4", "Did you mean .*tpu-v5e"),
        ("quantum:8", "Known are v100, a100"),
        ("", "no hardware is called ''"),
        ("h100", 'how many devices. Write "h100:2x8"'),
        ("cpu", 'Write "cpu:8"'),
        ("h100:", "how many devices"),
        ("h100:0x8", "how many devices"),
        ("h100:8 x 8", "how many devices"),
        ("h100:" + "9" * 5000, "how many devices"),
        ("h100:64", "at most 8 devices in a node"),
        ("h100:2x2x2", "nodes x devices per node"),
        ("tpu-v5e:4x4x4", "has 3 dims, tpu-v5e has 2"),
        ("missing.toml", "cannot be read: No such file"),
    ],
)
def test_parse_errors_say_what_to_write(text, message):
    with pytest.raises(ClusterError, match=message):
        Cluster.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu:8", [(8,), (2, 4), (2, 2, 2)]),
        ("cpu:1", [(1,)]),
        ("cpu:7", [(7,)]),
        ("cpu:12", [(12,), (2, 6), (3, 4), (2, 2, 3)]),
        ("v100:1x4", [(4,), (2, 2)]),
        ("a100:2x8", [(16,), (2, 8), (2, 2, 4)]),
        ("h100:8x8", [(64,), (8, 8), (8, 2, 4)]),
        ("h100:8x1", [(8,), (2, 4), (2, 2, 2)]),
        ("h200:1x8", [(8,), (2, 4), (2, 2, 2)]),
        ("b200:4x4", [(16,), (4, 4), (4, 2, 2)]),
        ("tpu-v4:4x4x4", [(64,), (16, 4), (4, 4, 4)]),
        ("tpu-v5p:8x4x4", [(128,), (32, 4), (8, 16), (8, 4, 4)]),
        ("tpu-v5e:16x16", [(256,), (16, 16)]),
        ("tpu-v6e:2x4", [(8,), (2, 4)]),
        ("tpu-v5p:2x2x1", [(4,), (2, 2)]),
    ],
)
def test_logical_meshes(text, expected):
    cluster = Cluster.parse(text)
    meshes = cluster.logical_meshes()
    assert [mesh.sizes for mesh in meshes] == expected
    assert all(mesh.axis_names == tuple("xyzw")[: len(mesh.axes)] for mesh in meshes)
    assert all(mesh.n_devices == cluster.n_devices for mesh in meshes)
    assert all(mesh.axes[0].bandwidth <= min(axis.bandwidth for axis in mesh.axes) for mesh in meshes[1:]) or (
        isinstance(cluster.wiring, Torus) or cluster.shape[0] == 1
    )


def test_logical_meshes_by_number_of_axes():
    cluster = Cluster.parse("h100:8x8")
    assert [mesh.sizes for mesh in cluster.logical_meshes(1)] == [(64,)]
    assert [mesh.sizes for mesh in cluster.logical_meshes(2)] == [(64,), (8, 8)]
    assert (8, 2, 2, 2) in [mesh.sizes for mesh in cluster.logical_meshes(4)]
    for axes in (0, 5):
        with pytest.raises(ClusterError, match="1 to 4 axes"):
            cluster.logical_meshes(axes)


def test_named_mesh():
    mesh = Cluster.parse("a100:2x8").topology({"data": 2, "model": 8})
    assert mesh.axis_names == ("data", "model")
    assert mesh.axes[0].bandwidth < mesh.axes[1].bandwidth
    assert mesh.cluster == "a100:2x8"
    assert mesh.device == HARDWARE["a100"].device


@pytest.mark.parametrize(
    ("text", "mesh", "message"),
    [
        ("cpu:8", {"data": 2, "model": 3}, "data=2 x model=3 has 6 devices, cluster cpu:8 has 8.*2x4"),
        ("a100:3x8", {"model": 8, "data": 3}, "does not fit on the wires.*3x8"),
        ("cpu:8", {}, "maps axis names to sizes"),
        ("cpu:8", {"x": 0}, "maps axis names to sizes"),
        ("cpu:8", {"x": 8.0}, "maps axis names to sizes"),
        ("cpu:1", {"x": True}, "maps axis names to sizes"),
    ],
)
def test_wrong_meshes(text, mesh, message):
    with pytest.raises(ClusterError, match=message):
        Cluster.parse(text).topology(mesh)


@pytest.mark.parametrize("text", ["h100:8x8", "v100:1x4", "cpu:8", "tpu-v5p:4x4x4"])
def test_json_is_a_device_file(text, tmp_path):
    cluster = Cluster.parse(text)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(cluster.to_json(), allow_nan=False))
    assert Cluster.parse(str(path)) == Cluster.from_json(cluster.to_json()) == cluster


def write(tmp_path, text, name="mine.toml"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_device_file_from_nothing(tmp_path):
    text = """
        nodes = 2
        devices_per_node = 4
        fast = {latency = 1e-6, bandwidth = 2e11}
        slow = {latency = 1e-5, bandwidth = 1e10, small = []}
        [device]
        name = "mine"
        flops = {bfloat16 = 1e14, float32 = "inf"}
        memory_bandwidth = 1e12
        memory = 68719476736
    """
    cluster = Cluster.parse(write(tmp_path, text))
    assert (cluster.name, cluster.n_devices, cluster.device.name) == ("mine", 8, "mine")
    assert cluster.device.flops_per_second("float32") == math.inf
    assert cluster.topology({"a": 2, "b": 4}).axes[0].bandwidth == 1e10


def test_device_file_like_another(tmp_path):
    cluster = Cluster.parse(write(tmp_path, 'like = "h100:8x8"\nnodes = 4\n[device]\nmemory = 42949672960\n'))
    h100 = HARDWARE["h100"].device
    assert (cluster.shape, cluster.name) == ((4, 8), "mine")
    assert (cluster.device.memory, cluster.device.flops) == (40 << 30, h100.flops)


def test_device_file_may_change_the_wiring(tmp_path):
    text = 'like = "h100:1x8"\ntorus = [2, 4]\nwraps = [false, true]\nlink = {latency = 0, bandwidth = 1e9}\n'
    cluster = Cluster.parse(write(tmp_path, text))
    assert isinstance(cluster.wiring, Torus)
    assert cluster.device == HARDWARE["h100"].device
    text = 'like = "tpu-v5e:2x4"\nnodes=1\ndevices_per_node=8\nfast={latency=0, bandwidth=1e9}\n'
    assert Cluster.parse(write(tmp_path, text)).shape == (1, 8)


def test_device_by_name(tmp_path):
    text = 'name="lab"\ndevice="A100"\nnodes=1\ndevices_per_node=2\nfast={latency=0, bandwidth=1e9}\n'
    cluster = Cluster.parse(write(tmp_path, text))
    assert (cluster.name, cluster.device) == ("lab", HARDWARE["a100"].device)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes = ", "neither JSON nor TOML"),
        ("speed = 3", "keys nothing reads: speed"),
        ("nodes = 1", "The key 'name' is missing|The key"),
        ('like = "mine.toml"', "no hardware is called"),
        ('device = "h1000"', "Did you mean h100"),
        ("device = 3", "a name or a table"),
        ('like = "h100:1x8"\ntorus = [2]\nnodes = 1', "can be one of them"),
        ('like = "h100:1x8"\nnodes = 0', "at least 1"),
        ('like = "h100:1x8"\nnodes = "two"', "whole number was expected"),
        ('like = "h100:1x8"\nnodes = 1.5', "whole number was expected"),
        ('like = "h100:1x8"\nfast = {latency = -1, bandwidth = 1e9}', "A link needs"),
        ('like = "h100:1x8"\nfast = {latency = 0, bandwidth = "fast"}', "A number was expected"),
        ('like = "h100:1x8"\nfast = 3', "does not read as it should"),
        ('like = "h100:1x8"\n[device]\nmemory_bandwidth = 0', "needs flop/s"),
        ('like = "tpu-v5e:2x4"\ntorus = [2, 4]', "'wraps' is missing"),
        ('like = "tpu-v5e:2x4"\ntorus = [2, 4]\nwraps = [true]', "as many `wraps`"),
        ('like = "tpu-v5e:2x4"\ntorus = [2, 4]\nwraps = ["no", true]', "True or false was expected"),
    ],
)
def test_wrong_device_files(tmp_path, text, message):
    with pytest.raises(ClusterError, match=message):
        Cluster.parse(write(tmp_path, text))


def test_device_file_that_is_no_table(tmp_path):
    with pytest.raises(ClusterError, match="one table of keys, not a list"):
        Cluster.parse(write(tmp_path, "[1, 2]", "mine.json"))


@pytest.mark.parametrize(
    ("cluster", "parts", "shape"),
    [
        ("h100:8x8", 1, (8, 8)),
        ("h100:8x8", 4, (2, 8)),
        ("h100:8x8", 8, (1, 8)),
        ("h100:8x8", 16, (1, 4)),
        ("h100:8x8", 64, (1, 1)),
        ("cpu:8", 2, (1, 4)),
        ("tpu-v5p:4x4x4", 2, (2, 4, 4)),
    ],
)
def test_equal_parts_for_the_stages_of_a_pipeline(cluster, parts, shape):
    part = Cluster.parse(cluster).part(parts)
    assert part.shape == shape
    assert part.n_devices * parts == Cluster.parse(cluster).n_devices


@pytest.mark.parametrize(("cluster", "parts"), [("h100:8x8", 3), ("h100:3x8", 2), ("tpu-v5p:4x4x4", 3)])
def test_parts_that_would_not_lie_alike(cluster, parts):
    with pytest.raises(ClusterError, match="Numbers that do"):
        Cluster.parse(cluster).part(parts)


def test_the_wire_between_devices():
    cluster = Cluster.parse("h100:2x8")
    assert cluster.link_between(0, 7) == cluster.wiring.fast
    assert cluster.link_between(4, 8) == cluster.link_between(8, 0) == cluster.wiring.slow


@pytest.mark.parametrize(
    ("cluster", "devices", "shape"),
    [
        ("h100:8x8", 4, (1, 4)),
        ("h100:8x8", 24, (3, 8)),
        ("h100:8x8", 64, (8, 8)),
        ("cpu:8", 2, (1, 2)),
        ("tpu-v5p:4x4x4", 48, (3, 4, 4)),
    ],
)
def test_a_group_of_devices(cluster, devices, shape):
    group = Cluster.parse(cluster).group(devices)
    assert group.shape == shape
    assert group.n_devices == devices


@pytest.mark.parametrize(("cluster", "devices"), [("h100:8x8", 3), ("h100:8x8", 12), ("tpu-v5p:4x4x4", 8)])
def test_devices_that_are_no_group(cluster, devices):
    with pytest.raises(ClusterError, match="are no"):
        Cluster.parse(cluster).group(devices)
