"""Cancel, retry and failures that others write down: they look and write under the trial's lease."""

import threading
from contextlib import suppress

import pytest

from orchestrator.storage import leases
from orchestrator.storage.leases import Owner, TrialHeld, free, look, take
from orchestrator.storage.marks import is_cancelled
from orchestrator.storage.provenance import Provenance, code_hash
from orchestrator.storage.results import TrialResult, read_result, trial_directory, write_result
from orchestrator.trial import failure as outcomes
from orchestrator.trial.cancel import cancel, retry
from orchestrator.trial.failure import record_failure, settle

ID = "0123456789abcdef"
FRESH = TrialResult(trial_id=ID, status="COMPLETED", provenance=Provenance(code=code_hash()))
STALE = TrialResult(trial_id=ID, status="COMPLETED", provenance=Provenance(code="other"))
FAILED = TrialResult(trial_id=ID, status="FAILED")


@pytest.fixture
def directory(tmp_path):
    return trial_directory(tmp_path, ID)


def stops(tmp_path):
    return cancel(tmp_path, ID)


def fails(tmp_path):
    return record_failure(trial_directory(tmp_path, ID), ID, RuntimeError("died"))


def settles(tmp_path):
    return settle(trial_directory(tmp_path, ID), Owner.here(), FAILED)


@pytest.mark.parametrize("result", [FRESH, STALE, FRESH.model_copy(update={"status": "OUT_OF_MEMORY"})])
@pytest.mark.parametrize("does", [stops, fails, settles])
def test_a_final_result_stays_whatever_comes_after_it(tmp_path, directory, result, does):
    write_result(directory, result)
    does(tmp_path)
    assert read_result(directory) == result and free(look(directory)) and not is_cancelled(directory)


@pytest.mark.parametrize("does", [stops, fails, settles])
def test_a_trial_that_ends_between_the_look_and_the_lease_stays_completed(tmp_path, directory, monkeypatch, does):
    lease = take(directory, Owner.here())
    take_ = leases.take

    def ends_first(*words):
        lease.renew()
        write_result(directory, FRESH)
        lease.release()
        return take_(*words)

    monkeypatch.setattr(outcomes, "take", ends_first)
    does(tmp_path)
    assert read_result(directory) == FRESH and free(look(directory)) and not is_cancelled(directory)


@pytest.mark.parametrize("does", [stops, fails, settles])
def test_a_write_that_fails_gives_the_lease_back(tmp_path, directory, monkeypatch, does):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outcomes, "write_result", full)
    with pytest.raises(OSError, match="No space"):
        does(tmp_path)
    assert free(look(directory))


def test_a_failure_beside_a_stale_result_is_told_and_not_kept(directory):
    write_result(directory, STALE)
    told = record_failure(directory, ID, RuntimeError("died"))
    assert told.status == "FAILED" and told.reason == "RuntimeError: died; the result of before stays"
    write_result(directory, FRESH)
    assert record_failure(directory, ID, RuntimeError("died")) == FRESH


def test_retry_leaves_a_trial_to_whoever_holds_it(tmp_path, directory):
    lease = take(directory, Owner.here())
    assert cancel(tmp_path, ID) == "at the next epoch" and is_cancelled(directory)
    assert retry(tmp_path, ID) and not is_cancelled(directory)
    write_result(directory, FAILED)
    assert not retry(tmp_path, ID) and read_result(directory) == FAILED
    lease.release()
    assert retry(tmp_path, ID) and read_result(directory) is None
    assert not retry(tmp_path, ID)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_damaged_result_is_cancelled_and_retried_like_a_failed_one(tmp_path, directory, content):
    directory.mkdir(parents=True)
    (directory / "result.json").write_bytes(content)
    assert retry(tmp_path, ID) and read_result(directory) is None
    (directory / "result.json").write_bytes(content)
    assert cancel(tmp_path, ID) == "cancelled" and read_result(directory).status == "CANCELLED"


def test_many_that_cancel_retry_and_fail_at_once_lose_no_completed_result(tmp_path, directory):
    directory.mkdir(parents=True)
    stop = threading.Event()

    def trouble():
        while not stop.is_set():
            for does in (stops, fails, lambda storage: retry(storage, ID)):
                with suppress(TrialHeld, leases.LeaseLost):
                    does(tmp_path)

    threads = [threading.Thread(target=trouble) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        while True:
            try:
                lease = take(directory, Owner.here())
                lease.renew()
                write_result(directory, FRESH)
                lease.release()
                break
            except (TrialHeld, leases.LeaseLost):
                continue
        for _ in range(30):
            assert read_result(directory) == FRESH
            stop.wait(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert read_result(directory) == FRESH
