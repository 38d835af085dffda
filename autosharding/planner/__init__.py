"""Binds the rooms: a graph and prices go in, a `Plan` comes out.

graph ── rules ──► tables ── formulate ──► ilp.Problem ── solve ──► choice ── decode ──► Plan, for each logical mesh.
"""

from autosharding.planner.methods import METHODS as METHODS
from autosharding.planner.plan_graph import Infeasible as Infeasible
from autosharding.planner.plan_graph import plan_graph as plan_graph
from autosharding.planner.plan_graph import problem_of as problem_of
from autosharding.planner.tables import Known as Known
