"""What is kept: results, curves, leases, checkpoints, archives; who may write them, and what made them."""
