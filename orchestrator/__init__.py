"""The campaign: sweeps, trials, results, and what people read."""

from importlib.util import find_spec


def _not_hidden(package: str, module: str) -> None:
    """Refuse a package that is not ours: names as plain as these are easily another's (decision 80)."""
    try:
        found = find_spec(f"{package}.{module}")
    except ModuleNotFoundError:  # a single file has no modules in it
        found = None
    if found is None:
        spec = find_spec(package)
        place = "nowhere" if spec is None else spec.origin or ", ".join(spec.submodule_search_locations or ())
        raise ImportError(
            f"{package}: expected the package that comes with idp, found {place}; rename what is there, start in "
            "another folder, or install idp in a virtual environment of its own"
        )


_not_hidden("datagen", "moved")
_not_hidden("planners", "registry")

from datagen.moved import MODULES, install  # noqa: E402 (only where it is ours)

# Here and not there: results are of the code of datagen, and what draws a problem makes none.
MODULES["orchestrator.show"] = "orchestrator.figures.problem"
install()
