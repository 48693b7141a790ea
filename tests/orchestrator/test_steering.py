"""Cancel, retry and failures that others write down: they look and write under the trial's lease."""

import threading
from contextlib import suppress

import pytest
from samples import put_result

from orchestrator.storage import leases
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Owner, TrialHeld, free, latest_lease, take
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.trial.cancel import cancel, retry
from orchestrator.trial.failure import record_failure

ID = "0123456789abcdef"
FRESH = TrialResult(trial_id=ID, status="COMPLETED", provenance=Provenance(code=code_hash()))
STALE = TrialResult(trial_id=ID, status="COMPLETED", provenance=Provenance(code="other"))
FAILED = TrialResult(trial_id=ID, status="FAILED")


@pytest.fixture
def directory(tmp_path):
    return Storage(tmp_path).trial(ID).path


def stops(tmp_path):
    return cancel(Storage(tmp_path).trial(ID))


def fails(tmp_path):
    return record_failure(Storage(tmp_path).trial(ID), RuntimeError("died"))


def settles(tmp_path):
    return Storage(tmp_path).trial(ID).settle(Owner.here(), FAILED)


@pytest.mark.parametrize("result", [FRESH, STALE, FRESH.model_copy(update={"status": "OUT_OF_MEMORY"})])
@pytest.mark.parametrize("does", [stops, fails, settles])
def test_a_final_result_stays_whatever_comes_after_it(tmp_path, directory, result, does):
    put_result(directory, result)
    does(tmp_path)
    assert (
        TrialDirectory(directory).read_result() == result
        and free(latest_lease(directory))
        and not TrialDirectory(directory).is_cancelled()
    )


@pytest.mark.parametrize("does", [stops, fails, settles])
def test_a_trial_that_ends_between_the_look_and_the_lease_stays_completed(tmp_path, directory, monkeypatch, does):
    lease = take(directory, Owner.here())
    take_ = leases.take

    def ends_first(*words):
        lease.renew()
        put_result(directory, FRESH)
        lease.release()
        return take_(*words)

    monkeypatch.setattr(leases, "take", ends_first)
    does(tmp_path)
    assert (
        TrialDirectory(directory).read_result() == FRESH
        and free(latest_lease(directory))
        and not TrialDirectory(directory).is_cancelled()
    )


@pytest.mark.parametrize("does", [stops, fails, settles])
def test_a_write_that_fails_gives_the_lease_back(tmp_path, directory, monkeypatch, does):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.storage.trial_directory.write_json", full)
    with pytest.raises(OSError, match="No space"):
        does(tmp_path)
    assert free(latest_lease(directory))


def test_a_failure_beside_a_stale_result_is_told_and_not_kept(directory):
    put_result(directory, STALE)
    told = record_failure(TrialDirectory(directory), RuntimeError("died"))
    assert told.status == "FAILED" and told.reason == "RuntimeError: died; the result of before stays"
    put_result(directory, FRESH)
    assert record_failure(TrialDirectory(directory), RuntimeError("died")) == FRESH


def test_retry_leaves_a_trial_to_whoever_holds_it(tmp_path, directory):
    lease = take(directory, Owner.here())
    assert cancel(Storage(tmp_path).trial(ID)) == "at the next epoch" and TrialDirectory(directory).is_cancelled()
    assert retry(Storage(tmp_path).trial(ID)) and not TrialDirectory(directory).is_cancelled()
    put_result(directory, FAILED)
    assert not retry(Storage(tmp_path).trial(ID)) and TrialDirectory(directory).read_result() == FAILED
    lease.release()
    assert retry(Storage(tmp_path).trial(ID)) and TrialDirectory(directory).read_result() is None
    assert not retry(Storage(tmp_path).trial(ID))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_damaged_result_is_cancelled_and_retried_like_a_failed_one(tmp_path, directory, content):
    directory.mkdir(parents=True)
    (directory / "result.json").write_bytes(content)
    assert retry(Storage(tmp_path).trial(ID)) and TrialDirectory(directory).read_result() is None
    (directory / "result.json").write_bytes(content)
    assert (
        cancel(Storage(tmp_path).trial(ID)) == "cancelled"
        and TrialDirectory(directory).read_result().status == "CANCELLED"
    )


def test_many_that_cancel_retry_and_fail_at_once_lose_no_completed_result(tmp_path, directory):
    directory.mkdir(parents=True)
    stop = threading.Event()

    def trouble():
        while not stop.is_set():
            for does in (stops, fails, lambda storage: retry(Storage(storage).trial(ID))):
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
                put_result(directory, FRESH)
                lease.release()
                break
            except (TrialHeld, leases.LeaseLost):
                continue
        for _ in range(30):
            assert TrialDirectory(directory).read_result() == FRESH
            stop.wait(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert TrialDirectory(directory).read_result() == FRESH
