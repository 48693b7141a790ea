"""Addresses that may hold a password: how they are shown, and what of them is shown nowhere."""

from __future__ import annotations

import re
from urllib.parse import unquote

# SQLAlchemy takes a password with "/", "?" or "#" in it, which ends the host's part for whoever splits a URL.
_LOGIN = re.compile(r"(?<=://)(?:[^/?#@]*:.*|[^/?#]*)(?=@)")
_OPTION = re.compile(r"(?<=[?&])([^=&]*(?:pass|secret|token)[^=&]*=)([^&]+)", re.IGNORECASE)


def shown_uri(uri: str) -> str:
    """Return the address without user and password."""
    return _LOGIN.sub("***", _OPTION.sub(r"\1***", uri), count=1)


def without_secrets(text: str, uri: str) -> str:
    """Return a text without the user and password of an address, which errors like to repeat."""
    secrets = [value for _, value in _OPTION.findall(uri)]
    if login := _LOGIN.search(_OPTION.sub("", uri)):
        secrets += [login[0], *login[0].split(":", 1)[1:]]
    for secret in (*secrets, *map(unquote, secrets)):
        if secret:
            text = text.replace(secret, "***")
    return text
