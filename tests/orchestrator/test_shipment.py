"""What is sent to a cluster: what git would keep, the sweep, its plug-ins, and nothing large."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile

import pytest

from orchestrator.cluster import package as shipment
from orchestrator.cluster.package import pack
from orchestrator.sweep.files import load_sweep, sweep_files
from orchestrator.sweep.specs import SweepError

SWEEP = "name: small\nplanners: {vin: {core: vin}}\n"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "project"
    (folder / "sweeps").mkdir(parents=True)
    (folder / "sweeps" / "small.yaml").write_text(SWEEP)
    (folder / "notes.txt").write_text("notes")
    for name in (
        ".env",
        "docker/secrets/token",
        ".venv/big",
        "idp-storage/trials/1/result.json",
        "code/__pycache__/x.pyc",
        "code/x.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def git(folder, *words):
    subprocess.run(["git", "-C", folder, "-c", "user.name=t", "-c", "user.email=t@t", *words], check=True)


def names(package):
    return set(zipfile.ZipFile(package).namelist())


def test_outside_git_all_but_environments_caches_and_storages_is_sent(folder, tmp_path):
    pack(folder, tmp_path / "p.zip")
    assert names(tmp_path / "p.zip") == {"sweeps/small.yaml", "notes.txt", "code/x.py"}


def test_in_git_it_is_what_is_tracked_or_new_and_not_ignored_and_still_there(folder, tmp_path):
    (folder / ".gitignore").write_text(
        ".env\nsecrets/\n.venv/\nidp-storage/\n__pycache__/\n*.secret\n/sweeps/mine.yaml\n"
    )
    (folder / "gone.txt").write_text("x")
    git(folder, "init", "-q")
    git(folder, "add", "code", "gone.txt", ".gitignore")
    (folder / "gone.txt").unlink()
    (folder / "key.secret").write_text("secret")
    (folder / "sweeps" / "mine.yaml").write_text("extends: small.yaml\nname: mine\n")
    mine = folder / "sweeps" / "mine.yaml"
    pack(folder, tmp_path / "p.zip", sweep_files(mine))
    # The sweep is sent although git ignores it: without it there would be nothing to run.
    expected = {".gitignore", "code/x.py", "notes.txt", "sweeps/small.yaml", "sweeps/mine.yaml"}
    assert names(tmp_path / "p.zip") == expected


SECRETS = re.findall(
    r"\S+",
    """
    .env .env.local .env.production .ENV prod.env .envrc secrets/x config/secrets/db.json .secrets/x secret/x
    secrets.yaml secrets.json secrets.toml .streamlit/secrets.toml secrets.py my.secret app_secret.txt
    client_secret_123.json credentials credentials.json credentials.csv gcp-credentials.json
    application_default_credentials.json service-account.json service_account_key.json gcp-key.json .aws/credentials
    .aws/config .azure/msal.json .config/gcloud/x.db .config/gh/hosts.yml .kube/config kubeconfig kubeconfig.yaml
    lab.kubeconfig .docker/config.json .dockercfg .ssh/id_rsa .ssh/config id_rsa id_rsa.pub id_ed25519
    deploy_ed25519 ssh_host_rsa_key server.pem server.PEM server.key flask_key tls.key.bak cert.p12 cert.pfx
    store.jks vault.kdbx mine.gpg mine.age .gnupg/pubring.kbx .netrc _netrc .pgpass pgpass.conf .my.cnf .pypirc
    .npmrc .git-credentials .htpasswd .s3cfg .boto kaggle.json .kaggle/kaggle.json token ray_token .idp-token
    idp-token token.txt hf_token auth_token.json mytoken docker/secrets/ray_token password.txt passwords.csv passwd
    api_key.txt apikey.txt API-Key.json prod.tfvars terraform.tfstate .bash_history .python_history rclone.conf
    .huggingface/token cookies.txt .vault-token .netlify/state.json auth.json private_key.der
    """,
)
NO_SECRETS = re.findall(
    r"\S+",
    """
    tokenizer.py token.py tokens.md credentials.py password_reset.py secret_santa.rst docker/secrets.sh keys.md
    keyboard.txt .env.example .env.sample .env.template example.env.txt monkey.csv tokenizer.json environment.yml
    notes.txt envelope.txt training_history.csv sweeps/k_token.py .gitignore key.yaml config/train.yaml
    secretary.txt data/passage.txt
    """,
)


@pytest.mark.parametrize("in_git", ["tracked", "new", "no"])
def test_no_secret_is_sent_in_git_or_outside(tmp_path, in_git):
    folder = tmp_path / "project"
    for name in (*SECRETS, *NO_SECRETS, "sweeps/small.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"of {name}")
    (folder / "notes.bak").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n")
    behind = (
        "Bag Attributes\n-----BEGIN CERTIFICATE-----\n" + 200 * f"{64 * 'A'}\n" + "-----BEGIN PRIVATE KEY-----\nAAAA"
    )
    (folder / "client.crt").write_text(behind)
    account = {"type": "service_account", "private_key_id": "7f", "private_key": "-----BEGIN PRIVATE KEY-----\nAAAA"}
    (folder / "lab-1234.json").write_text(json.dumps(account, indent=2))
    if in_git != "no":
        git(folder, "init", "-q")
    if in_git == "tracked":
        git(folder, "add", "-f", ".")
    sent = pack(folder, tmp_path / "p.zip")
    assert names(tmp_path / "p.zip") == {*NO_SECRETS, "sweeps/small.yaml"}
    assert set(sent.left_out) == {*SECRETS, "notes.bak", "client.crt", "lab-1234.json"}
    assert sent.files == len(NO_SECRETS) + 1 and f"{len(sent.left_out)} stay here" in sent.words()
    read = zipfile.ZipFile(tmp_path / "p.zip")
    assert sent.bytes == sum(len(read.read(name)) for name in read.namelist())


@pytest.mark.parametrize("in_git", [True, False])
def test_a_link_leads_neither_out_of_the_folder_nor_around_what_stays_here(folder, tmp_path, in_git):
    (tmp_path / "outside.txt").write_text("outside")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x.txt").write_text("x")
    links = {
        "inside.txt": "notes.txt",
        "out.txt": "../outside.txt",
        "absolute.txt": str(tmp_path / "outside.txt"),
        "passwd.txt": "/etc/passwd",
        "far": "../far",
        "harmless.txt": ".env",
        "result.json": "idp-storage/trials/1/result.json",
        "dangling.txt": "nowhere",
        "twice.txt": "out.txt",
        "here": "code",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    if in_git:
        (folder / ".gitignore").write_text(".venv/\nidp-storage/\n__pycache__/\n")
        git(folder, "init", "-q")
    sent = pack(folder, tmp_path / "p.zip")
    expected = {"sweeps/small.yaml", "notes.txt", "code/x.py", "inside.txt"} | ({".gitignore"} if in_git else set())
    assert names(tmp_path / "p.zip") == expected
    assert {"out.txt", "absolute.txt", "harmless.txt", "result.json", "twice.txt"} <= set(sent.left_out)


def test_a_plugin_brings_no_secret_and_no_link_to_elsewhere_along(folder, tmp_path):
    away = tmp_path / "site" / "far"
    away.mkdir(parents=True)
    (tmp_path / "site" / "outside.txt").write_text("x")
    for name in ("__init__.py", ".env", "server.pem"):
        (away / name).write_text("")
    (away / "link.txt").symlink_to("../outside.txt")
    pack(folder, tmp_path / "p.zip", plugins=[away])
    assert {name for name in names(tmp_path / "p.zip") if name.startswith("far")} == {"far/__init__.py"}


@pytest.mark.parametrize("above", [".", "..", "../.."])
def test_a_home_is_not_sent(tmp_path, monkeypatch, above):
    home = tmp_path / "homes" / "jane"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(SweepError, match="your home is in it"):
        pack(home / above, tmp_path / "p.zip")
    (home / "project").mkdir()
    assert pack(home / "project", tmp_path / "p.zip").files == 0


def test_whoever_has_no_name_sends_all_the_same(folder, tmp_path, monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr(shipment.pwd, "getpwuid", nobody)
    assert pack(folder, tmp_path / "p.zip").files == 3


@pytest.mark.parametrize("in_git", [False, True])
def test_a_name_that_is_no_text_stays_here_and_is_told(folder, tmp_path, in_git):
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    (folder / "café.txt").write_text("x")
    if in_git:
        git(folder, "init", "-q")
    sent = pack(folder, tmp_path / "p.zip")
    assert "café.txt" in names(tmp_path / "p.zip") and os.fsdecode(b"caf\xe9.txt") in sent.left_out
    assert "names in no text" in sent.words()


def test_a_repository_that_git_will_not_read_is_told_and_not_sent(folder, tmp_path, monkeypatch):
    git(folder, "init", "-q")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    with pytest.raises(SweepError, match=r"dubious ownership.*git config --global --add safe.directory"):
        pack(folder / "code", tmp_path / "p.zip")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SweepError, match="git can't list what is in it"):
        pack(folder, tmp_path / "p.zip")
    shutil.rmtree(folder / ".git")
    assert pack(folder, tmp_path / "p.zip").files == 3


def test_a_storage_by_any_name_stays_here(folder, tmp_path):
    (folder / "results" / "trials").mkdir(parents=True)
    (folder / "results" / "trials" / "1.json").write_text("x")
    pack(folder, tmp_path / "p.zip", storage=folder / "results")
    assert "notes.txt" in names(tmp_path / "p.zip")
    assert not any(name.startswith("results") for name in names(tmp_path / "p.zip"))


def test_the_same_files_give_the_same_bytes_whenever_they_were_written(folder, tmp_path):
    pack(folder, tmp_path / "one.zip")
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").write_text("notes")
    pack(folder, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_plugins_from_elsewhere_come_to_the_top_and_those_in_place_stay(folder, tmp_path):
    away = tmp_path / "site" / "far"
    (away / "__pycache__").mkdir(parents=True)
    (away / "__init__.py").write_text("")
    (away / "__pycache__" / "x.pyc").write_text("x")
    near = folder / "sweeps" / "near.py"
    near.write_text("")
    pack(folder, tmp_path / "p.zip", [folder / "sweeps" / "small.yaml"], [away, near])
    found = names(tmp_path / "p.zip")
    assert "far/__init__.py" in found and "sweeps/near.py" in found
    assert not found & {"near.py", "far/__pycache__/x.pyc"}


def test_too_much_is_refused_and_the_largest_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shipment, "MOST_BYTES", 1000)
    (folder / "weights.bin").write_bytes(b"x" * 5000)
    with pytest.raises(SweepError, match=r"5\.0 kB to send, at most 1\.0 kB can be; the largest: weights\.bin"):
        pack(folder, tmp_path / "p.zip")


def test_a_sweep_outside_the_folder_is_refused(folder, tmp_path):
    with pytest.raises(SweepError, match="submit from a folder above it"):
        pack(folder / "code", tmp_path / "p.zip", sweep_files(folder / "sweeps" / "small.yaml"))


def test_the_files_of_a_sweep_are_it_and_what_it_extends(folder):
    mine = folder / "mine.yaml"
    mine.write_text("extends: sweeps/small.yaml\nname: mine\n")
    assert sweep_files(mine) == [mine, folder / "sweeps" / "small.yaml"]
    assert load_sweep(mine).name == "mine"
