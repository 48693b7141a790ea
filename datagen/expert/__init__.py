"""Labels: the best ways on grids and graphs."""
