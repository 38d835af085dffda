"""CHOICES: a 0-1 program over a graph of nodes, each taking one strategy.

``Problem`` goes in, ``Solution`` comes out; ``solve`` is the way, ``solve_textbook`` the plain way by stock
solvers, ``brute_force`` the slow and obvious way. Costs are seconds, memory is bytes, ``inf`` forbids.
"""

from ilp.brute import brute_force as brute_force
from ilp.problem import Edge as Edge
from ilp.problem import Memory as Memory
from ilp.problem import Problem as Problem
from ilp.problem import ProblemError as ProblemError
from ilp.resolve import Resolver as Resolver
from ilp.solution import Infeasibility as Infeasibility
from ilp.solution import Progress as Progress
from ilp.solution import Solution as Solution
from ilp.solve import solve as solve
from ilp.textbook import solve_textbook as solve_textbook
