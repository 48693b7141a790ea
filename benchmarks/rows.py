"""What benchmarks of a sweep's trials share: the arguments that choose them, and rows of numbers kept by trial."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of a storage, a sweep, its profile, a choice of its trials, and a file for their rows."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("storage", type=Path)
    found.add_argument("sweep", type=Path)
    found.add_argument("--profile")
    found.add_argument("--only")
    found.add_argument("--out", type=Path, help="a file of such rows; those of other trials that it has are kept")
    return found


def keep(rows: Sequence[dict[str, Any]], file: Path | None) -> None:
    """Write rows, floats to three digits, to a file in place of those that it has of the same trials; or nowhere."""
    if file is None:
        return
    others = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    measured = {row["trial_id"] for row in rows}
    kept = [row for row in others if row["trial_id"] not in measured] + [_rounded(row) for row in rows]
    file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value
