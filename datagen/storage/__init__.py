"""Datasets as Parquet: layout, checks, identity, copies on nodes, streams, imports.

Begin with `dataset.write_shard` and `dataset.read_split`.

- Files of a dataset: `encoding.shard_bytes`, `schema.table_from_problems`, `samples.samples_schema`,
  `manifest.Manifest`, `provenance.code_hash`, `files.read_file`.
- What a file from elsewhere must be: `checks.checked_problems`, `pages.oversized`.
- To where it is trained on: `staging.staged`, `stream.ProblemStream`.
- From and to others' layouts: `npz.import_npz`, `npy.NpzArray`, `maze_unique.import_mazes`,
  `terrain.import_terrain`.
- One's own maps and costs: `map_files.read_map`, `pictures.read_picture`, `own_maps.import_map`; what importers share:
  `imports.store_splits`.
"""
