"""VIN-like value iteration, compiled: forward, backward, in place."""
