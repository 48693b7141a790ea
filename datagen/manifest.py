"""The manifest of a dataset, and the card that tells people and dataset hubs what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from datagen.plugins import require
from datagen.spec import Spec
from datagen.task import SPLITS, TASKS, DatasetSpec, Split, input_channels


class DatasetError(ValueError):
    """A dataset that is missing, incomplete or altered; the message names the file."""


class ShardRecord(Spec):
    """What a shard must be.

    Attributes:
        name: File name.
        split: Its split.
        rows: Number of problems.
        bytes: Size of the file.
        sha256: Of the file.
        code: Hash of the sources that made it.
    """

    name: str
    split: Split
    rows: int = Field(ge=0)
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    code: str


class Manifest(Spec):
    """What a finished dataset is; written last.

    Attributes:
        dataset_id: Name of the folder.
        spec: What the data were made from.
        source: "generated" from the spec, or "imported" (then `spec.imported` is the sha256 of the content).
        shards: Every shard, train first.
        code: Hash of the sources of the generator.
        versions: Libraries that made it.
        shared_maps: Maps that are in more than one split; none in a generated set.
        plugins: The plug-in that its task comes from, which a reader must have loaded; none for this project's own.
    """

    plugins: tuple[str, ...] = ()
    dataset_id: str
    spec: DatasetSpec
    source: Literal["generated", "imported"]
    shards: tuple[ShardRecord, ...]
    code: str
    versions: dict[str, str]
    shared_maps: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _plugins_first(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            require(data.get("plugins", ()))
        return data

    def rows(self, split: Split) -> int:
        """Return the number of problems in `split`."""
        return sum(record.rows for record in self.shards if record.split == split)


def _size_category(rows: int) -> str:
    for bound, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if rows < bound:
            return name
    return "1M<n<10M"


def card(manifest: Manifest) -> str:
    """Return the dataset's README: front matter for dataset hubs, then a page for people."""
    spec, task = manifest.spec, TASKS[manifest.spec.task]
    files = "".join(
        f"  - split: {'validation' if split == 'valid' else split}\n    path: {split}-*.parquet\n" for split in SPLITS
    )
    counts = ", ".join(f"{manifest.rows(split):,} {split}" for split in SPLITS)
    total = sum(manifest.rows(split) for split in SPLITS)
    size = sum(record.bytes for record in manifest.shards)
    observation = task.observation_shape(spec)
    reads = (
        "what the planner sees beside map and goal"
        if input_channels(spec)
        else "what the planner's mapper sees instead of the map"
    )
    seen = f"| `observation` | uint8 {list(observation)} | {reads} |\n" if observation else ""
    actions = ", ".join(f"{i} = {name}" for i, name in enumerate(task.moves.names))
    edge = "on the torus" if task.moves.wrap else "a move over the edge stays"
    if task.moves.links:
        edge = "where they lead is in each problem's observation"
    disjoint = (
        f"**{manifest.shared_maps} maps are in more than one split**, as in the file that was imported."
        if manifest.shared_maps
        else "No map is in two splits."
    )
    height, width = task.map_shape(spec)
    side = f"[{height}, {width}]"
    return f"""---
pretty_name: {manifest.dataset_id}
license: mit
tags: [differentiable-planning, {spec.task}]
size_categories: ["{_size_category(total)}"]
configs:
- config_name: default
  data_files:
{files}---

# {manifest.dataset_id}

{counts} problems of the task `{spec.task}` on {height} x {width} maps,
{size:,} bytes, {manifest.source}.

| column | type | meaning |
|---|---|---|
| `problem` | int64 | number of the problem in its split |
| `goal_row`, `goal_col` | int16 | the goal, a free cell |
| `map` | uint8 {side} | 1 = free, 0 = obstacle |
| `distance` | float32 {side} | cost of the cheapest path to the goal, else inf |
| `optimal_actions` | uint8 {side} | bit a is set where action a is optimal |
| `label` | uint8 {side} | one action per cell, ties drawn once |
{seen}
Arrays are fixed-size binary in C order, little-endian; shape, type and axes are in the field's metadata. Actions:
{actions}; {edge}.
{disjoint} The spec, which determines every byte unless the set was imported:

```json
{spec.model_dump_json(indent=1)}
```
"""
