"""Fixed points and roots that can be differentiated: solvers, adjoints, Jacobians; needs torch alone.

Begin with `solve.fixed_point` and `solve.root`, and what they give, `solution.Solution`.

- Solvers: `solvers.ForwardIteration`, and `solvers.Anderson` and `solvers.Broyden` with `acceleration.AndersonMemory`;
  `averaging.MovingAverage`; `gmres.GMRES` for linear systems; when they stop, `stopping.ErrorRule`; of roots,
  `roots.find`; of steps that cost little, `strides.StridedIteration`.
- Derivatives: `adjoints.Implicit` and `adjoints.Unrolled`; of any order by `derivatives.follow`; under torch.func by
  `transforms.Lowered`.
- Several tensors as one state: `structures.Joined`; to and from a device: `transfers.Watch`; a look at df/dv:
  `jacobian.spectral_radius`.
"""

from .adjoints import Implicit, OneStep, Phantom, Unrolled
from .gmres import GMRES
from .jacobian import jacobian_penalty, spectral_radius
from .solution import Adjoint, AdjointRecord, NotSolved, Result, Solution, Solver, Step
from .solve import fixed_point, root
from .solvers import Anderson, Broyden, ForwardIteration

__all__ = [
    "GMRES",
    "Adjoint",
    "AdjointRecord",
    "Anderson",
    "Broyden",
    "ForwardIteration",
    "Implicit",
    "NotSolved",
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
