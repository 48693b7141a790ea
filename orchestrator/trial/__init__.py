"""One trial, from its spec to its result: training, tests, failure, and looking inside afterwards.

Begin with `train.run_trial`, the whole way of a trial in one process.

- What is tried: `attempt.Attempt`; of a system `system.system_numbers`, what every one must do in `conformance`.
- While it runs: `device.device_of`, `watchdog.watched`, `telling.telling`, `cancel.cancel`.
- How it ends other than well: `failure.record_failure`, `divergence.WatchedTrainer`.
- Afterwards: `trained.load_trained`, `evaluate.evaluate_trial`, `healing.heal`, `export.export_model`,
  `export.export_graph`.
- Before a sweep: `measure.measure_cells`, some steps of each of its cells.
"""
