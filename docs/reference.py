"""The reference of the sweep file: `python docs/reference.py` writes docs/sweep-file.md and docs/sweep.schema.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from orchestrator.sweep.reference import Field, Section, sections
from orchestrator.sweep.schema import sweep_schema

FOLDER = Path(__file__).parent
PAGE = FOLDER / "sweep-file.md"
SCHEMA = FOLDER / "sweep.schema.json"

START = """# The sweep file, field by field

This page is made from the code by `python docs/reference.py`; on a terminal `idp fields`, `idp fields training` and
`idp fields training.labels` say the same. A sweep is a YAML file:

```yaml
name: mine
extends: quickstart       # a file beside this one goes first, e.g. quickstart.yaml
planners:
  wide-id-vin: {core: vin, adjoint: implicit, q_channels: 150}
grid: {k: [30, 80], seed: [0, 1, 2]}
training: {epochs: 8}
profiles:
  smoke: {data: {train: 64, valid: 8, test: 8}, training: {epochs: 1}}
```

It stands for one trial for each task, planner and place of the grid. What is wrong in it is told in one line that names
the file and the field, before anything starts (`idp plan mine.yaml`). On the command line `--set training.epochs=3`
changes one field, `--set tasks.0.map_size=27` one of the first task.

## In an editor
[sweep.schema.json](sweep.schema.json) is a JSON schema from which editors with a YAML language server (VS Code, Neovim,
Emacs, JetBrains) complete fields and values, show their meaning and mark what is wrong. Name it, by path or address, in
the first line of a sweep:
```yaml
# yaml-language-server: $schema=../docs/sweep.schema.json
```
or for many files in the settings of the editor, which in VS Code are
`"yaml.schemas": {"docs/sweep.schema.json": "sweeps/*.yaml"}`. For an installed package
`idp fields --schema > sweep.schema.json` writes it, and with `--plugin MODULE` one that knows a plug-in's parts too.
"""


def page() -> str:
    """Return the page in Markdown."""
    return "\n".join([START, *(line for section in sections() for line in _section(section))]).rstrip() + "\n"


def _section(section: Section) -> Iterator[str]:
    level = "###" if section.of or section.path.count(".") > 1 else "##"
    name = f"`{section.path}`" if section.path else "The file"
    yield f"{level} {f'{name} of {section.of}' if section.of else name}"
    yield ""
    yield section.meaning
    yield ""
    yield "| field | may be | default | example | meaning |"
    yield "|---|---|---|---|---|"
    yield from map(_row, section.fields)
    yield ""


def _row(field: Field) -> str:
    default, example = (f"`{text}`" if text else "" for text in (field.default, field.example))
    return "| " + " | ".join(map(_cell, (f"`{field.name}`", field.kind, default, example, field.meaning))) + " |"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def schema() -> str:
    """Return the schema as it is kept: a definition a line, for editors to read and for diffs to name."""
    parts = sweep_schema()
    definitions = (f"{json.dumps(name)}: {json.dumps(part)}" for name, part in parts.pop("definitions").items())
    return json.dumps(parts)[:-1] + ', "definitions": {\n' + ",\n".join(definitions) + "\n}}\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    SCHEMA.write_text(schema())
