"""Ray: machines, datasets and trials on them, jobs and what is sent along."""
