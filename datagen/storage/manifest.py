"""The manifest of a dataset, and the card that tells people and dataset hubs what is in it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from datagen.errors import UserError
from datagen.options import ArmOptions
from datagen.plugins import require
from datagen.spec import Spec
from datagen.tasks.registry import SPLITS, TASKS, DatasetSpec, Split, dataset_id, input_channels
from datagen.tasks.samples import Samples

NUMBER = "sample"
"""The column that numbers the samples of a split, of a dataset that has no maps."""


class DatasetError(UserError):
    """A dataset that is missing, incomplete or altered; the message, one line, names the file."""


def shard_name(split: Split, index: int, of: int) -> str:
    """Return the file name of shard `index` of the `of` that a split has."""
    return f"{split}-{index:05d}-of-{of:05d}.parquet"


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

    # Becomes a path wherever the set is copied to: no name may lead out of its folder.
    name: str = Field(pattern=r"^(train|valid|test)-[0-9]{5,9}-of-[0-9]{5,9}\.parquet$")
    split: Split
    rows: int = Field(ge=0, le=10**6)
    bytes: int = Field(gt=0, le=2**40)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    code: str = Field(max_length=64)


class Manifest(Spec):
    """What a finished dataset is; written last.

    Attributes:
        dataset_id: Name of the folder; follows from the spec.
        spec: What the data were made from.
        source: "generated" from the spec, or "imported" (then `spec.imported` is the sha256 of the content).
        shards: Every shard, train first.
        code: Hash of the sources of the generator.
        versions: Libraries that made it.
        shared_maps: Maps that are in more than one split; none in a generated set.
        plugins: The plug-in that its task comes from, which a reader must have loaded; none for this project's own.
    """

    plugins: tuple[str, ...] = ()
    dataset_id: str = Field(pattern=r"^[^/\x00.][^/\x00]*$")
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

    @model_validator(mode="after")
    def _of_one_dataset(self) -> Self:
        if self.dataset_id != (own := dataset_id(self.spec)):
            raise ValueError(f"dataset_id: expected {own!r}, which the spec says, got {self.dataset_id!r:.100}")
        if (self.source == "imported") != (self.spec.imported is not None):
            raise ValueError(f"source: {self.source!r} does not fit spec.imported, {self.spec.imported!r}")
        expected_names: list[str] = []
        for split in SPLITS:
            of = sum(record.split == split for record in self.shards)
            expected_names += [shard_name(split, index, of) for index in range(of)]
            if not of or self.rows(split) != self.spec.count(split):
                expected = self.spec.count(split)
                raise ValueError(f"shards: {of} of {split} with {self.rows(split)} problems, the spec has {expected}")
        if [record.name for record in self.shards] != expected_names:
            raise ValueError("shards: expected those of train, valid and test, each once and in order")
        return self

    def rows(self, split: Split) -> int:
        """Return the number of problems in `split`."""
        return sum(record.rows for record in self.shards if record.split == split)


def _size_category(rows: int) -> str:
    if rows < 1_000:
        return "n<1K"
    steps = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
    for number, (low, high) in enumerate(itertools.pairwise(steps), start=4):
        if rows < 10**number:
            return f"{low}<n<{high}"
    return "1B<n<10B"


def card(manifest: Manifest) -> str:
    """Return the dataset's README: front matter for dataset hubs, then a page for people."""
    spec = manifest.spec
    # A file without rows has no row group, by which the datasets library would read it.
    files = "".join(
        f"  - split: {'validation' if split == 'valid' else split}\n    path: {split}-*.parquet\n"
        for split in SPLITS
        if manifest.rows(split)
    )
    counts = ", ".join(f"{manifest.rows(split):,} {split}" for split in SPLITS)
    total = sum(manifest.rows(split) for split in SPLITS)
    ours = manifest.source == "generated" and not manifest.plugins
    origin = "the file that was imported" if manifest.source == "imported" else f"plug-in {', '.join(manifest.plugins)}"
    licence = "MIT" if ours else f"that of {origin}, which this project does not know"
    front = "license: mit\n" if ours else ""
    what, columns, said = _samples(manifest) if isinstance(TASKS[spec.task], Samples) else _maps(manifest)
    return f"""---
pretty_name: {manifest.dataset_id}
{front}tags: [differentiable-planning, {spec.task}]
size_categories: ["{_size_category(total)}"]
configs:
- config_name: default
  data_files:
{files}---

# {manifest.dataset_id}

{counts} {what},
{sum(record.bytes for record in manifest.shards):,} bytes, {manifest.source}.

| column | type | meaning |
|---|---|---|
{columns}
Arrays are fixed-size binary in C order, little-endian; shape, type and axes are in the field's metadata. {said}
Licence: {licence}.
The spec, which determines every byte unless the set was imported:

```json
{spec.model_dump_json(indent=1)}
```
"""


