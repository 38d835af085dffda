"""A spec as JAX writes it."""

from __future__ import annotations

from jax.sharding import PartitionSpec

from autosharding.spec import Spec


def partition_spec(spec: Spec) -> PartitionSpec:
    """A spec without partial axes as JAX writes it."""
    return PartitionSpec(*(axes[0] if len(axes) == 1 else axes or None for axes in spec.dims))
