"""docs/results for the tests of REPRODUCTION.md, and a check that a row or paragraph of the page says something."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "REPRODUCTION.md").read_text()
SIX = ("vin", "symvin", "convgppn", "id-vin", "id-symvin", "id-convgppn")
_SAID = [text.replace("\n", " ") for text in re.split(r"\n(?=\|)|\n\n|^#.*\n", PAGE, flags=re.MULTILINE)]


def script(name):
    """Return a script of docs as a module, under the name by which others there import it."""
    found = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


made = script("reproduction")
NAMES, mean, rates, spread, trials, chosen = made.NAMES, made.mean, made.rates, made.spread, made.trials, made.chosen


def of(sweep, planner=None, **axes):
    """Return the trials of a planner in a sweep, at the laptop profile, with these axes; there is one at least."""
    found = chosen(trials(sweep), planner, **axes)
    assert found, (sweep, planner, axes)
    return found


def rate(*asked, **axes):
    """Return their success as the page writes it."""
    return spread(rates(of(*asked, **axes)))


def says(claim, *texts):
    """Check that the one row or paragraph that begins so says all of this."""
    (said,) = (text for text in _SAID if text.lstrip("| *").startswith(claim))
    missing = [text for text in texts if text not in said]
    assert not missing, f"{claim}: docs/results has {missing}"


def joined(values, digits=0, times=1, by=" / "):
    """Return numbers as the page lists them."""
    return by.join(f"{times * value:.{digits}f}" for value in values)


def power(value):
    """Return a residual as the page writes it, as 2e-4."""
    return re.sub(r"e([+-])0*", lambda found: f"e{found[1].strip('+')}", f"{value:.0e}")
