"""Plug-in: the adjoint system solved as the paper's public code solves it, to see what that does to training."""

from __future__ import annotations

from planners.specs import Entry

SOLVERS = {"anderson_ridge": Entry("authors_adjoint.solve:AndersonRidge")}
ADJOINTS = {"unscaled": Entry("authors_adjoint.solve:Unscaled")}
