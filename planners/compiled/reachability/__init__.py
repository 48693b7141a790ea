"""Reachability, settled best first, and its adjoint in one pass."""
