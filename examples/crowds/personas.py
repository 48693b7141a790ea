"""Personas: short structured texts, what they mean to a member of a crowd, and who rewrites them."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crowds.evacuation import Traits
from datagen.plugins import PluginError

WORDS: dict[str, dict[str, float]] = {
    "speed": {"crawling": 0.25, "slow": 0.45, "walking": 0.65, "brisk": 0.8, "running": 0.95},
    "fear": {"calm": 0.0, "alert": 0.02, "uneasy": 0.05, "frightened": 0.1, "panicked": 0.2},
    "following": {"alone": 0.0, "aware": 0.15, "sociable": 0.3, "clinging": 0.5, "herding": 0.75},
    "knows": {"the entrance": 0b001, "the signs": 0b011, "the building": 0b111},
}
"""The words of each part of a persona, and what they mean: probabilities of a step (`Traits`), or a set of doors."""

VALUES = [np.array([*words.values()]) for words in WORDS.values()]
LEVELS = np.array([len(words) for words in WORDS.values()])
UNSTEERED = np.array([2, 0, 0, 2])
"""Who plans, and is nothing else: walking, calm, alone, knows the building."""

Crowd = NDArray[np.int64]
"""Personas [personas, 4], by the numbers of their words."""


def text(persona: NDArray[np.int64]) -> str:
    """Return a persona in words: "slow, uneasy, clinging, knows the signs"."""
    words = [[*names][number] for names, number in zip(WORDS.values(), persona, strict=True)]
    return f"{', '.join(words[:3])}, knows {words[3]}"


def read(line: str) -> NDArray[np.int64]:
    """Return the persona of a text.

    Raises:
        ValueError: It is none; the message says which word is not known.
    """
    said = [part.strip() for part in line.strip().lower().rstrip(".").split(",")]
    if len(said) != len(WORDS):
        raise ValueError(f"expected speed, fear, following, knows ..., got {line!r:.100}")
    said[3] = said[3].removeprefix("knows ")
    for (field, words), word in zip(WORDS.items(), said, strict=True):
        if word not in words:
            raise ValueError(f"{field}: expected one of {', '.join(words)}, got {word!r:.40}")
    return np.array([[*words].index(word) for words, word in zip(WORDS.values(), said, strict=True)])


def traits(crowds: Sequence[Crowd], members: int) -> Traits:
    """Return what members are like, [crowds, members]: the personas in turn."""
    turns = np.arange(members)
    levels = np.stack([crowd[turns % len(crowd)] for crowd in crowds])
    speed, fear, following, doors = (values[levels[..., part]] for part, values in enumerate(VALUES))
    return Traits(speed, fear, following, doors.astype(np.int64))


class Proposer(Protocol):
    """Who rewrites the personas of crowds."""

    def __call__(
        self, kept: Sequence[Crowd], reports: Sequence[str], count: int, generator: np.random.Generator
    ) -> list[Crowd]:
        """Return crowds to be tried.

        Args:
            kept: The best so far, best first.
            reports: How each of them differs from the benchmark, in words.
            count: How many crowds are wanted.
            generator: Of whatever is drawn.
        """


def rewritten(kept: Sequence[Crowd], reports: Sequence[str], count: int, generator: np.random.Generator) -> list[Crowd]:
    """Change one to three words of a good crowd, having taken some personas from another; reads no reports."""
    found = []
    for _ in range(count):
        crowd, other = (kept[generator.integers(len(kept))] for _ in range(2))
        crowd = np.where((generator.random(len(crowd)) < 0.25)[:, None], other, crowd)
        for _ in range(generator.integers(1, 4)):
            persona, part = generator.integers(len(crowd)), generator.integers(len(LEVELS))
            crowd[persona, part] = generator.integers(LEVELS[part])
        found.append(crowd)
    return found


def asked(kept: Sequence[Crowd], reports: Sequence[str], count: int, generator: np.random.Generator) -> list[Crowd]:
    """Ask the language model at the endpoint; a crowd of its answer that is not one is left out.

    Raises:
        PluginError: No endpoint is configured, it does not answer, or no crowd of the answer is one.
    """
    base, model = (os.environ.get(f"IDP_CROWDS_{name}", "") for name in ("ENDPOINT", "MODEL"))
    if not base or not model:
        raise PluginError(
            "crowds: proposer 'endpoint' needs IDP_CROWDS_ENDPOINT (http://host:port/v1) and IDP_CROWDS_MODEL"
        )
    crowds, problem = [], "no crowds"
    for said in _answer(base, model, _question(kept, reports, count)):
        try:
            crowd = np.stack([read(line) for line in said])
            if crowd.shape != kept[0].shape:
                raise ValueError(f"expected {len(kept[0])} personas, got {len(crowd)}")
            crowds.append(crowd)
        except (ValueError, TypeError, AttributeError) as error:
            problem = str(error)
    if not crowds:
        raise PluginError(f"crowds: the endpoint's answer has no crowd that is one: {problem:.200}")
    return crowds[:count]


def _question(kept: Sequence[Crowd], reports: Sequence[str], count: int) -> str:
    words = "\n".join(f"{field}: {', '.join(names)}" for field, names in WORDS.items())
    crowds = "\n\n".join(
        "\n".join(map(text, crowd)) + f"\nIt differs: {report}" for crowd, report in zip(kept, reports, strict=True)
    )
    personas = len(kept[0])
    return (
        f"A crowd leaves a building. Its {personas} personas stand for equal shares of it. A persona is one line of "
        f"four words,\n{text(UNSTEERED)}\nof these:\n{words}\n\nCrowds so far, best first:\n\n{crowds}\n\n"
        "Rewrite the personas so that the crowd behaves as the benchmark does. Answer with JSON alone: a list of "
        f"{count} crowds, each a list of {personas} lines."
    )


def _answer(base: str, model: str, question: str) -> list[list[str]]:
    """Return the list in the answer to a question."""
    body = {"model": model, "messages": [{"role": "user", "content": question}]}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("IDP_CROWDS_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    url = f"{base.rstrip('/')}/chat/completions"
    if not url.startswith(("http://", "https://")):
        raise PluginError(f"crowds: IDP_CROWDS_ENDPOINT: expected http:// or https://, got {base!r:.100}")
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            content = json.loads(response.read(1 << 20))["choices"][0]["message"]["content"]
        found = json.loads(content[content.index("[") : content.rindex("]") + 1])
    except (urllib.error.URLError, OSError) as error:
        raise PluginError(f"crowds: {url}: {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PluginError(f"crowds: {url}: expected a chat completion with a JSON list: {error}") from error
    if not isinstance(found, list):
        raise PluginError(f"crowds: {url}: expected a list of crowds")
    return found


PROPOSERS: dict[str, Proposer] = {"rewriter": rewritten, "endpoint": asked}
