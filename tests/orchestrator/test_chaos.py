"""The short version of `make chaos`: a worker killed, then the driver, with what it would go on from damaged."""

import pytest
from chaos import campaign

pytestmark = pytest.mark.sweeps


def test_a_disturbed_sweep_ends_with_the_table_of_an_undisturbed_one(tmp_path):
    said = []
    kinds = ["worker", "checkpoint"]
    hits = campaign(tmp_path, tmp_path / "storage", 2, kinds, 1, said.append, seeds=[0], epochs=120, wait=2.0)
    assert sum(hits.values()) >= 1, said