def _maps(manifest: Manifest) -> tuple[str, str, str]:
    """Return what is in a dataset of maps: in a few words, its columns, and what else to know."""
    spec, task = manifest.spec, TASKS[manifest.spec.task]
    observation = task.observation_shape(spec)
    height, width = task.map_shape(spec)
    side = f"[{height}, {width}]"
    reads = (
        "what the planner sees beside map and goal"
        if input_channels(spec)
        else "what the planner's mapper sees instead of the map"
    )
    seen = f"| `observation` | uint8 {list(observation)} | {reads} |\n" if observation else ""
    told = "by what entering a cell multiplies a move's cost; the expert's alone"
    priced = f"| `costs` | float32 {side} | {told} |\n" if task.cell_costs else ""
    begun = (
        "| `start_row`, `start_col` | int16 | where the problem starts, a free cell |\n" if task.starts(spec) else ""
    )
    drawn = isinstance(spec.options, ArmOptions) and manifest.source == "generated"
    scene = (
        "| `obstacles` | float32, lists of lists | polygons of the workspace, each x0, y0, x1, y1, ... |\n"
        if drawn
        else ""
    )
    actions = ", ".join(f"{i} = {name}" for i, name in enumerate(task.moves.names))
    edge = "on the torus" if task.moves.wrap else "a move over the edge stays"
    if task.moves.links:
        edge = "where they lead is in each problem's observation"
    disjoint = (
        f"**{manifest.shared_maps} maps are in more than one split**, as in the file that was imported."
        if manifest.shared_maps
        else "No map is in two splits"
        + (", nor turned, mirrored or shifted." if spec.distinct == "up_to_symmetry" else ", cell for cell.")
    )
    columns = f"""| `problem` | int64 | number of the problem in its split |
| `goal_row`, `goal_col` | int16 | the goal, a free cell |
| `map` | uint8 {side} | 1 = free, 0 = obstacle |
| `distance` | float32 {side} | cost of the cheapest path to the goal, else inf |
| `optimal_actions` | uint8 {side} | bit a is set where action a is optimal |
| `label` | uint8 {side} | one action per cell, ties drawn once |
{priced}{seen}{begun}{scene}"""
    return (
        f"problems of the task `{spec.task}` on {height} x {width} maps",
        columns,
        (f"Actions:\n{actions}; {edge}.\n{disjoint}"),
    )


def _samples(manifest: Manifest) -> tuple[str, str, str]:
    """Return the same of a dataset of samples."""
    spec, task = manifest.spec, TASKS[manifest.spec.task]
    assert isinstance(task, Samples)
    lines = [f"| `{NUMBER}` | int64 | number of the sample in its split |"]
    for name, column in task.columns(spec.options).items():
        kind = f"{column.dtype} {list(column.shape)}" if column.shape else column.dtype
        lines.append(f"| `{name}` | {kind} | {column.meaning} |")
    said = "No sample is in two splits." if task.distinct else "Splits may share samples, of which there are few."
    return f"samples of the task `{spec.task}`", "".join(f"{line}\n" for line in lines), said


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return what `manifest.json` holds."""
    return (json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()
