"""The command line, a verb a function.

Begin with `main.main`; each of the other files adds its verbs' parsers to it.

- Sweeps: `plan.add_plan`, `jobs.add_job_verbs`, `results.add_verbs`, `exchange.add_interchange`, `mirror.add_mirror`.
- The sweep file's reference: `fields.add_fields`.
- A map of one's own: `own_map.show_map`.
- Single trials and the storage: `trials.add_trial_verbs`, `certify.add_certify`.
- This machine, and plug-ins: `doctor.add_doctor`, `check.add_check`; for Prometheus: `metrics.add_metrics`.
- What verbs share: `options.add_storage`; for shells: `completion.add_completion`.
"""

from datagen.moved import attributes

__getattr__ = attributes("orchestrator.cli", "orchestrator.cli.main")
