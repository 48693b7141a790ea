"""docs/results for the tests of REPRODUCTION.md, and a check that a row or paragraph of the page says something.

After a training, `IDP_REWRITE=1 pytest tests/orchestrator/test_reproduction*.py` writes the new numbers between the
words that stand on the page; what fails still is for a person to word.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

from orchestrator.storage.results import TrialResult
from orchestrator.tables.freshness import is_present

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "REPRODUCTION.md").read_text()
SIX = ("vin", "symvin", "convgppn", "id-vin", "id-symvin", "id-convgppn")
COLUMNS = (("manipulation", 18), ("manipulation", 36), ("workspace_manipulation", 18), ("visual_navigation", 15))
_CLAIMS = re.compile(r"^#### (.+?)(?=\n#|\Z)", re.MULTILINE | re.DOTALL)
_BLOCKS = re.compile(r"\n(?=\|)|\n\n|^#.*\n", re.MULTILINE)
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?"


def script(name):
    """Return a script of docs as a module, under the name by which others there import it."""
    found = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


archive = script("archive")
made = script("reproduction")
NAMES, mean, power, rates, spread = archive.NAMES, archive.mean, archive.power, archive.rates, archive.spread
trials, chosen = archive.trials, archive.chosen


def of(sweep, planner=None, **axes):
    """Return the trials of a planner in a sweep, at the laptop profile, with these axes; there is one at least."""
    found = chosen(trials(sweep), planner, **axes)
    assert found, (sweep, planner, axes)
    return found


def rate(*asked, **axes):
    """Return their success as the page writes it."""
    return spread(rates(of(*asked, **axes)))


def at_30(planner, task, size):
    """Return success in a column of Table 1 at K = 30 as the page writes it."""
    return rate("table1_ours", planner, task=task, size=size, k=30)


def says(claim, *texts, page="REPRODUCTION.md"):
    """Check that a page's one claim, row or paragraph that begins so says all of this; or make it so, IDP_REWRITE=1."""
    path = ROOT / page
    page = path.read_text()
    blocks = _CLAIMS.findall(page) + _BLOCKS.split(_CLAIMS.sub("", page))
    (block,) = (found for found in blocks if found.lstrip("| *").startswith(claim))
    said = block
    if os.environ.get("IDP_REWRITE"):
        for text in texts:
            said = _renumbered(said, text)
        path.write_text(page.replace(block, said))
    missing = [text for text in texts if text not in " ".join(said.split())]
    assert not missing, f"{claim}: docs/results has {missing}"


def _renumbered(block, text):
    """Return a block with the numbers of the text, where the words between them stand in it once."""
    parts = re.split(f"({_NUMBER})", text)
    words = [re.escape(part).replace(r"\ ", r"\s+") for part in parts[::2]]
    found = list(re.finditer(rf"(?<![\w-]){f'({_NUMBER})'.join(words)}", block))  # not ID-VIN's for VIN's
    if len(found) != 1:
        return block
    for group in reversed(range(1, len(words))):
        start, end = found[0].span(group)
        block = block[:start] + parts[2 * group - 1] + block[end:]
    return block


def joined(values, digits=0, times=1, by=" / "):
    """Return numbers as the page lists them."""
    return by.join(f"{times * value:.{digits}f}" for value in values)


def span(values, digits=0):
    """Return the least and the largest number as the page writes them."""
    numbers = list(values)
    return f"{min(numbers):.{digits}f} to {max(numbers):.{digits}f}"


def epochs_before_the_fall(curve):
    """Return how many epochs a training had before its loss left every bound; None where it did not."""
    return next((number for number, epoch in enumerate(curve) if epoch["train_loss"] > 100), None)


def epochs_on_a_gpu(trial):
    """Return the epochs of a trial that a GPU trained, also where a CPU trained the others."""
    return [epoch for epoch in trial.curves if "on the CPU" in (epoch.get("kernel") or "")]  # why none was compiled


def is_of_present_code(trial):
    """Return whether the present code makes a trial that the archive keeps."""
    return is_present(TrialResult.model_validate(trial.result).provenance)
