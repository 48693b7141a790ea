"""The campaign: sweeps, trials, results, and what people read."""

from datagen.moved import install

install()
