"""`idp doctor`: what it says of a healthy installation, and of each thing that can be wrong."""

from __future__ import annotations

import json
import os
import shutil
import socketserver
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.cli import doctor
from orchestrator.cli.doctor import Finding
from orchestrator.cli.main import main
from orchestrator.storage.layout import Storage


def only(findings):
    (finding,) = findings
    return finding


def test_the_libraries_here_are_those_that_were_tested():
    assert {finding.state for finding in doctor.examine_versions()} <= {"ok", "warning"}


@pytest.mark.parametrize(("python", "failed"), [((3, 10, 9), True), ((3, 13, 1), False), ((3, 14, 0), True)])
def test_each_python_that_is_supported_is_good_enough(python, failed, monkeypatch):
    monkeypatch.setattr(sys, "version_info", python)
    assert any(finding.state == "failed" for finding in doctor.examine_versions()) == failed


def test_other_versions_are_named_with_those_that_were_tested(tmp_path, monkeypatch):
    (tmp_path / "constraints.txt").write_text("# tested\nnumpy==1.0.0\nray==999.0\nno-such-library==1.0\n")
    monkeypatch.setattr(doctor, "CONSTRAINTS", tmp_path / "constraints.txt")
    finding = only(doctor.examine_versions())
    assert finding.state == "warning" and "(tested: 1.0.0)" in finding.what and "(tested: 999.0)" in finding.what
    assert "no-such-library" not in finding.what and "constraints.txt" in finding.advice


def test_a_missing_library_is_a_failure(monkeypatch):
    here = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "torch" else here(name))
    finding = only(doctor.examine_versions())
    assert finding.state == "failed" and "torch missing" in finding.what and "make setup" in finding.advice


def test_a_token_is_there_and_kept_from_others(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert only(doctor.examine_token(None)).state == "not used"
    assert only(doctor.examine_token("http://lab:8265")).state == "warning"
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert "No such file" in only(doctor.examine_token(None)).what
    token.write_text("\n")
    assert only(doctor.examine_token(None)).what == f"{token} is empty"
    token.write_text("secret")
    token.chmod(0o644)
    assert only(doctor.examine_token(None)).advice == f"chmod 600 {token}"
    token.chmod(0o600)
    assert only(doctor.examine_token(None)) == Finding("token", "ok", str(token))


def test_a_good_storage_is_left_as_it_was(tmp_path):
    states = {finding.name: finding.state for finding in doctor.examine_storage(Storage(tmp_path))}
    assert states["storage"] == states["clock"] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_can_not_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    finding = only(doctor.examine_storage(Storage(tmp_path / "file")))
    assert finding.state == "failed" and "--storage" in finding.advice


def test_links_that_replace_make_no_leases(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda source, target: shutil.copy(source, target))
    (finding, *_) = doctor.examine_storage(Storage(tmp_path))
    assert finding.state == "failed" and "two processes can have one lease" in finding.what


def test_a_rename_that_changes_an_open_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda source, target: target.write_text(source.read_text()))
    (finding, *_) = doctor.examine_storage(Storage(tmp_path))
    assert finding.state == "failed" and "changes when another is renamed over it" in finding.what


def test_a_file_server_with_another_clock_is_a_warning(tmp_path, monkeypatch):
    now = doctor.time.time
    monkeypatch.setattr(doctor.time, "time", lambda: now() - 30)
    found = {finding.name: finding for finding in doctor.examine_storage(Storage(tmp_path))}
    assert found["storage"].state == "ok"
    assert found["clock"].state == "warning" and "+30" in found["clock"].what


def test_a_renderer_that_breaks_takes_only_its_own_process_along(monkeypatch, tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'libEGL missing' >&2\nkill -SEGV $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(doctor.sys, "executable", str(program))
    finding = only(doctor.examine_egl())
    assert (finding.state, finding.what) == ("failed", "libEGL missing") and "libegl1" in finding.advice


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["unrolled", "implicit"])
def test_two_devices_are_compared_by_their_numbers(adjoint, monkeypatch):
    assert doctor.cuda_difference(adjoint, device="cpu") == 0.0
    import torch

    moved = torch.nn.Module.to

    def broken(module, place):
        with torch.no_grad():
            for weights in module.parameters():
                weights *= 1.1
        return moved(module, place)

    monkeypatch.setattr(torch.nn.Module, "to", broken)
    assert doctor.cuda_difference(adjoint, device="cpu") > doctor.CUDA_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["unrolled", "implicit"])
