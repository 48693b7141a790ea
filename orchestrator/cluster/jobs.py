"""Sweeps on a cluster, through Ray's Jobs API: submit, list, follow, stop.

A job is only how a sweep is run: what is done is known from the storage, whatever became of the job.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestrator.errors import JobError as JobError
from orchestrator.storage.runs import user_here
from orchestrator.words import first_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
REACHABLE_SECONDS = 4.0
ANSWER_SECONDS = 60.0
_ALIVE = ("PENDING", "RUNNING")
_SWEEP, _COMMAND = "idp_sweep", "idp_command"


@dataclass(frozen=True)
class Job:
    """A job on the cluster.

    Attributes:
        job_id: Its submission id.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        sweep: Name of its sweep, empty for a job that `submit` did not make.
        command: What it runs.
        message: What Ray says about it.
        started: When it was submitted, in seconds since 1970.
        ended: When it ended, None while it runs.
    """

    job_id: str
    state: str
    sweep: str
    command: str
    message: str
    started: float
    ended: float | None

    @property
    def alive(self) -> bool:
        """Whether it runs or is going to."""
        return self.state in _ALIVE


def api_address(given: str | None = None) -> str:
    """Return the address of a cluster's Jobs API.

    Args:
        given: "http://HOST:PORT" or "HOST:PORT"; None for RAY_API_SERVER_ADDRESS, else port 8265 of this machine.

    Raises:
        JobError: It is no such address.
    """
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    if "://" not in address:
        address = f"http://{address}"
    try:
        parts = urlsplit(address)
        possible = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a bracket that is not closed, letters for a port
        possible = False
    if not possible:
        raise JobError(f"--address {address!r}: expected http://HOST:8265, where the cluster's dashboard listens")
    return address.rstrip("/")


def listens() -> bool:
    """Return whether anything listens at the default address, on this machine."""
    parts = urlsplit(DEFAULT_ADDRESS)
    try:
        socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=REACHABLE_SECONDS).close()
    except OSError:
        return False
    return True


def connect(given: str | None = None) -> JobSubmissionClient:
    """Return a client of the cluster's Jobs API.

    Args:
        given: As for `api_address`.

    Raises:
        JobError: Nothing answers there, or it wants another token.
    """
    address = api_address(given)
    parts = urlsplit(address)
    try:
        # Before Ray is imported, which takes longer than this, and would wait without end for a silent host.
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((str(parts.hostname), port), timeout=REACHABLE_SECONDS).close()
    except OSError as error:
        raise JobError(
            f"no Ray cluster answers at {address}: {error.strerror or error}; start it (docker compose up, or "
            "ray start --head), or say where it is by --address http://HOST:8265 or RAY_API_SERVER_ADDRESS; a run "
            "without a cluster has no job, and idp plan SWEEP shows what is done"
        ) from None
    _check_token()
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Ray's own, which would wait for an answer without end."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            options.setdefault("timeout", (REACHABLE_SECONDS, ANSWER_SECONDS))
            return super()._do_request(method, endpoint, **options)

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray puts the variable above the argument.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    with _answers(address):
        return Client(address)


def _check_token() -> None:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN") or path is None:
        return
    try:
        if Path(path).read_text().strip():
            return
        reason = "is empty"
    except OSError as error:
        reason = str(error.strerror)
    raise JobError(f"RAY_AUTH_TOKEN_PATH: {path}: {reason}; it must hold the cluster's token")


@contextmanager
def _answers(address: str) -> Iterator[None]:
    """Turn what can go wrong with a request into one clear message."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        if "required" in str(error):
            raise JobError(
                f"{address} wants a token and got none (401): set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a "
                "file with the cluster's token; its administrator has it"
            ) from None
        raise JobError(
            f"{address} refuses the token (403): the one in RAY_AUTH_TOKEN_PATH (else RAY_AUTH_TOKEN, else "
            "~/.ray/auth_token) is not this cluster's"
        ) from None
    except BrokenPipeError:  # of whoever has read what the job says
        raise
    except (requests.exceptions.RequestException, ConnectionError, TimeoutError) as error:
        raise JobError(f"{address}: the cluster does not answer: {first_line(error)}") from None
    except RuntimeError as error:
        raise JobError(f"{address}: Ray refuses: {first_line(error)}") from None


