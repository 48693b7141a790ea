"""The short version of `make chaos`, in one process: it is killed, and what it would go on from is damaged."""

from chaos import campaign


def test_a_disturbed_sweep_ends_with_the_table_of_an_undisturbed_one(tmp_path, idp):
    def undisturbed(sweep):
        done = idp("run", sweep.path, "--storage", sweep.storage, "--in-process")
        assert done.returncode == 0, done.stderr
        return sweep.results()

    said, kinds = [], ["driver", "checkpoint"]
    hits = campaign(
        tmp_path, tmp_path / "storage", 2, kinds, 1, said.append,
        undisturbed=undisturbed, options=("--in-process",), seeds=[0], epochs=40, wait=2.0,
    )  # fmt: skip
    assert sum(hits.values()) >= 1, said
