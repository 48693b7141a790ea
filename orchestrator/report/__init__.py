"""The page of a sweep, and who keeps it fresh while trials run."""
