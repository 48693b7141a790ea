"""Training and testing of a planner: budgets, memory, roll-outs."""
