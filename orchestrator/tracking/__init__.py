"""MLflow: what it is told of a sweep, and how it compares.

Begin with `tracker.Tracker`, which a run has, and `tracker.sync`.

- What is shown: `trial_run.trial_run`, `numbers.metrics_of`, `documents.write_documents`, `comparison.comparison`.
- How it gets there: `view.View`, `experiment.find_experiment`, `bulk.insert_runs`, `store.open_store`.
- What it has by now: `note.unsent`.
- The same numbers for TensorBoard: `event_files.EventFiles`; for Weights & Biases: `wandb_runs.send`.
"""
