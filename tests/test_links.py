"""What the Markdown pages point to is there: links, anchors, paths and dotted names between backticks."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MADE = ("idp-storage", "wheelhouse", "secrets", "build")
"""Folders that runs and builds make; hidden ones are not the repository's either."""

FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(<?([^)>\s]+)>?(?: +\"[^\"]*\")?\)|^\[[^\]]+\]: *(\S+)|(?:src|href)=\"([^\"]+)\"", re.MULTILINE)
DOTTED = re.compile(r"(?:datagen|planners|orchestrator|benchmarks)(?:\.\w+)+")
FILE_NAME = re.compile(r"\.(?:parquet|yaml|md|css|js|svg|py)$")


@cache
def files():
    """Return the repository's files and their folders, relative to its root."""
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
    found = {path for path in paths if not any(part[0] == "." or part in MADE for part in path.parts[:-1])}
    return found | {parent for path in found for parent in path.parents}


PAGES = sorted(str(path) for path in files() if path.suffix == ".md" and path.name[0] != ".")


def anchors(text):
    """Return what GitHub calls the headings of a page."""
    names, seen = set(), {}
    for heading in re.findall(r"^#+ +(.+?) *#*$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        seen[name] = seen.get(name, -1) + 1
        names.add(f"{name}-{seen[name]}" if seen[name] else name)
    return names


def broken_links(text, page):
    """Return the relative links in a page's text that lead nowhere."""
    for link in ("".join(found) for found in LINK.findall(SPAN.sub("", FENCE.sub("", text)))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name if name else page).resolve()
        there = target.exists() and target.is_relative_to(ROOT)
        if not there or (anchor and anchor not in anchors(text if target == page else target.read_text())):
            yield link


def missing(text, page):
    """Return the words between backticks that look like a path or a dotted name of the repository, and are none."""
    code = [found[0] for found in FENCE.finditer(text)] + SPAN.findall(FENCE.sub("", text))
    words = {word.strip("\"'(),;:") for part in code for word in part.split()}
    return sorted(word for word in words if not _is_there(word, page))


def _is_there(word, page):
    path = re.sub(r":\d+(?:-\d+)?$", "", word).rstrip("/.")
    if "=" in word or "NAME" in path.split(".") or any(part.isupper() or part in MADE for part in path.split("/")):
        return True  # a setting, or with a placeholder
    if re.fullmatch(r"[\w.*-]+(?:/[\w.*-]+)+", path) and Path(path.partition("/")[0]) in files():
        return any(True for folder in (ROOT, page.parent) for _ in folder.glob(path))
    if re.fullmatch(r"\w+\.py", path):
        return any(found.name == path for found in files())
    dotted = DOTTED.match(word)
    return not dotted or "/" in word or bool(FILE_NAME.search(dotted[0])) or _resolves(dotted[0])


def _resolves(name):
    """Return whether a dotted name is that of a module, or of something in one."""
    found, attributes = import_module(name.partition(".")[0]), name.split(".")[1:]
    module = found.__name__
    for attribute in attributes:
        if not hasattr(found, attribute):
            if attribute in getattr(found, "model_fields", {}) or attribute in getattr(found, "__annotations__", {}):
                return True
            try:
                import_module(f"{module}.{attribute}")
            except ModuleNotFoundError:
                return False
        found, module = getattr(found, attribute), f"{module}.{attribute}"
    return True


@pytest.mark.parametrize("name", PAGES)
def test_its_links_lead_somewhere(name):
    page = ROOT / name
    assert list(broken_links(page.read_text(), page)) == []


@pytest.mark.parametrize("name", PAGES)
def test_its_paths_and_names_are_the_repository_s(name):
    page = ROOT / name
    assert missing(page.read_text(), page) == []


def test_what_leads_nowhere_is_found():
    page = ROOT / "docs" / "search.md"
    text = """# Here
[ours](../README.md) [anchor](#here) [gone](gone.md) [no heading](../README.md#gone) [outside](../../README.md)
`docs/add-a-task.md` `docs/gone.md` `planners.PlannerSpec.k_fwd` `planners.gone` `python -m benchmarks.gone` `gone.py`
"""
    assert list(broken_links(text, page)) == ["gone.md", "../README.md#gone", "../../README.md"]
    assert missing(text, page) == ["benchmarks.gone", "docs/gone.md", "gone.py", "planners.gone"]
