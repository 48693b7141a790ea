"""Which files hold secrets, by their names and first lines: those never leave the machine."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

# One line a kind: a password manager of a shell, of clouds and registries, of desktops.
_FOLDERS = (
    *("secret", "secrets", ".secret", ".secrets", "private-keys*", ".password-store", ".vault*"),
    *(".ssh", ".gnupg", ".pki", ".aws", ".azure", ".gcloud", "gcloud", ".kube", ".docker", ".kaggle", ".huggingface"),
    *(".terraform", ".netlify", ".ngrok*", ".subversion", ".mozilla", ".config", ".local", ".cache"),
)
_FILES = (
    *(".env*", "*.env", "secrets.py", ".netrc", "_netrc", ".authinfo*", "auth.json", "oauth*.json", "cookies*"),
    *(".pgpass", "pgpass*", ".my.cnf", ".mylogin.cnf", ".htpasswd", ".git-credentials", ".*_history"),
    *(".pypirc", ".npmrc", ".yarnrc*", ".condarc", ".gemrc", ".dockercfg", ".dockerconfigjson", "kaggle.json"),
    *(".s3cfg", ".boto", ".cdsapirc", "rclone.conf", "*.tfvars*", "*.tfstate*", "*kubeconfig*", "*.ovpn"),
    *("*.pem", "*.pem.*", "*.key", "*.key.*", "*.p8", "*.p12", "*.pfx", "*.pkcs12", "*.jks", "*.keystore", "*.ppk"),
    *("*.kdbx", "*.keyring", "*.gpg", "*.age", "*_key", "*-key", "*_key.json", "*-key.json"),
    *(f"*{kind}{rest}" for kind in ("_rsa", "_dsa", "_ecdsa", "_ed25519") for rest in ("", ".*", "_key*")),
)
_WORDS = re.compile(
    r"(secrets?|tokens?|passwords?|passwd|passphrases?|credentials?|creds|api[-_]?keys?|private[-_]?keys?"
    r"|access[-_]?keys?|service[-_]?accounts?|bearer)([-_. ]|$)"
)
_SHOWN = re.compile(r"\.(example|sample|template|dist)$|(^|[-_.])(example|sample|template)[-_.]")
"""A file of this kind that is made to be copied holds nothing yet."""

_CODE = {
    ".py",
    ".pyi",
    ".pyx",
    ".sh",
    ".md",
    ".rst",
    ".ipynb",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".cu",
    ".tex",
    ".html",
    ".css",
}
# By itself, behind its certificate, or in the file of a cloud's service account, which may have any name.
_PRIVATE_KEY = re.compile(
    rb"(?m:^)(?:\xef\xbb\xbf)?\s*(?:-----BEGIN [A-Z0-9 ]*PRIVATE KEY|PuTTY-User-Key-File-)"
    rb"|\A\s*\{.*\"private_key\"\s*:\s*\"-----BEGIN ",
    re.DOTALL,
)
_MOST_BYTES = 2**16


def secret_name(name: PurePath) -> bool:
    """Return whether a file's relative path is that of a secret.

    Code and prose may speak of tokens and passwords by name; files of any other kind that do are taken to hold them.
    """
    *folders, file = (part.lower() for part in name.parts)
    if any(fnmatchcase(folder, pattern) for folder in folders for pattern in _FOLDERS):
        return True
    if _SHOWN.search(file):
        return False
    if any(fnmatchcase(file, pattern) for pattern in _FILES):
        return True
    return PurePath(file).suffix not in _CODE and _WORDS.search(file) is not None


def secret_content(path: Path) -> bool:
    """Return whether a private key stands in the first lines of a file, whatever it is called."""
    with path.open("rb") as file:
        return _PRIVATE_KEY.search(file.read(_MOST_BYTES)) is not None
