"""The configuration of the profile `tls` in a real nginx, before stand-ins that tell what they were asked."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cluster import free_ports

ROOT = Path(__file__).resolve().parents[1]
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here: apt-get install openssl")


class Echo(BaseHTTPRequestHandler):
    """Answers with the headers that came."""

    def do_GET(self) -> None:
        content = json.dumps({"port": self.server.server_address[1], **self.headers}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *words: object) -> None:
        pass


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """The folder of secrets, with a certificate for this machine."""
    docker = tmp_path_factory.mktemp("tree") / "docker"
    (docker / "secrets").mkdir(parents=True)
    shutil.copy(ROOT / "docker" / "certificate.sh", docker)
    done = subprocess.run([docker / "certificate.sh", "localhost", "127.0.0.1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return docker / "secrets"


@pytest.fixture(scope="module")
def front(secrets, tmp_path_factory):
    """The ports of Ray's and MLflow's front, and of the stand-ins behind them."""
    if NGINX is None:
        pytest.skip("no nginx here: apt-get install nginx")
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)
    behind = [ThreadingHTTPServer(("127.0.0.1", 0), Echo) for _ in range(2)]
    for each in behind:
        threading.Thread(target=each.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    ports = free_ports(2)
    text = (ROOT / "docker/tls/nginx.conf").read_text()
    changes = {
        "http://head:8265": f"http://127.0.0.1:{behind[0].server_address[1]}",
        "http://mlflow:5000": f"http://127.0.0.1:{behind[1].server_address[1]}",
        "listen 8443": f"listen 127.0.0.1:{ports[0]}",
        "listen 5443": f"listen 127.0.0.1:{ports[1]}",
        "/tmp/": f"{folder}/",
        " /tls/": f" {secrets}/tls/",
        "access_log /dev/stdout": f"access_log {folder}/asked",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(user + text)
    command = [NGINX, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error"), "-g", "daemon off;"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stderr=log)
    try:
        until = time.monotonic() + 60.0
        for port in ports:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < until, (folder / "log").read_text()
                    time.sleep(0.05)
        yield ports, [each.server_address[1] for each in behind], folder
    finally:
        server.terminate()
        server.wait(30)
        for each in behind:
            each.shutdown()
            each.server_close()


def ask(secrets, port, **headers):
    context = ssl.create_default_context(cafile=secrets / "tls" / "authority.crt")
    question = urllib.request.Request(f"https://localhost:{port}/api/version", headers=headers)
    with urllib.request.urlopen(question, context=context, timeout=30) as answer:
        return json.loads(answer.read())


def test_users_reach_both_services_with_the_certificate(secrets, front):
    (ray, mlflow), behind, folder = front
    answers = ask(secrets, ray, Authorization="Bearer secret-token"), ask(secrets, mlflow, Authorization="Basic secret")
    assert [answer["port"] for answer in answers] == behind
    assert answers[0]["Authorization"] == "Bearer secret-token" and answers[0]["Host"] == f"localhost:{ray}"
    assert answers[1]["Host"] == "mlflow:5000"
    asked = (folder / "asked").read_text()
    assert '"GET /api/version HTTP/1.1" 200' in asked and "secret" not in asked


def test_mlflow_hears_of_other_sites_and_not_of_its_own_address(secrets, front):
    (_, mlflow), _, _ = front
    assert "Origin" not in ask(secrets, mlflow, Origin=f"https://localhost:{mlflow}")
    for origin in ("https://evil.example", f"http://localhost:{mlflow}", f"https://localhost:{mlflow}.evil.example"):
        assert ask(secrets, mlflow, Origin=origin)["Origin"] == origin


def test_nothing_is_answered_in_the_clear_or_to_who_does_not_know_the_authority(secrets, front):
    (ray, _), _, _ = front
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(f"http://127.0.0.1:{ray}/api/version", timeout=30)
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"https://localhost:{ray}/", timeout=30)


def test_the_key_is_private_the_authoritys_is_gone_and_nothing_is_overwritten(secrets):
    made = {path.name: path.stat().st_mode & 0o777 for path in (secrets / "tls").iterdir()}
    assert made == {"authority.crt": 0o600, "server.crt": 0o600, "server.key": 0o600}
    before = (secrets / "tls" / "server.key").read_bytes()
    for words, said in ((["other"], "is there already"), ([], "usage: ")):
        done = subprocess.run([secrets.parent / "certificate.sh", *words], capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr
    assert (secrets / "tls" / "server.key").read_bytes() == before


@pytest.fixture
def script(tmp_path):
    """The script in a tree of its own, with an empty folder of secrets."""
    (tmp_path / "docker" / "secrets").mkdir(parents=True)
    return Path(shutil.copy(ROOT / "docker" / "certificate.sh", tmp_path / "docker"))


def certify(script, *names, **environment):
    variables = {**os.environ, **environment}
    return subprocess.run(["/bin/bash", script, *names], env=variables, capture_output=True, text=True)


LONG = ".".join(["a" * 60] * 4)


def test_a_certificate_is_for_every_form_of_a_name(script):
    names = ["lab.example.org", "*.lab.org", "lab-1", LONG, "10.0.0.7", "::1", "[fe80::7]", "::ffff:10.0.0.7"]
    for first in (names, names[::-1]):
        done = certify(script, *first)
        assert done.returncode == 0, done.stderr
        made = script.parent / "secrets" / "tls"
        shown = ["openssl", "x509", "-in", made / "server.crt", "-noout", "-ext", "subjectAltName"]
        text = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
        assert sorted(word.partition(":")[0].strip() for word in text.splitlines()[1].split(", ")) == 4 * [
            "DNS"
        ] + 4 * ["IP Address"]
        assert all(f"DNS:{name}" in text for name in names[:4]) and "IP Address:10.0.0.7" in text
        assert sorted(path.name for path in made.iterdir()) == ["authority.crt", "server.crt", "server.key"]
        shutil.rmtree(made)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("10.0.0.999", "expected four numbers up to 255"),
        ("10.0.0", "expected four numbers up to 255"),
        ("10.0.0.0.7", "expected four numbers up to 255"),
        ("lab.example.org:8443", "without a port"),
        ("10.0.0.7:8443", "without a port"),
        ("[::1]:8443", "without a port"),
        ("https://lab.example.org", "without a port"),
        ("-lab", "expected a host's name"),
        ("lab-", "expected a host's name"),
        ("lab..org", "expected a host's name"),
        ("a.*.org", "expected a host's name"),
        ("a" * 64, "expected a host's name"),
        (f"{LONG}.{'a' * 20}", "expected a host's name"),
        ("lab,DNS:evil.org", "expected a host's name"),
        ("lab\nDNS:evil.org", "expected a host's name"),
        ("", "expected a host's name"),
        ("1:2:3", "openssl makes none"),
        ("::99999", "openssl makes none"),
    ],
)
def test_what_is_no_name_is_refused_with_a_word_and_leaves_nothing(script, name, said):
    for names in ([name], ["lab.example.org", name]):
        refused = certify(script, *names)
        assert refused.returncode == 2 and said in refused.stderr and name in refused.stderr
        assert list((script.parent / "secrets").iterdir()) == []


def test_what_is_missing_is_named(script, tmp_path):
    (script.parent / "secrets").rmdir()
    refused = certify(script, "lab")
    assert refused.returncode == 2 and refused.stderr == "certificate: no docker/secrets: `make secrets` makes it\n"
    for program in ("dirname", "bash"):
        (tmp_path / program).symlink_to(shutil.which(program))
    refused = certify(script, "lab", PATH=str(tmp_path))
    assert refused.returncode == 2 and refused.stderr == "certificate: no openssl here: apt-get install openssl\n"
