"""The share of pairs told apart that `benchmarks.mapping` tells, against counting the pairs."""

from __future__ import annotations

import torch

from benchmarks.mapping import told_apart


def test_told_apart_counts_pairs_and_half_of_the_ties():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 5, (4, 1, 6, 6), generator=generator).float()
    map = torch.randint(0, 2, (4, 1, 6, 6), generator=generator).float()
    free, obstacles = logits[map == 1][:, None], logits[map == 0][None]
    expected = (free > obstacles).double().mean() + 0.5 * (free == obstacles).double().mean()
    assert told_apart(logits, map) == float(expected)
    assert told_apart(map, map) == 1.0 and told_apart(torch.zeros_like(map), map) == 0.5
