"""What is asked: sweep files, their fields, the trials that a sweep stands for, and plug-ins.

Begin with `specs.SweepSpec` and `specs.expand`, which gives its trials.

- From YAML: `yaml_1_2.read_yaml`, `files.load_sweep`, `plugins.load_plugins`.
- Its fields: `grid.product`, `limits.Budget`, `search_space.SearchSpec`, `figure_names`.
- A trial: `trial.TrialSpec`; what it may be beside a planner: `systems.System`.
- Their reference: `schema.sweep_schema`, `reference.find`, `meanings.meanings`, `examples.example`.
- Its trials: `selection.select`, `suggestions.fitting`.
"""
