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
    opaque,
    order,
    pieces,
    random,
    reduction,
    shape,
    windows,
)
from autosharding.rules.base import REGISTRY, Exchange, Rule, Shard, axis_index, numeric, replicated, rule
from autosharding.rules.lookup import rule_for, rules_of
from autosharding.rules.notation import Dim, Dims, Notation, parse
from autosharding.rules.table import rules_table
from autosharding.rules.user import register_user_rule

__all__ = [
    "REGISTRY",
    "Dim",
    "Dims",
    "Exchange",
    "Notation",
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
    "opaque",
    "order",
    "parse",
    "pieces",
    "random",
    "reduction",
    "register_user_rule",
    "replicated",
    "rule",
    "rule_for",
    "rules_of",
    "rules_table",
    "shape",
    "windows",
]
