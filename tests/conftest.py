"""What holds for every test: the plug-ins that it loads are gone when it ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from datagen.plugins import LOADED, OWNERS
from datagen.tasks.registry import TASKS
from orchestrator.storage.provenance import code_hash
from planners.registry import ADJOINTS, CORES, MAPPERS, SOLVERS

REGISTRIES = (CORES, SOLVERS, ADJOINTS, MAPPERS, TASKS, OWNERS, LOADED)


@contextmanager
def plugins_forgotten() -> Iterator[None]:
    """Leave the registries, Python's path and the plug-ins' modules as they were."""
    before, path, modules = [dict(registry) for registry in REGISTRIES], list(sys.path), set(sys.modules)
    yield
    loaded = {name.partition(".")[0] for name in LOADED if name not in before[-1]}
    for registry, lines in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(lines)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in loaded:
            del sys.modules[name]
    if loaded:
        code_hash.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def of_a_module() -> Iterator[None]:
    """What the fixtures of a module load serves that module alone."""
    with plugins_forgotten():
        yield


@pytest.fixture(autouse=True)
def of_a_test(of_a_module: None) -> Iterator[None]:
    """What a test loads serves that test alone."""
    with plugins_forgotten():
        yield
