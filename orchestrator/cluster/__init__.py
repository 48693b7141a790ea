"""Ray: machines, datasets and trials on them, jobs and what is sent along.

Begin with `executors.Executor` and `trials.run_trials`; `ray_cluster.ray_cluster` is what a cluster's work runs within.

- What is run together: `rounds.Round`; on a cluster: `tuning.fit`; in this process: `executors.InProcess`.
- Beside other runs: `sharing.division`.
- Before trials: `preflight.check_machines`, `resources.requested_resources`, `datasets.make_datasets`.
- From another machine: `jobs.submit`, `ray_submit.RunningCluster`; what is sent: `package.pack`, `secrecy.secret_name`.
"""
