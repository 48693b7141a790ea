"""What tests share: processes and databases that take seconds to make; and that plug-ins are gone when a test ends."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

os.environ["IDP_CHECK_SHAPES"] = "1"  # before anything of ours is imported, see datagen/shapes.py
os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels run here on the CPU
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # before jax: it compiles what runs once
# What jax has compiled is kept for the next run, as numba's kernels are.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# What tests write lies in memory where there is room: a disk takes 3 ms to keep a file for certain, and 3 to remove it.
if Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free > 8 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")

from cluster import Head, token_environment
from forkserver import Forkserver
from small_trial import DATA

from datagen.plugins import LOADED, OWNERS
from datagen.storage.dataset import make_dataset
from datagen.tasks.registry import TASKS
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.sweep.systems import SYSTEMS
from planners.registry import ADJOINTS, CORES, MAPPERS, SOLVERS

WRITES_NO_BYTECODE = sys.dont_write_bytecode
sys.dont_write_bytecode = False  # until all is collected: compiling and rewriting it anew took 6 s a process
gc.set_threshold(100_000, 20, 100)  # of what libraries and compilers make, most stays: a quarter of collecting tests

REGISTRIES = (CORES, SOLVERS, ADJOINTS, MAPPERS, TASKS, SYSTEMS, OWNERS, LOADED)
RUNS_SWEEPS = {"idp", "head", "campaign"}
"""Fixtures of tests that run sweeps, or what costs as much."""
SWEEPS = (
    "test_executors",  # compiles, in one process, what those after it would compile in several at once
    "test_campaign", "test_jobs", "test_sharing", "test_experts_on_ray", "test_preflight", "test_leases",
    "test_slurm_jobs", "test_chaos", "test_plugins", "test_searching", "test_show", "test_guides", "test_notebook",
    "test_checking", "test_rows",
)  # fmt: skip
"""Files with such tests, in the order in which they are run."""
COMPILES = (
    "test_certificate", "test_reachability", "test_costs", "test_terrain", "test_compiled_planners", "test_trained",
    "test_planner_core", "test_denormals", "test_vin_kernel",
)  # fmt: skip
"""Files that would compile the same kernels at the same time, were they in several processes; first what is compiled
for none of `SWEEPS`, which begin beside them."""


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


def pytest_collection_finish() -> None:
    """Tell the collector of garbage that what is loaded by now stays, and need not be looked at again.

    And keep no bytecode of what tests write, if that was asked for: a module that is edited within a second is stale.
    """
    import hypothesis  # noqa: F401  (it asks the collector, as it is read, who holds its generators)

    sys.dont_write_bytecode = WRITES_NO_BYTECODE
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs sweeps as slow, and put the longest groups first, so that all else fits beside and after them."""
    slow = [item for item in items if RUNS_SWEEPS & set(item.fixturenames) or item.get_closest_marker("sweeps")]
    for item in slow:
        item.add_marker(pytest.mark.slow)
    if others := {item.path.stem for item in slow}.difference(SWEEPS):
        raise pytest.UsageError(f"{', '.join(sorted(others))}: runs sweeps, and conftest.SWEEPS does not name it")
    places = {stem: place for place, stem in enumerate((*SWEEPS, *COMPILES))}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give whole files to several workers, all that run sweeps to one: they share a Ray head; so those that compile."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            return "sweeps" if file.stem in SWEEPS else "kernels" if file.stem in COMPILES else str(file)

    return Scheduling(config, log)


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


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder for sockets, for whose names pytest's own folders are too deep."""
    with tempfile.TemporaryDirectory(prefix="idp-tests-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def token(scratch: Path) -> dict[str, str]:
    """The environment of who may use the session's Ray head."""
    return token_environment(scratch)


@pytest.fixture(scope="session")
def idp(scratch: Path, token: dict[str, str]) -> Iterator[Forkserver]:
    """Runs a command line of `idp` in a process of its own, without reading the libraries anew."""
    forkserver = Forkserver(scratch, token)
    yield forkserver
    forkserver.close()


@pytest.fixture(scope="session")
def head(scratch: Path, token: dict[str, str], idp: Forkserver) -> Iterator[Head]:
    """A Ray head with two processors, for all tests that need none of their own."""
    head = Head(scratch, token)
    try:
        head.wait(idp)
        yield head
    finally:
        head.stop()


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """MLflow's database of a storage where nothing was run yet, since its migrations take seconds."""
    from orchestrator.tracking.store import default_uri
    from orchestrator.tracking.view import connect

    folder = tmp_path_factory.mktemp("mlflow")
    with warnings.catch_warnings(action="ignore"):  # MLflow's and SQLAlchemy's own
        connect(default_uri(Storage(folder))).search_experiments()
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def storage_with_database(tmp_path: Path, database: bytes) -> Path:
    """A storage where nothing was run yet, but MLflow's database is there."""
    folder = tmp_path / "storage"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(database)
    return folder


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset of `small_trial`."""
    root = tmp_path_factory.mktemp("data") / "datasets"
    make_dataset(DATA, root)
    return root


@pytest.fixture
def storage(tmp_path: Path, datasets: Path) -> Path:
    """A storage with the dataset of `small_trial`, read-only: all tests share it."""
    (tmp_path / "datasets").symlink_to(datasets)
    return tmp_path
