"""The problems: maps, goals, expert labels, and the Parquet sets that hold them."""

from datagen.moved import install

install()
