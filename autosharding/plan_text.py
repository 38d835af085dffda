"""A plan as text: what `print(plan)` and `autosharding show` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autosharding.plan_tables import plan_tables

if TYPE_CHECKING:
    from autosharding.plan import Plan


def plan_text(plan: Plan) -> str:
    """The plan's tables, one under another."""
    return "\n\n".join(t.text() for t in plan_tables(plan))
