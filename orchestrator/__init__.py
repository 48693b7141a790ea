"""The campaign: sweeps, trials, results, and what people read."""
