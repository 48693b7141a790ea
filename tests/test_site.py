"""The site's pages are the repository's: all are laid out with what they link to, in the dialect that builds them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SITE = runpy.run_path(str(ROOT / "docs" / "pages.py"))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "pages"
    SITE["lay_out"](folder)
    return folder


def test_every_page_is_there_with_all_that_it_links_to(out):
    for page in SITE["pages"]():
        text = (out / page).read_text()
        for link in re.findall(r"\]\(([^)#\s:]+)\)", re.sub(r"(?s)```.*?```|`[^`\n]*`", "", text)):
            assert (out / page.parent / link).is_file(), f"{page}: {link}"


def test_every_page_is_in_the_menu():
    # The YAML tag of a Python function is mkdocs' own.
    text = re.sub(r"!!python\S+ \{.*?\}\}", "x", (ROOT / "mkdocs.yml").read_text())
    settings = yaml.safe_load(text)
    told = set(re.findall(r"[\w./-]+\.md", yaml.safe_dump(settings["nav"])))
    others = tuple(line.strip("/ ") for line in settings["not_in_nav"].split())
    pages = {str(page) for page in SITE["pages"]()}
    assert {page for page in pages - told if not page.startswith(others)} == set()
    assert told - pages == {"docs/decisions/README.md"}, "made by docs/pages.py"


def test_lists_and_tables_stand_apart():
    text = "Words:\n- one\n  more\n- two\n\nA table:\n| a |\n|---|\n| 1 |\n```\nx\n- no list\n```\n1. one\n"
    assert SITE["spaced"](text) == (
        "Words:\n\n- one\n  more\n- two\n\nA table:\n\n| a |\n|---|\n| 1 |\n```\nx\n- no list\n```\n\n1. one\n"
    )
