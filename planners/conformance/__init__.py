"""What cores, solvers, adjoints and mappers must do, as functions; for our own tests and for plug-ins'."""
