"""Word to a chat room, over real HTTP: at the end, at the first failure and divergence, and to nobody's harm."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from datagen.errors import UserError
from orchestrator.campaign.webhook import VARIABLE, Webhook
from orchestrator.cli.main import main

SWEEP = """
name: small
planners: {vin: {core: vin, adjoint: unrolled, hidden_channels: 8, q_channels: 4}}
data: {train: 64, valid: 8, test: 8}
tasks: [{map_size: 9}]
grid: {k: [4], seed: [0]}
training: {epochs: 1}
figures: [success]
"""


@pytest.fixture
def room():
    """Return the address of a server and the texts that it was posted; its path is what nobody may see."""
    texts = []

    class Room(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            texts.append((self.headers["Content-Type"], json.loads(body)))
            self.send_response(500 if self.path.endswith("broken") else 200)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = HTTPServer(("127.0.0.1", 0), Room)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret", texts
    server.shutdown()
    server.server_close()


def run(tmp_path, *more):
    path = tmp_path / "small.yaml"
    path.write_text(SWEEP)
    return main(["run", str(path), "--in-process", "--storage", str(tmp_path / "s"), "--tracking-uri", "none", *more])


@pytest.mark.slow
def test_the_end_of_a_sweep_is_told_and_nothing_of_the_address(tmp_path, monkeypatch, room, capsys):
    address, texts = room
    monkeypatch.setenv(VARIABLE, address)
    monkeypatch.setenv("IDP_TENSORBOARD", str(tmp_path / "board"))
    assert run(tmp_path) == 0
    assert len(list(tmp_path.glob("board/small/vin_navigation-9_K=4_seed=0-*/events.out.tfevents.*"))) == 1
    ((kind, said),) = texts
    assert kind == "application/json" and said["text"].startswith("small: done: 1 trial ended; idp table ")
    printed = capsys.readouterr()
    kept = [path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()]
    assert "secret" not in printed.out + printed.err and not any(b"/secret" in content for content in kept)
    texts.clear()
    assert run(tmp_path) == 0 and texts == [], "nothing was to be run"


def test_of_failures_and_divergences_the_first_is_told(room):
    address, texts = room
    webhook = Webhook(address, "sweep", print)
    for number in range(3):
        webhook.send(f"trial {number} failed", once="failure")
        webhook.send(f"trial {number} diverged", once="divergence")
    webhook.send("done")
    webhook.close()
    assert [said["text"] for _, said in texts] == ["sweep: trial 0 failed", "sweep: trial 0 diverged", "sweep: done"]


@pytest.mark.parametrize("place", ["{}/broken", "http://127.0.0.1:9/secret", "{} b", "http://127.0.0.1:port/secret"])
def test_a_server_that_takes_no_word_is_told_once_and_harms_nobody(room, place):
    said = []
    webhook = Webhook(place.format(room[0]), "sweep", said.append)
    webhook.send("one")
    webhook.send("two")
    webhook.close()
    (line,) = said
    assert "127.0.0.1" in line and "the run goes on" in line and "secret" not in line


@pytest.mark.parametrize("address", ["ftp://host/x", "hooks.slack.com/services", "http://[", "file:///etc"])
def test_no_address_is_refused_before_anything_starts_and_not_shown(address, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=VARIABLE) as refused:
        Webhook(address, "sweep", print)
    assert address not in str(refused.value)
    monkeypatch.setenv(VARIABLE, address)
    assert run(tmp_path) == 2 and not (tmp_path / "s" / "datasets").exists()
    assert address not in capsys.readouterr().err


def test_without_an_address_nothing_is_sent():
    webhook = Webhook("", "sweep", pytest.fail)
    webhook.send("done")
    webhook.close()
    assert not webhook._thread.is_alive()
