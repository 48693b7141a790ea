"""Datasets as Parquet: layout, checks, identity, copies on nodes, streams, imports."""
