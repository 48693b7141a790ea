"""Word to a chat room: when a sweep ends, when its first trial fails, when a forward iteration first diverges.

The address is a secret, so it stands in the environment (`IDP_WEBHOOK`) and in no sweep, note or message of ours.
"""

from __future__ import annotations

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from queue import SimpleQueue
from typing import Self
from urllib.parse import urlsplit

from datagen.errors import UserError

VARIABLE = "IDP_WEBHOOK"
SECONDS = 10.0
"""How long a server may take to answer."""


class Webhook:
    """Posts `{"text": ...}` to an address, as Slack, Mattermost and what speaks like them take it.

    A thread of its own does so: a server that is slow or gone holds up no trial, and is told once on the terminal.
    """

    def __init__(self, address: str, sweep: str, say: Callable[[str], object]) -> None:
        """Take an address, empty for none.

        Args:
            address: http or https.
            sweep: Name of the sweep, with which each text begins.
            say: Is told where the server can't be reached.

        Raises:
            UserError: It is no such address.
        """
        try:
            parts = urlsplit(address)
        except ValueError:
            parts = urlsplit("")
        self._host = parts.hostname or ""
        if address and not (parts.scheme in ("http", "https") and self._host):
            raise UserError(f"{VARIABLE}: expected an address that begins with http:// or https:// (it is not shown)")
        self._address, self._sweep, self._say = address, sweep, say
        self._texts: SimpleQueue[str | None] = SimpleQueue()
        self._sent: set[str] = set()
        self._refused = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        if address:
            self._thread.start()

    @classmethod
    def of_environment(cls, sweep: str, say: Callable[[str], object]) -> Self:
        """Return the one that IDP_WEBHOOK names, for a sweep."""
        return cls(os.environ.get(VARIABLE, ""), sweep, say)

    def send(self, text: str, once: str = "") -> None:
        """Post a text without waiting.

        Args:
            text: One line.
            once: Names a kind of which the first alone is posted; empty for none.
        """
        if self._address and once not in self._sent:
            self._sent |= {once} - {""}
            self._texts.put(f"{self._sweep}: {text}")

    def close(self) -> None:
        """Wait until what was to be posted is, or a server has had its time."""
        if self._address:
            self._texts.put(None)
            self._thread.join(SECONDS + 1)

    def _work(self) -> None:
        while (text := self._texts.get()) is not None:
            body = json.dumps({"text": text}).encode()
            request = urllib.request.Request(self._address, body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=SECONDS):
                    pass
            except (OSError, HTTPException, ValueError) as error:
                why = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
                if not self._refused:
                    self._refused = True
                    self._say(f"{VARIABLE}: {self._host} did not take a word ({why}); the run goes on")
