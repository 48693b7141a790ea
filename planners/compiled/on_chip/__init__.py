"""Iterations of a whole solve in one launch on a GPU, each map's values in one multiprocessor until they settle."""
