"""The method: planner cores, fixed-point solvers, adjoints."""
