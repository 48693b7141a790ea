"""The example of crowds: do members keep to the building, do personas read as they are written, does steering help?"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from datagen.plugins import PluginError
from datagen.storage.dataset import make_dataset
from orchestrator.storage.layout import Storage
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.plugins import load_plugins
from orchestrator.sweep.specs import expand
from orchestrator.trial.train import run_trial

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def crowds():
    """The plug-in."""
    load_plugins(["crowds"], beside=[EXAMPLES])
    import crowds.evacuation
    import crowds.expert
    import crowds.personas

    return crowds


def left(crowds, line, *, number=0, members=20, steps=120, seed=0):
    """Return what two crowds of one persona do."""
    generator = np.random.default_rng(seed)
    start = np.stack([crowds.evacuation.starts(number, members, generator) for _ in range(2)])
    like = crowds.personas.traits([crowds.personas.read(line)[None]] * 2, members)
    return crowds.evacuation.evacuate(number, start, like, steps, generator)


@pytest.mark.parametrize("number", [0, 1])
def test_who_knows_the_way_leaves_by_the_doors_that_it_knows(crowds, number):
    share = {}
    for known in ("the entrance", "the building"):
        did = left(crowds, f"running, calm, alone, knows {known}", number=number)
        assert (did.door > 0).all() and (did.conduct.sum(-1) == did.time).all() and not did.conduct[..., 1:3].any()
        share[known] = (did.door == 1).mean()
    assert share["the entrance"] > share["the building"] + 0.1


def test_one_member_needs_as_many_steps_as_the_planner_says(crowds):
    place = crowds.evacuation.building(0)
    cell = np.array([[[1, 1]]])
    like = crowds.evacuation.Traits(*(np.full((1, 1), value) for value in (1.0, 0.0, 0.0)), np.full((1, 1), 0b111))
    did = crowds.evacuation.evacuate(0, cell, like, 100, np.random.default_rng(0))
    assert did.time[0, 0] == place.distance[0b111, 1, 1] and did.door[0, 0] == 1


def test_no_two_are_in_one_cell_and_none_in_a_wall(crowds, monkeypatch):
    seen, whole = [], crowds.evacuation._planned
    monkeypatch.setattr(
        crowds.evacuation, "_planned", lambda place, at, *rest: seen.append(at.copy()) or whole(place, at, *rest)
    )
    did = left(crowds, "brisk, alert, clinging, knows the entrance", members=60)
    place = crowds.evacuation.building(0)
    for now, at in enumerate(seen, start=1):
        inside = did.time >= now
        for crowd in range(len(at)):
            cells = [tuple(cell) for cell in at[crowd][inside[crowd]]]
            assert len(set(cells)) == len(cells) and all(place.free[cell] for cell in cells)
    assert len(seen) > 20


def test_fear_freezes_and_following_follows(crowds):
    calm, panicked = (left(crowds, f"walking, {fear}, alone, knows the signs") for fear in ("calm", "panicked"))
    assert not calm.conduct[..., 2].any() and panicked.conduct[..., 2].mean() > 0.3 * panicked.time.mean()
    herd = left(crowds, "walking, calm, herding, knows the signs").conduct
    assert herd[..., 1].sum() > herd[..., 0].sum()


def test_a_persona_reads_as_it_is_written(crowds):
    for number in range(20):
        persona = np.random.default_rng(number).integers(crowds.personas.LEVELS)
        assert (crowds.personas.read(crowds.personas.text(persona)) == persona).all()
    with pytest.raises(ValueError, match=r"fear: expected one of calm, .*, got 'brave'"):
        crowds.personas.read("slow, brave, alone, knows the signs")


def test_the_divergence_is_that_of_jensen_and_shannon(crowds):
    one, other = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.5, 0.5])
    assert crowds.expert.divergence(one, one) == 0.0 and crowds.expert.divergence(one, other) == pytest.approx(1.0)
    half = np.array([0.5, 0.5, 0.0])
    assert crowds.expert.divergence(one, half) == pytest.approx(1.5 - 0.75 * np.log2(3.0))


def test_smoke_steers_all_ways_and_rewriting_beats_no_steering(crowds, tmp_path):
    sweep, storage, results = load_sweep(EXAMPLES / "crowds.yaml", "smoke"), Storage(tmp_path), {}
    for trial in expand(sweep):
        make_dataset(trial.spec.data, storage.datasets)
        results[trial.axes["planner"]] = run_trial(trial.spec, storage)
    assert {result.status for result in results.values()} == {"COMPLETED"}
    assert set(results["evolved"].metrics) == {"divergence", "elsewhere", "leaving", "conduct"}
    found = {name: result.metrics["divergence"] for name, result in results.items()}
    assert found["expert"] < found["no-steering"] and found["evolved"] < found["no-steering"]


@pytest.fixture
def endpoint(monkeypatch):
    """A server of chat completions that answers with `said`, and keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append((self.path, self.headers["Authorization"], asked))
            body = json.dumps({"choices": [{"message": {"content": server.said}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.said = [], ""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("IDP_CROWDS_ENDPOINT", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("IDP_CROWDS_MODEL", "a-model")
    monkeypatch.setenv("IDP_CROWDS_KEY", "a-key")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_proposes_and_what_is_no_crowd_is_left_out(crowds, endpoint):
    line = "slow, uneasy, herding, knows the entrance"
    endpoint.said = f"Here:\n```json\n{json.dumps([[line, line], ['slow', line], [line]])}\n```"
    kept, generator = [np.tile(crowds.personas.UNSTEERED, (2, 1))], np.random.default_rng(0)
    found = crowds.personas.asked(kept, ["too calm"], 3, generator)
    assert [[crowds.personas.text(persona) for persona in crowd] for crowd in found] == [[line, line]]
    (path, key, asked), question = endpoint.asked[0], endpoint.asked[0][2]["messages"][0]["content"]
    assert (path, key, asked["model"]) == ("/v1/chat/completions", "Bearer a-key", "a-model")
    assert "too calm" in question and "walking, calm, alone, knows the building" in question
    for said, told in (("[[1, 2]]", "no crowd that is one"), ("no", "expected a chat completion with a JSON list")):
        endpoint.said = said
        with pytest.raises(PluginError, match=told):
            crowds.personas.asked(kept, ["too calm"], 3, generator)


def test_an_endpoint_that_is_not_configured_or_not_there_is_one_message(crowds, monkeypatch):
    kept, generator = [np.tile(crowds.personas.UNSTEERED, (2, 1))], np.random.default_rng(0)
    monkeypatch.delenv("IDP_CROWDS_ENDPOINT", raising=False)
    with pytest.raises(PluginError, match="proposer 'endpoint' needs IDP_CROWDS_ENDPOINT"):
        crowds.personas.asked(kept, [""], 1, generator)
    monkeypatch.setenv("IDP_CROWDS_ENDPOINT", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("IDP_CROWDS_MODEL", "a-model")
    with pytest.raises(PluginError, match=r"http://127.0.0.1:9/v1/chat/completions: "):
        crowds.personas.asked(kept, [""], 1, generator)
