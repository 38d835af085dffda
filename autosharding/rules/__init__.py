"""The rules of the operators: one primitive's factors each, and how it runs on a shard.

`rule_for(op)` reads the rule of an op off its shapes. A primitive without a rule runs replicated and is
listed in the plan. `python -m autosharding rules` is the whole table.
"""

from autosharding.rules import (
    algebra,
    contraction,
    convolution,
    effects,
    elementwise,
    indexing,
    order,
    pieces,
    random,
    reduction,
    shape,
    windows,
)
from autosharding.rules.base import REGISTRY, Dim, Dims, Rule, Shard, axis_index, numeric, replicated, rule
from autosharding.rules.lookup import rule_for

__all__ = [
    "REGISTRY",
    "Dim",
    "Dims",
    "Rule",
    "Shard",
    "algebra",
    "axis_index",
    "contraction",
    "convolution",
    "effects",
    "elementwise",
    "indexing",
    "numeric",
    "order",
    "pieces",
    "random",
    "reduction",
    "replicated",
    "rule",
    "rule_for",
    "shape",
    "windows",
]
