"""A command on a sweep as it was given, and the command line that does it again: in one place for all who tell one."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from orchestrator.addresses import shown_uri
from orchestrator.storage.layout import default_storage
from orchestrator.sweep.files import named

_TAKEN_BY = {"--address": ("run", "status"), "--tracking-uri": ("run",), "--rerun": ("run",), "--mirror": ("run",)}
"""Options that not every verb on a sweep takes."""


@dataclass(frozen=True)
class Command:
    """What was asked of a sweep; the fields are the options of `idp run`.

    Attributes:
        sweep: The sweep's file.
        profile: One of its profiles.
        storage: The storage directory.
        overrides: Settings `path=value`.
        only: Which trials.
        address: A Ray cluster; None for one on this machine.
        tracking_uri: MLflow's store; None for the database in the storage.
        rerun: What is to be trained again.
        in_process: Whether the process of the command does all of it, without Ray.
        mirror: The bucket through which machines without a shared file system share the work.
    """

    sweep: str
    profile: str | None = None
    storage: str | None = None
    overrides: tuple[str, ...] = ()
    only: str | None = None
    address: str | None = None
    tracking_uri: str | None = None
    rerun: str | None = None
    in_process: bool = False
    mirror: str | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Command:
        """Return what the options of a verb ask for; a verb need not have all of them."""
        given: dict[str, Any] = {field.name: getattr(options, field.name, None) for field in fields(cls)}
        storage = None if given["storage"] is None else str(given["storage"])
        rest = {"overrides": tuple(given["overrides"] or ()), "in_process": bool(given["in_process"])}
        return cls(**given | {"storage": storage} | rest)

    def words(self, verb: str = "run", *, here: bool = True) -> list[str]:
        """Return the command line that does `verb` with these options, as far as it takes them.

        Args:
            verb: The verb.
            here: True leaves out what is the default on this machine anyway, and passwords; False is for another one.
        """
        storage, address, uri = self.storage, self.address, self.tracking_uri
        if here:
            storage = None if storage is None or Path(storage) == Path(default_storage()) else storage
            address = None if address == os.environ.get("RAY_ADDRESS") else address
            uri = None if uri in (None, os.environ.get("MLFLOW_TRACKING_URI")) else shown_uri(uri)
        options = [("--address", address), ("--profile", self.profile), ("--storage", storage)]
        options += [("--set", override) for override in self.overrides]
        options += [("--only", self.only), ("--tracking-uri", uri), ("--rerun", self.rerun)]
        options += [("--mirror", self.mirror)]
        words = ["idp", verb, named(self.sweep) if here else self.sweep]
        for flag, value in options:
            if value and verb in _TAKEN_BY.get(flag, (verb,)):
                words += [flag, value]
        return [*words, "--in-process"] if self.in_process and verb == "run" else words
