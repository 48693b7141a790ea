"""Weights & Biases, filled by `idp sync` where `IDP_WANDB` names a project: a run for each trial that has ended.

By W&B's own `init` and `log`, whose account, address and mode (`WANDB_MODE=offline`) are its own variables'. It is not
filled while trials run: they would wait for a server elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from orchestrator.errors import TrackingError
from orchestrator.storage.layout import Storage
from orchestrator.sweep.specs import PlannedTrial, SweepSpec
from orchestrator.tracking.event_files import RESULT, as_number
from orchestrator.tracking.trial_run import trial_run
from orchestrator.words import counted, first_line

VARIABLE = "IDP_WANDB"


def send(sweep: SweepSpec, trials: Iterable[PlannedTrial], storage: Storage, say: Callable[[str], object]) -> str:
    """Send the trials that have ended, and return what has been sent in words; empty where no project is named.

    A trial's run has the trial's id, so that sending it again replaces it.

    Args:
        sweep: The sweep.
        trials: Those of its trials that are looked at.
        storage: The storage directory.
        say: Is told what is damaged.

    Raises:
        TrackingError: W&B is not installed, or does not take them.
    """
    project = os.environ.get(VARIABLE, "").strip()
    if not project:
        return ""
    try:
        import wandb
    except ImportError:
        raise TrackingError(f"{VARIABLE}={project:.100}: wandb is not installed here; pip install wandb") from None
    chosen = {trial.trial_id: trial for trial in trials}
    sent, where = 0, ""
    for trial_id, result in storage.results(chosen).items():
        shown = trial_run(chosen[trial_id], storage, result, sweep.label, say)
        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        try:
            with wandb.init(
                project=project,
                id=trial_id,
                name=shown.name,
                group=sweep.name,
                config={name: as_number(value) for name, value in shown.params.items()} | shown.facts,
                reinit="finish_previous",
                settings=settings,
            ) as run:
                for number, metrics in sorted(shown.epochs.items()):
                    run.log({metric.key: metric.value for metric in metrics}, step=number)
                run.summary.update({RESULT + metric.key: metric.value for metric in shown.numbers})
                where = f"{run.settings.sync_dir} and beside: wandb sync" if run.offline else str(run.url)
        except wandb.Error as error:
            raise TrackingError(f"{VARIABLE}={project:.100}: {first_line(error)}") from error
        sent += 1
    return f"{counted(sent, 'trial')} of {sweep.name} now in W&B's {project}" + (f" ({where})" if where else "")
