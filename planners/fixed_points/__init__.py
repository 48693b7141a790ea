"""Fixed points and roots that can be differentiated: solvers, adjoints, Jacobians; needs torch alone."""

from planners.fixed_points.adjoints import Implicit, OneStep, Phantom, Unrolled
from planners.fixed_points.gmres import GMRES
from planners.fixed_points.jacobian import jacobian_penalty, spectral_radius
from planners.fixed_points.solution import Adjoint, AdjointRecord, Result, Solution, Solver, Step
from planners.fixed_points.solve import fixed_point, root
from planners.fixed_points.solvers import Anderson, Broyden, ForwardIteration

__all__ = [
    "GMRES",
    "Adjoint",
    "AdjointRecord",
    "Anderson",
    "Broyden",
    "ForwardIteration",
    "Implicit",
    "OneStep",
    "Phantom",
    "Result",
    "Solution",
    "Solver",
    "Step",
    "Unrolled",
    "fixed_point",
    "jacobian_penalty",
    "root",
    "spectral_radius",
]
