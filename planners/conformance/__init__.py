"""What cores, solvers, adjoints and mappers must do, as functions that say so: for our own tests and for plug-ins'."""
