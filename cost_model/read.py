"""From what a user writes for a cluster to the JSON values `Cluster.from_json` takes."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from cost_model.errors import ClusterError
from cost_model.hardware import HARDWARE, Hardware, NodeHardware, TorusHardware
from cost_model.wiring import Nodes, Torus

FILE_KEYS = frozenset(
    ("name", "like", "device", "nodes", "devices_per_node", "fast", "slow", "start", "torus", "wraps", "link")
)
"""What a device file may say; described at `Cluster.parse`."""

_REPLACED_BY = {
    "torus": ("torus", "wraps", "nodes", "devices_per_node", "fast", "slow"),
    "nodes": ("torus", "wraps", "link"),
}
"""What a file that writes this key does not take over from `like`."""

_NAMED = re.compile(r"(?P<name>[\w.-]+)(?::(?P<counts>.*))?", re.ASCII)
_COUNTS = re.compile(r"[1-9][0-9]{0,6}(x[1-9][0-9]{0,6})*", re.ASCII)


def read_cluster(text: str) -> dict[str, Any]:
    """Return the JSON values of a cluster written as a name with counts, or as a device file."""
    if text.endswith((".json", ".toml")):
        return _read_file(Path(text))
    return _read_name(text)


def _read_name(text: str) -> dict[str, Any]:
    """Return the JSON values of "h100:8x8"."""
    match = _NAMED.fullmatch(text.strip())
    if match is None or match["name"].lower() not in HARDWARE:
        raise ClusterError(_unknown(text, match["name"] if match else text))
    name = match["name"].lower()
    if match["counts"] is None or not _COUNTS.fullmatch(match["counts"]):
        raise ClusterError(f"Cluster {text!r} does not say how many devices. Write {_usage(name)}.")
    counts = tuple(int(count) for count in match["counts"].split("x"))
    return _named(text, name, counts)


def _named(text: str, name: str, counts: tuple[int, ...]) -> dict[str, Any]:
    """Return the JSON values of hardware of the table, in the counts asked for."""
    hardware = HARDWARE[name]
    if isinstance(hardware, TorusHardware):
        if len(counts) > hardware.rank:
            raise ClusterError(f"Cluster {text!r} has {len(counts)} dims, {name} has {hardware.rank}: {_usage(name)}.")
        wraps = tuple(size % hardware.ring == 0 for size in counts)
        wiring = Torus(counts, wraps, hardware.link)
    else:
        nodes, per_node = counts if len(counts) == 2 else (1, counts[0])
        if len(counts) > 2 or per_node > hardware.per_node:
            raise ClusterError(
                f"Cluster {text!r}: {name} comes as nodes x devices per node, with at most "
                f"{hardware.per_node} devices in a node. Write {_usage(name)}; other machines can be "
                "described in a device file."
            )
        wiring = Nodes(nodes, per_node, hardware.fast, hardware.slow, hardware.start)
    shape = "x".join(map(str, counts))
    return {"name": f"{name}:{shape}", "device": hardware.device.to_json(), **wiring.to_json()}


def _read_file(path: Path) -> dict[str, Any]:
    """Return the JSON values of a device file, with `like` and a named device filled in."""
    try:
        raw = path.read_bytes().decode()
        data = tomllib.loads(raw) if path.suffix == ".toml" else json.loads(raw)
    except OSError as error:
        raise ClusterError(f"Device file {str(path)!r} cannot be read: {error.strerror}. {_names()}") from error
    except ValueError as error:
        raise ClusterError(f"Device file {str(path)!r} is neither JSON nor TOML text: {error}.") from error
    if not isinstance(data, dict):
        raise ClusterError(f"Device file {str(path)!r} must hold one table of keys, not a {type(data).__name__}.")
    unknown = sorted(data.keys() - FILE_KEYS)
    if unknown:
        raise ClusterError(
            f"Device file {str(path)!r} has keys nothing reads: {', '.join(unknown)}. Keys are "
            f"{', '.join(sorted(FILE_KEYS))}."
        )
    if "torus" in data and "nodes" in data:
        raise ClusterError(f"Device file {str(path)!r} describes nodes and a torus; it can be one of them.")
    base = _read_name(str(data["like"])) if "like" in data else {}
    kept = {key: value for key, value in base.items() if key not in _REPLACED_BY.get(_kind(data), ())}
    device = _device(path, data.get("device", {}), base.get("device", {}))
    merged = {**kept, "name": path.stem, **data, "device": device}
    return {key: value for key, value in merged.items() if key != "like"}


def _kind(data: dict[str, Any]) -> str:
    return next((key for key in _REPLACED_BY if key in data), "")


def _device(path: Path, written: Any, base: dict[str, Any]) -> dict[str, Any]:
    """Return a device by its name in the table, or what is written over what `like` gave."""
    if isinstance(written, str):
        if written.lower() not in HARDWARE:
            raise ClusterError(_unknown(str(path), written))
        return HARDWARE[written.lower()].device.to_json()
    if not isinstance(written, dict):
        raise ClusterError(f"Device file {str(path)!r}: `device` is a name or a table, not {written!r}.")
    return {**base, **written}


def _unknown(text: str, name: str) -> str:
    near = difflib.get_close_matches(name.lower(), HARDWARE, n=3, cutoff=0.4)
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"Cluster {text!r}: no hardware is called {name!r}.{guess} {_names()}"


def _names() -> str:
    return (
        f"Known are {', '.join(HARDWARE)}, written as h100:8x8 (nodes x devices per node), tpu-v5p:4x4x4 "
        "(torus) or cpu:8; or give the path of a device file (.json or .toml), described at "
        "Cluster.parse."
    )


def _usage(name: str) -> str:
    hardware: Hardware = HARDWARE[name]
    if name == "cpu":
        return '"cpu:8" for 8 virtual devices'
    if isinstance(hardware, NodeHardware):
        return f'"{name}:2x{hardware.per_node}" for 2 nodes of {hardware.per_node} devices'
    return f'"{name}:{"x".join(["4"] * hardware.rank)}" for a torus'
