"""Prices: seconds and bytes.

This room believes that a collective costs a latency and a rate, `seconds = a + bytes / bandwidth`, where
both depend on how the mesh axis lies on the nodes and not only on its size; and that an op costs the slower
of its arithmetic and its memory traffic. It knows devices, links and clusters, from one table with a source
for every number (`hardware`), from a device file, or in Alpa's arbitrary units. It knows no JAX and no other
room.

    Cluster.parse("h100:8x8").topology({"data": 8, "model": 8}).seconds("all-reduce", ("model",), 64 << 20)
"""

from cost_model.cluster import Cluster as Cluster
from cost_model.device import Device as Device
from cost_model.device import roofline_seconds as roofline_seconds
from cost_model.errors import ClusterError as ClusterError
from cost_model.hardware import HARDWARE as HARDWARE
from cost_model.quantities import show_bytes as show_bytes
from cost_model.quantities import show_seconds as show_seconds
from cost_model.topology import AXIS_NAMES as AXIS_NAMES
from cost_model.topology import COLLECTIVES as COLLECTIVES
from cost_model.topology import Axis as Axis
from cost_model.topology import Topology as Topology
from cost_model.wiring import Link as Link
from cost_model.wiring import Nodes as Nodes
from cost_model.wiring import Path as Path
from cost_model.wiring import Piece as Piece
from cost_model.wiring import Torus as Torus

__all__ = [
    "AXIS_NAMES",
    "COLLECTIVES",
    "HARDWARE",
    "Axis",
    "Cluster",
    "ClusterError",
    "Device",
    "Link",
    "Nodes",
    "Path",
    "Piece",
    "Topology",
    "Torus",
    "roofline_seconds",
    "show_bytes",
    "show_seconds",
]
