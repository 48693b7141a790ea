"""Ray Tune schedules trials; what a trial is and leaves behind is not its business."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory, resource_dict_to_pg_factory
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from orchestrator.cluster.ray_cluster import machine_here, machines
from orchestrator.cluster.resources import alone, distinct_requests, requested_resources
from orchestrator.cluster.rounds import MOST_DEATHS, Round
from orchestrator.cluster.trials import train

MOST_PENDING = "200"
"""Trials that Tune keeps ready for processes to come; with a list of its own it would be one."""


def fit(together: Round, constants: dict[str, Any]) -> None:
    """Run trials, each in a process of the open cluster, as many at once as it has room for.

    Args:
        together: The trials.
        constants: What `train` needs to know beside the trial.

    Raises:
        ClusterError: No machine has what a trial needs.
    """
    every = machines()

    def requests() -> list[dict[str, float]]:
        return distinct_requests(together.terms.resources, (trial.spec for trial in together.unfinished), every)

    requests()  # refuses what no machine has, before there is anything to stop
    if together.terms.sharing is not None:
        # What is taken in a bucket and waits here for room would wait for no machine else.
        ahead = together.terms.mirror is None
        together.terms.sharing.begins(together.terms.resources, requests, machines, ahead)
    together.wait_for_a_part()
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", MOST_PENDING)
    scratch = together.terms.scratch
    tuner = tune.Tuner(
        tune.with_resources(_train, _asked),
        param_space={"storage": str(together.storage), **constants},
        tune_config=tune.TuneConfig(
            reuse_actors=True, search_alg=Turns(together, every), scheduler=Thrift(together), num_samples=-1
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch.resolve()),
            verbose=0,
            callbacks=[Relay(together)],
            failure_config=tune.FailureConfig(max_failures=MOST_DEATHS),
        ),
    )
    # With half a million objects that stay, Python would look for cyclic garbage too rarely to keep memory flat.
    gc.freeze()
    try:
        tuner.fit()
    except _Stopped:
        assert together.stop is not None
        raise together.stop from None
    finally:
        gc.unfreeze()
        shutil.rmtree(scratch, ignore_errors=True)


class _Stopped(BaseException):
    """Stops Tune from within a callback; as an Exception it would be taken for an error of the callback."""


def _asked(config: dict[str, Any]) -> PlacementGroupFactory:
    """Return what a trial asks of Ray; Tune uses a process again for trials that ask for the same."""
    return resource_dict_to_pg_factory(config["request"])


def _train(config: dict[str, Any]) -> None:
    """Run one trial in a Tune worker."""
    train(config, tune.report, exclusive=alone(config["request"], machine_here()))


class Turns(Searcher):
    """Hands Tune one trial after the other, as many at once as are this run's part of the cluster.

    Tune saves its searchers, to be able to restore what we never restore: nothing of this one is kept.

    Args:
        together: The trials that Tune runs.
        every: What each machine has.
    """

    def __init__(self, together: Round, every: list[dict[str, float]]) -> None:
        super().__init__()
        self.together, self._every = together, every

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial, None while there is none, and that it is over."""
        if self.together.stop is not None:
            raise _Stopped
        self.together.tick()  # while none of its trials runs, Tune asks here and nowhere else
        if self.together.over:
            return Searcher.FINISHED
        ours = self.together.next()
        if ours is None:
            return None
        spec = self.together.planned[ours].spec
        request = requested_resources(self.together.terms.resources, spec, self._every)
        return self.together.config(ours) | {"request": request}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn nothing: `Relay` hears it."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Take nothing up again."""


class Thrift(FIFOScheduler):
    """Ends processes that Tune would keep for a next trial.

    One, where this run has its part and others wait for theirs; and that of a trial that FAILED, since what broke the
    trial may have broken the process: a CUDA context that met an error fails every trial after that.

    Args:
        together: The trials that Tune runs.
    """

    def __init__(self, together: Round) -> None:
        super().__init__()
        self.together = together

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return the next trial, as Tune does without a scheduler."""
        chosen = super().choose_trial_to_run(tune_controller)
        if chosen is None and self.together.has_its_part:
            tune_controller._cleanup_cached_actors(force_all=True)
        return chosen

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Have the trial's process ended where the trial has FAILED: Tune keeps none that it has not seen start."""
        if "failed" in result:
            tune_controller._started_actors.discard(tune_controller._trial_to_actor.get(trial))


class Relay(tune.Callback):
    """Passes Tune's events on.

    Tune pickles its callbacks, to be able to restore what we never restore: nothing of this one is kept.

    Args:
        together: The trials that Tune runs.
    """

    def __init__(self, together: Round) -> None:
        self.together = together

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Let the watcher do what is due."""
        if self.together.stop is not None:
            raise _Stopped
        self.together.tick()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a process works on the trial."""
        self.together.started(trial.config["trial_id"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass on what a trial says; how often its process died counts anew from each epoch on."""
        if self.together.said(trial.config["trial_id"], result):
            trial.run_metadata.num_failures = 0

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a process died and another takes its trial up."""
        self.together.died(trial.config["trial_id"], trial.num_failures)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a trial ended."""
        _forget(trial)
        self.together.ended(trial.config["trial_id"], "the trial ended without a result")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a trial's process died once too often."""
        _forget(trial)
        self.together.gave_up(trial.config["trial_id"], _last_words(trial))


def _forget(trial: Any) -> None:
    """Free what Tune keeps of a trial to the end: its last report, and statistics of every number in it."""
    trial.metric_analysis.clear()
    trial.metric_n_steps.clear()
    trial.run_metadata.last_result.clear()


def _last_words(trial: Any) -> str:
    """Return the last line of what Ray says of a trial's last death."""
    said = trial.get_error()
    if not said:
        # Tune looks in the place that it copies to, and may not have copied yet.
        try:
            said = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            said = ""
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "Ray gives no reason")
