"""A plan as HTML: what a notebook shows. Names are escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autosharding.plan_tables import plan_tables

if TYPE_CHECKING:
    from autosharding.plan import Plan


def plan_html(plan: Plan) -> str:
    """The plan's tables in one block."""
    return "<div>" + "".join(t.html() for t in plan_tables(plan)) + "</div>"
