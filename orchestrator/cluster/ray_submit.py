"""What lets stock `ray submit SWEEP SCRIPT` put a sweep on a running cluster: a node provider without SSH.

Ray's launcher copies a script to the head of a cluster and runs it there, by a command runner that a node provider
gives it. Ours hands both to the Jobs API, which is how `idp submit` works too, token and all. It starts no machines.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from ray.autoscaler.command_runner import CommandRunnerInterface
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_CLUSTER_NAME,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
)

from orchestrator.cluster import jobs
from orchestrator.cluster.package import pack
from orchestrator.errors import UserError
from orchestrator.storage.layout import Storage, default_storage
from orchestrator.sweep import plugins
from orchestrator.sweep.files import load_sweep, sweep_files
from orchestrator.sweep.specs import SweepError

SWEEP_VARIABLE = "IDP_SWEEP"
"""Names the sweep's file to the script, relative to the working directory."""

_NOT_OURS = "of Ray's launcher only submit and exec work here; docker compose or Slurm starts and stops the cluster"
_HEAD = "head"
_NODE_TYPE = "machine"
_EMPTY: dict[str, Any] = {
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "initialization_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


class RunningCluster(NodeProvider):
    """A cluster that runs already, as its head; the `provider.module` of a sweep that is a Ray cluster file too."""

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Return the cluster file with what Ray's schema asks of it and this provider has no use for."""
        nodes = {_NODE_TYPE: {"resources": {}, "node_config": {}, "min_workers": 0, "max_workers": 0}}
        return {**_EMPTY, **cluster_config, "available_node_types": nodes, "head_node_type": _NODE_TYPE}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Return the head, where it is asked for."""
        tags = self.node_tags(_HEAD)
        return [_HEAD] if all(tags.get(name) == value for name, value in tag_filters.items()) else []

    def node_tags(self, node_id: str) -> dict[str, str]:
        """Return what Ray's launcher wants to know of a node."""
        return {
            TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
            TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
            TAG_RAY_CLUSTER_NAME: self.cluster_name,
        }

    def is_running(self, node_id: str) -> bool:
        """Return that it runs; where it does not, submitting says so."""
        return True

    def is_terminated(self, node_id: str) -> bool:
        """Return that it was not terminated."""
        return False

    def external_ip(self, node_id: str) -> str:
        """Return the host of the Jobs API."""
        return self._address().removeprefix("http://")

    internal_ip = external_ip

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        """Refuse: `ray up` and `ray submit --start` would need it."""
        raise click.ClickException(_NOT_OURS)

    def terminate_node(self, node_id: str) -> None:
        """Refuse: `ray down` would need it."""
        raise click.ClickException(_NOT_OURS)

    def get_command_runner(self, *args: Any, **kwargs: Any) -> CommandRunnerInterface:
        """Return what runs a command on the head."""
        return JobRunner(self._address())

    def _address(self) -> str:
        return os.environ.get("RAY_API_SERVER_ADDRESS") or self.provider_config.get("address") or jobs.DEFAULT_ADDRESS


class JobRunner(CommandRunnerInterface):
    """Runs a command as a job, in a copy of the working directory, and passes on what it says."""

    def __init__(self, address: str) -> None:
        self.address = address

    def run_rsync_up(self, source: str, target: str, options: dict[str, Any] | None = None) -> None:
        """Do nothing for `ray submit`, whose script goes with the working directory; refuse `ray rsync-up`."""
        if "script" not in click.get_current_context().params:
            raise click.ClickException("jobs have the working directory; files for all are put into the storage")

    def run_rsync_down(self, source: str, target: str, options: dict[str, Any] | None = None) -> None:
        """Refuse: what is made is in the storage."""
        raise click.ClickException("what sweeps make is in the storage; idp logs shows what a job says")

    def run(self, cmd: str | None = None, *args: Any, **kwargs: Any) -> str:
        """Submit the command, follow it, and exit as it does."""
        # `ray down` would run `ray stop` on the head, and `ray attach` a shell that nobody could type into.
        if not cmd or click.get_current_context().info_name not in ("submit", "exec"):
            raise click.ClickException(_NOT_OURS)
        try:
            state = _submit(cmd, self.address)
        except UserError as error:
            raise click.ClickException(str(error)) from None
        if state != "SUCCEEDED":
            sys.exit(1)
        return ""


def _submit(command: str, address: str) -> str:
    # Ray passes neither the cluster file nor the script's arguments as they were given on to a command runner.
    given = click.get_current_context().params
    folder, path = Path.cwd().resolve(), Path(given["cluster_config_file"])
    sweep, files = load_sweep(path), sweep_files(path)
    if "script" in given:
        script = Path(given["script"])
        if not script.is_file():
            raise SweepError(f"{script}: there is no such script")
        files.append(script)
        arguments = given["script_args"] or shlex.split(given["args"] or "")
        words = ["python", _inside(folder, script), *arguments]
    else:
        words = ["bash", "-c", command]
    name = _inside(folder, path)
    with tempfile.TemporaryDirectory(prefix="idp-submit-") as scratch:
        package = Path(scratch, "working-directory.zip")
        sent = pack(folder, package, files, plugins.packages(), storage=Storage.given(default_storage()).path)
        client = jobs.connect(address)
        job_id = jobs.submit(client, package, words, sweep.name, environment={SWEEP_VARIABLE: name})
    print(f"sent {sent.words()}, of {folder}")
    print(f"job {job_id} at {client.get_address()}; to stop it: idp cancel {name} --job {job_id}", flush=True)
    (job,) = (job for job in jobs.list_jobs(client) if job.job_id == job_id)
    try:
        ended = jobs.follow(client, job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(f"\njob {job_id} goes on; to see it: idp logs {job_id} --follow", file=sys.stderr)
        return "SUCCEEDED"
    print(f"job {job_id} {ended.state}: {ended.message}", file=sys.stderr)
    return ended.state


def _inside(folder: Path, path: Path) -> str:
    path = path.resolve()
    if not path.is_relative_to(folder):
        raise SweepError(f"{path}: outside {folder}, which is what the cluster is sent: submit from a folder above it")
    return path.relative_to(folder).as_posix()
