"""Pictures: of a sweep's results (of systems in `metrics`), of a problem and its plan."""
