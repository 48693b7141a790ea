"""What is kept: results, curves, leases, checkpoints, archives; who may write them, and what made them.

Begin with `layout.Storage` and `trial_directory.TrialDirectory`, which own all names.

- Who may write, and how: `leases.Lease`, `files.write_bytes`.
- Of a trial: `results.TrialResult`, `curves.read_curves`, `checkpoints.load_checkpoint`, `standing.Standing`,
  `provenance.Provenance`, `code.parts_of`, `evaluations.EvaluationResult`.
- Of a sweep: `suggestions.planned_trials`, `variants.every_trial`, `measurements.Measurement`.
- Shared with machines that don't see this storage: `mirror.Mirror`, through a `bucket.Bucket`, in `parcels`.
- Of the storage as a whole: `archive.write_archive`, `cleanup.rebuildable`, `census.Census`.
- Who runs what in it: `runs.runs`.
"""
