"""The site of the documentation: `python docs/pages.py` lays out the pages, builds them strictly, says what is wrong.

The pages stay where the forge shows them, links and all: what they link to is copied beside them at the same place, a
folder that is linked to gets an index, and blank lines are put where Markdown of another dialect wants them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^(```|~~~)")
LINK = re.compile(r"\]\(<?([^)#>\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)\"")
STYLE = Path("docs/site.css")
INDEXED = (".md", ".yaml", ".py")
"""What the index of a folder lists."""
ITEM = re.compile(r"[-*] |\d+\. ")


def pages() -> list[Path]:
    """Return the pages that Git has, or would have, from the root."""
    said = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(Path(line) for line in said.stdout.splitlines() if (ROOT / line).exists())


def linked(page: Path, text: str) -> Iterator[Path]:
    """Yield the files and folders of the repository that a page links to, from the root."""
    for link in ("".join(found) for found in LINK.findall(text)):
        if not re.match(r"[a-z]+:", link):
            target = (ROOT / page.parent / link).resolve()
            if target.exists() and target.is_relative_to(ROOT):
                yield target.relative_to(ROOT)


def spaced(text: str) -> str:
    """Return Markdown with a blank line before each list and table, which the forge's dialect does not need."""
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        before = lines[-1] if lines else ""
        starts = (ITEM.match(line) and not ITEM.match(before) and not before.startswith(" ")) or (
            line.startswith("|") and not before.startswith("|")
        )
        if starts and before and not fenced:
            lines.append("")
        if FENCE.match(line):
            fenced = not fenced
        lines.append(line)
    return "\n".join(lines) + "\n"


def pointing(page: Path, text: str) -> str:
    """Return a page whose links to folders lead to their indexes."""
    for folder in {path for path in linked(page, text) if (ROOT / path).is_dir()}:
        link = os.path.relpath(folder, page.parent)
        text = re.sub(rf"\]\({re.escape(link)}/?\)", f"]({link}/README.md)", text)
    return text


def index(folder: Path) -> str:
    """Return a page that lists what a folder has."""
    there = sorted(path for path in (ROOT / folder).iterdir() if path.suffix in INDEXED)
    return "\n".join([f"# {folder}/", "", *(f"- [{_title(path)}]({path.name})" for path in there)]) + "\n"


def _title(path: Path) -> str:
    return path.read_text().partition("\n")[0].removeprefix("# ") if path.suffix == ".md" else path.name


def lay_out(out: Path) -> None:
    """Copy the pages, and what they link to, to a folder."""
    shutil.rmtree(out, ignore_errors=True)
    every = pages()
    beside = {STYLE}
    for page in every:
        text = (ROOT / page).read_text()
        beside |= set(linked(page, text))
        _write(out / page, spaced(pointing(page, text)))
    folders = {path for path in beside if (ROOT / path).is_dir()} - {
        page.parent for page in every if page.stem == "README"
    }
    for folder in folders:
        _write(out / folder / "README.md", index(folder))
        beside |= {folder / file.name for file in (ROOT / folder).iterdir() if file.suffix in INDEXED}
    for path in beside - set(every):
        if (ROOT / path).is_file():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, out / path)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    lay_out(ROOT / "build" / "pages")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    sys.exit(subprocess.run(build, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}).returncode)