@pytest.mark.parametrize("wrong", ["percent", "tf32", "rounding"])
def test_a_device_that_iterates_a_little_wrong_is_seen_and_rounding_is_not(adjoint, wrong, monkeypatch):
    import torch

    moved = torch.nn.Module.to

    def other(module, place):
        with torch.no_grad():
            filters = module.core.w_v
            if wrong == "percent":
                filters *= 1.01
            elif wrong == "tf32":  # the nearest number with 10 bits after the point
                filters.copy_(((filters.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32))
            else:
                filters *= 1 + 6e-8 * torch.randn(filters.shape)
        return moved(module, place)

    monkeypatch.setattr(torch.nn.Module, "to", other)
    difference = doctor.cuda_difference(adjoint, device="cpu")
    assert 0 < difference < 0.1 * doctor.CUDA_TOLERANCE if wrong == "rounding" else difference > doctor.CUDA_TOLERANCE


def test_a_store_that_does_not_answer_is_said_with_what_to_do(tmp_path):
    finding = only(doctor.examine_mlflow("http://127.0.0.1:9", Storage(tmp_path)))
    assert finding.state == "failed" and "refused" in finding.what and "idp sync" in finding.advice
    assert "secret" not in only(doctor.examine_mlflow("http://user:secret@127.0.0.1:9", Storage(tmp_path))).what
    for nowhere in (None, "", f"sqlite:///{tmp_path}/a/b.db"):
        finding = only(doctor.examine_mlflow(nowhere, Storage(tmp_path / "a")))
        assert finding.state == "ok" and finding.what.endswith(".db will be made by the first run")
    assert not (tmp_path / "a").exists(), "who looks makes nothing"


@pytest.mark.parametrize(("answer", "said"), [(b"SSH-2.0-OpenSSH", "SSH-2.0-OpenSSH"), (b"HTTP/1.0 503 Busy", "Busy")])
def test_what_answers_in_a_stores_place_is_said_whoever_asks(tmp_path, answer, said):
    class Talk(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(2**16)
            self.request.sendall(answer + b"\r\n\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Talk) as store:
        threading.Thread(target=store.serve_forever, daemon=True).start()
        uri = f"http://user:secret@127.0.0.1:{store.server_address[1]}"
        finding = only(doctor.examine_mlflow(uri, Storage(tmp_path)))
        store.shutdown()
    assert finding.state == "failed" and said in finding.what and "secret" not in finding.what


def test_a_file_system_is_known_by_any_letters(monkeypatch):
    mounts = "/dev/a / ext4 rw 0 0\nlab:/x /mnt/für\\040alle nfs4 rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda path: mounts)
    kinds = {place: doctor._file_system(Path(place)) for place in ("/home", "/mnt/für alle/idp", "/mnt/für")}
    assert kinds == {"/home": "ext4", "/mnt/für alle/idp": "nfs4", "/mnt/für": "ext4"}


def test_a_cluster_that_does_not_answer_is_said(monkeypatch):
    finding = only(doctor.examine_ray("http://127.0.0.1:9"))
    assert finding.state == "failed" and "no Ray cluster answers" in finding.what


def test_one_object_and_exit_code_1_where_something_failed(tmp_path, monkeypatch, capsys):
    def broken():
        raise RuntimeError("on fire")
        yield

    for name in ("examine_versions", "examine_egl", "examine_cuda"):
        monkeypatch.setattr(doctor, name, lambda: iter([]))
    monkeypatch.setattr(doctor, "examine_ray", lambda address: iter([Finding("Ray", "ok", "here")]))
    words = ["doctor", "--storage", str(tmp_path / "new"), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    monkeypatch.setattr(doctor, "examine_cuda", broken)
    assert main(words) == 1
    said = json.loads(capsys.readouterr().out)
    (failed,) = (finding for finding in said["findings"] if finding["state"] == "failed")
    assert not said["ok"] and failed["what"] == "RuntimeError: on fire"
