"""The short version of `make chaos`, in one process: it is killed, and what it would go on from is damaged."""

from chaos import campaign


def test_a_disturbed_sweep_ends_with_the_table_of_an_undisturbed_one(tmp_path, idp, database):
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "mlflow.db").write_bytes(database)

    def undisturbed(sweep):
        done = idp("run", sweep.path, "--storage", sweep.storage, "--in-process", "--tracking-uri", "none")
        assert done.returncode == 0, done.stderr
        return sweep.results()

    def launch(words, stderr):
        return idp.start(*words, stderr=stderr.fileno())

    said, kinds = [], ["driver", "checkpoint"]
    hits = campaign(
        tmp_path, tmp_path / "storage", 2, kinds, 1, said.append,
        undisturbed=undisturbed, options=("--in-process",), launch=launch, seeds=[0], epochs=15, wait=1.0,
    )  # fmt: skip
    assert sum(hits.values()) >= 1, said
