"""MLflow: what it is told of a sweep, and how it compares."""
