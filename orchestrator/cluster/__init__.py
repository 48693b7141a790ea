"""Ray: machines, datasets and trials on them, jobs and what is sent along.

Begin with `ray_cluster.ray_cluster`, within which all else runs, and `trials.run_trials`.

- Before trials: `preflight.check_machines`, `resources.requested_resources`, `datasets.make_datasets`.
- From another machine: `jobs.submit`, `ray_submit.RunningCluster`; what is sent: `package.pack`, `secrecy.secret_name`.
"""
