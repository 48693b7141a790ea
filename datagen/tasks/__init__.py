"""The tasks, and the registry that names them."""