def version(client: JobSubmissionClient) -> str:
    """Return the cluster's version of Ray."""
    with _answers(client.get_address()):
        return str(client._do_request("GET", "/api/version").json()["ray_version"])


def list_jobs(client: JobSubmissionClient) -> list[Job]:
    """Return the jobs that were submitted to the cluster, the latest first."""
    with _answers(client.get_address()):
        found = client.list_jobs()
    jobs = [_job(details) for details in found if details.submission_id is not None]
    return sorted(jobs, key=lambda job: -job.started)


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        job_id=details.submission_id,
        state=str(getattr(details.status, "value", details.status)),
        sweep=metadata.get(_SWEEP, ""),
        command=metadata.get(_COMMAND, details.entrypoint),
        message=details.message or "",
        started=(details.start_time or 0) / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
    )


def submit(
    client: JobSubmissionClient,
    package: Path,
    command: Sequence[str],
    sweep: str,
    profile: str | None = None,
    environment: dict[str, str] | None = None,
) -> str:
    """Run a command on the cluster, in a copy of the working directory, and return the job's id.

    Args:
        client: The cluster.
        package: The working directory, as `pack` has made it.
        command: What to run there.
        sweep: Name of its sweep.
        profile: The sweep's profile.
        environment: Variables to set for the job and all its workers.

    Raises:
        JobError: A job runs the same command already, or the cluster refuses.
    """
    words = shlex.join(command)
    jobs = list_jobs(client)
    for job in jobs:
        if job.alive and (job.sweep, job.command) == (sweep, words):
            raise JobError(
                f"{sweep}: job {job.job_id} runs it already (idp logs {job.job_id} --follow shows how far it is)"
            )
    job_id = _new_id([job.job_id for job in jobs], sweep, profile)
    # By these, who shares the cluster sees whose run it is.
    variables = {"IDP_USER": user_here(), "IDP_JOB": job_id, **(environment or {})}
    runtime_env: dict[str, Any] = {"working_dir": str(package), "env_vars": variables}
    with _answers(client.get_address()):
        # Two that submit at the same moment choose the same id, and Ray refuses the second.
        return client.submit_job(
            entrypoint=words,
            submission_id=job_id,
            runtime_env=runtime_env,
            metadata={_SWEEP: sweep, _COMMAND: words},
        )


def _new_id(taken: Sequence[str], sweep: str, profile: str | None) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(filter(None, [sweep, profile])))
    numbers = [int(found[1]) for name in taken if (found := re.fullmatch(re.escape(stem) + r"-(\d+)", name))]
    return f"{stem}-{max(numbers, default=0) + 1}"


def find_job(jobs: Sequence[Job], name: str) -> Job:
    """Return the job of that id, else the latest of that sweep.

    Args:
        jobs: The cluster's, the latest first.
        name: A job's id, or a sweep's name.

    Raises:
        JobError: There is none.
    """
    found = [job for job in jobs if job.job_id == name] or [job for job in jobs if name and job.sweep == name]
    if found:
        return found[0]
    known = ", ".join(job.job_id for job in jobs[:5]) or "none"
    raise JobError(
        f"no job {name!r} on the cluster, nor one of a sweep of that name; the latest: {known}. A head that has been "
        "started again has forgotten the jobs before; what they have done is in the storage (idp plan SWEEP)"
    )


def stop(client: JobSubmissionClient, job: Job) -> bool:
    """Stop a job; its trials keep what they have, and the same sweep submitted again goes on from there.

    Returns:
        True where it was running.
    """
    with _answers(client.get_address()):
        return bool(client.stop_job(job.job_id))


def log(client: JobSubmissionClient, job: Job) -> str:
    """Return what the job has said so far."""
    with _answers(client.get_address()):
        return str(client.get_job_logs(job.job_id))


def follow(client: JobSubmissionClient, job: Job, say: Callable[[str], None]) -> Job:
    """Pass on what the job says, from its beginning, until it ends; returns it as it is then."""

    import asyncio  # a tenth of what planning a sweep takes to start

    async def tail() -> None:
        async for text in client.tail_job_logs(job.job_id):
            say(text)

    with _answers(client.get_address()):
        asyncio.run(tail())
        return _job(client.get_job_info(job.job_id))
