"""Pictures: of a sweep's results, of a problem and its plan."""
