"""`idp metrics`: what Prometheus asks for, of a storage, of the runs that work in it, and of services beside it."""

from __future__ import annotations

import argparse
import re
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from orchestrator.cli.options import add_storage
from orchestrator.errors import UserError
from orchestrator.signals import Interrupted
from orchestrator.storage.census import Census, room
from orchestrator.storage.layout import Storage
from orchestrator.storage.runs import Run, runs
from orchestrator.terminal import tell

DEFAULT_PLACE = "127.0.0.1:9464"
FRESH_SECONDS = 10.0
"""For so long an answer is given again: several may ask, and a file server has better things to do."""

PROBE_SECONDS = 4.0
_CONTENT = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float]


def add_metrics(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `metrics` to the command line's verbs."""
    metrics = verbs.add_parser("metrics", help="Numbers for Prometheus: trials, runs, failures, room on the disk.")
    metrics.set_defaults(verb=_metrics)
    metrics.add_argument("--listen", metavar="HOST:PORT", default=DEFAULT_PLACE, help=f"(default: {DEFAULT_PLACE})")
    metrics.add_argument("--once", action="store_true", help="write them to standard output and end")
    metrics.add_argument(
        "--probe",
        metavar="NAME=URL",
        action="append",
        default=[],
        help="a service that is up where the URL answers 200; may be given again",
    )
    add_storage(metrics)


class Metrics:
    """The text that Prometheus reads.

    Args:
        storage: The storage directory.
        probes: Addresses of services, by their names.
    """

    def __init__(self, storage: Storage, probes: Mapping[str, str]) -> None:
        self._storage, self._probes, self._census = storage, probes, Census(storage)
        self._lock = threading.Lock()
        self._text, self._made = "", float("-inf")

    def text(self) -> str:
        """Return the numbers as they are, or were `FRESH_SECONDS` ago."""
        with self._lock:
            if time.monotonic() - self._made >= FRESH_SECONDS:
                self._text = "".join(f"{line}\n" for line in self._lines())
                self._made = time.monotonic()
            return self._text

    def _lines(self) -> Iterator[str]:
        began = time.monotonic()
        try:
            yield from self._of_storage()
            well = 1.0
        except OSError as error:  # what of it can't be known is missing, and an alert says so
            tell(f"{self._storage}: {error}")
            well = 0.0
        yield from _metric("idp_storage_up", "1 where the storage answers.", [({}, well)])
        if self._probes:
            up = [({"service": name}, float(_answers(url))) for name, url in self._probes.items()]
            yield from _metric("idp_service_up", "1 where a service answers that it is healthy.", up)
        seconds = time.monotonic() - began
        yield from _metric("idp_collect_seconds", "How long it took to collect all this.", [({}, seconds)])

    def _of_storage(self) -> Iterator[str]:
        left = room(self._storage)
        sizes = [({"kind": "size"}, float(left.bytes)), ({"kind": "free"}, float(left.free_bytes))]
        yield from _metric("idp_disk_bytes", "The file system of the storage.", sizes)
        if left.files:
            files = [({"kind": "size"}, float(left.files)), ({"kind": "free"}, float(left.free_files))]
            yield from _metric("idp_disk_files", "How many files it can hold.", files)
        states = [({"state": state}, float(count)) for state, count in self._census.states().items()]
        yield from _metric("idp_trials", "Trials of the storage by state.", states)
        yield from _of_runs(runs(self._storage))


def _of_runs(working: Sequence[Run]) -> Iterator[str]:
    """Yield what is told of each run that works."""
    names = [
        {"run": run.name, "sweep": run.note.sweep, "user": run.note.user, "cluster": run.note.cluster}
        for run in working
    ]
    notes = [run.note for run in working]
    trials: list[Sample] = []
    for name, note in zip(names, notes, strict=True):
        counts = {"running": note.running, "waiting": max(0, note.wants - note.running)}
        counts |= {"done": note.done, "failed": note.failed}
        trials += [({**name, "state": state}, float(count)) for state, count in counts.items()]
    yield from _metric("idp_run_trials", "Trials of a run that works, by state.", trials)
    for metric, kind, meaning, values in (
        ("idp_run_epochs_total", "counter", "Epochs that a run has trained.", [note.epochs for note in notes]),
        (
            "idp_run_stands_still_seconds",
            "gauge",
            "Since a trial of a run last finished an epoch or ended, or the first began; 0 while none runs.",
            [run.still_seconds for run in working],
        ),
        (
            "idp_run_silent_seconds",
            "gauge",
            "Since a run has given a sign of life.",
            [run.silent_seconds for run in working],
        ),
        # No state of `idp_run_trials`: whoever sums those would count each trial twice.
        ("idp_run_sweep_trials", "gauge", "Trials of a run's sweep.", [note.total for note in notes]),
        ("idp_run_gpus", "gauge", "GPUs that a run has.", [note.running * note.gpus for note in notes]),
        ("idp_run_cpus", "gauge", "Processors that a run has.", [note.running * note.cpus for note in notes]),
    ):
        samples = [(name, float(value)) for name, value in zip(names, values, strict=True)]
        yield from _metric(metric, meaning, samples, kind)


def _metric(name: str, meaning: str, samples: Sequence[Sample], kind: str = "gauge") -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        inside = ",".join(f'{label}="{_quoted(said)}"' for label, said in labels.items())
        yield f"{name}{{{inside}}} {value!r}" if inside else f"{name} {value!r}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _answers(url: str) -> bool:
    """Return whether an address answers 200 soon, without any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PROBE_SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException, ValueError):  # HTTPException: what answers there is no web server
        return False


def _probes(given: Sequence[str]) -> dict[str, str]:
    probes = {}
    for text in given:
        name, _, url = text.partition("=")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,40}", name) or not re.match(r"https?://[^/]", url):
            raise UserError(f"--probe {text!r:.200}: expected NAME=URL, such as mlflow=http://mlflow:5000/health")
        probes[name] = url
    return probes


def _place(given: str) -> tuple[str, int]:
    host, _, port = given.rpartition(":")
    if not host or re.fullmatch(r"[0-9]{1,5}", port) is None or int(port) >= 2**16:
        raise UserError(f"--listen {given!r:.80}: expected HOST:PORT, such as {DEFAULT_PLACE}")
    return host.strip("[]"), int(port)


class _Server(ThreadingHTTPServer):
    """Listens at an address of either family, and lets those go who do not wait for their answer."""

    def __init__(self, place: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        super().__init__(place, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Write down where it went wrong, but for who has hung up: Prometheus does, after `scrape_timeout`."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def server(place: tuple[str, int], metrics: Metrics) -> ThreadingHTTPServer:
    """Return what answers GET /metrics, and nothing else.

    Args:
        place: Host and port to listen at.
        metrics: What it answers.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0
        server_version, sys_version = "idp", ""

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            content = metrics.text().encode()
            self.send_response(200)
            self.send_header("Content-Type", _CONTENT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *words: object) -> None:
            """Say nothing of each question."""

    return _Server(place, Handler)


def _metrics(options: argparse.Namespace) -> int:
    metrics, place = Metrics(options.storage, _probes(options.probe)), _place(options.listen)
    if options.once:
        print(metrics.text(), end="")
        return 0
    try:
        answering = server(place, metrics)
    except OSError as error:
        raise UserError(f"--listen {options.listen}: {error.strerror or error}") from None
    except (TypeError, UnicodeError):  # what Python says where a name can't be looked up at all
        raise UserError(f"--listen {options.listen!r:.80}: {place[0]!r:.80} is no name of a machine") from None
    with answering:
        host, port = str(answering.server_address[0]), answering.server_address[1]
        at = f"[{host}]" if ":" in host else host
        print(f"idp: http://{at}:{port}/metrics tells of {options.storage}", file=sys.stderr, flush=True)
        try:
            answering.serve_forever()
        except Interrupted:
            return 0
    return 0
