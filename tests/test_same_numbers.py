"""`docs/same_numbers.py`: results name another code only where both train to the same bits."""

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))
import same_numbers  # noqa: E402

sys.path.remove(str(ROOT / "docs"))
ARCHIVE = ROOT / "docs/results/table1.parquet"


def rows(path):
    return [json.loads(row["result"]) for row in pq.read_table(path).to_pylist()]


def test_only_trials_of_the_code_before_are_given_the_digests_of_the_code_after(tmp_path):
    path = shutil.copy(ARCHIVE, tmp_path)
    known = [row["provenance"]["parts"] for row in rows(path)]
    before = known[0]
    alike = sum(all(before.get(module) == digest for module, digest in parts.items()) for parts in known)
    assert 0 < alike < len(known)
    assert same_numbers.renew(Path(path), before, dict.fromkeys(before, "0" * 12)) == alike
    now = rows(path)
    assert sum(set(row["provenance"]["parts"].values()) == {"0" * 12} for row in now) == alike
    for row, old in zip(now, rows(ARCHIVE), strict=True):
        for result in (row, old):
            del result["provenance"]["parts"], result["checksum"]
        assert row == old  # code, commit, machine and numbers are what they were


def test_codes_that_train_otherwise_change_no_archive(tmp_path, monkeypatch, capsys):
    path = shutil.copy(ARCHIVE, tmp_path)
    before = Path(path).read_bytes()

    def by_code_of(checkout, specs):
        return {"digests": {json.dumps(kind): f"{checkout}" for kind in specs}, "parts": {}}

    monkeypatch.setattr(same_numbers, "by_code_of", by_code_of)
    monkeypatch.setattr(sys, "argv", ["same_numbers", str(tmp_path), path])
    with pytest.raises(SystemExit, match=r"of \d+ kinds come to other numbers"):
        same_numbers.main()
    assert Path(path).read_bytes() == before


def test_a_kind_of_trial_trains_to_the_same_bits_in_another_process_and_to_others_by_another_step_size():
    spec = next(
        kind["spec"] for kind in same_numbers.kinds(pq.read_table(ARCHIVE).to_pylist())
        if kind["spec"]["planner"]["core"] == "reachability" and kind["spec"]["data"]["task"] == "manipulation"
    )  # fmt: skip
    other = {**spec, "training": {**spec["training"], "learning_rate": 0.5}}
    tested = {"spec": spec, "tests": [["manipulation", 10, 9, ["lengths"]]]}
    here, there = same_numbers.trained([tested, {"spec": other, "tests": []}]), same_numbers.by_code_of(ROOT, [tested])
    name = json.dumps(spec, sort_keys=True)
    assert here["digests"][name] == there["digests"][name] and len(set(here["digests"].values())) == 2
    assert there["parts"] == here["parts"]
