"""The manifests for Kubernetes against KubeRay's schema, as strictly as its server would read them."""

from __future__ import annotations

import copy
import json
import lzma
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator.cli.main import _parser
from orchestrator.sweep.files import load_sweep

ROOT = Path(__file__).parents[1]
RAYJOB, STORAGE = ROOT / "kubernetes" / "rayjob.yaml", ROOT / "kubernetes" / "storage.yaml"


def strict(schema: Any) -> Any:
    """Return a structural schema of Kubernetes as JSON Schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(part) for key, part in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema and not open_ended:
        found["additionalProperties"] = False
    return found


@pytest.fixture(scope="module")
def schema() -> Any:
    text = lzma.decompress((ROOT / "tests" / "kuberay" / "rayjob-v1.json.xz").read_bytes())
    schema = strict(json.loads(text))
    schema["properties"]["metadata"] = {"type": "object"}  # the server's own, of which the schema says nothing more
    return schema


@pytest.fixture
def job() -> Any:
    return yaml.safe_load(RAYJOB.read_text())


def pods(job: Any) -> list[Any]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_job_is_what_kuberay_accepts(job: Any, schema: Any) -> None:
    jsonschema.Draft202012Validator(schema).validate(job)


@pytest.fixture
def claim_schema(schema: Any) -> Any:
    """The part of KubeRay's schema that is Kubernetes' own, of a claim that a pod makes for itself."""
    place = schema["properties"]["spec"]["properties"]["rayClusterSpec"]["properties"]["headGroupSpec"]
    for step in ("template", "spec", "volumes"):
        place = place["properties"][step]
    return place["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]


def test_the_volume_is_a_claim_as_kubernetes_has_it(claim_schema: Any) -> None:
    claim = yaml.safe_load(STORAGE.read_text())
    assert (claim["apiVersion"], claim["kind"], set(claim)) == (
        "v1",
        "PersistentVolumeClaim",
        {"apiVersion", "kind", "metadata", "spec"},
    )
    validator = jsonschema.Draft202012Validator(claim_schema)
    validator.validate(claim["spec"])
    for wrong in ({"accessMode": ["ReadWriteMany"]}, {"resources": {"request": {}}}, {"storageClassName": ["nfs"]}):
        assert not validator.is_valid({**claim["spec"], **wrong})


def test_the_page_shows_commands_that_can_be_run(job: Any) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (block,) = re.findall(r"^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = [line.partition("#")[0] for line in block.splitlines()]
    commands = [shlex.split(each) for line in lines for each in line.split(";")]
    (made, *commands) = commands
    assert made == ["make", "secrets", "image"]
    verbs = [("docker", "tag"), ("docker", "push"), ("kubectl", "apply"), ("kubectl", "create"), ("kubectl", "get")]
    assert [tuple(command[:2]) for command in commands] == [*verbs, ("kubectl", "logs")]
    images = {container["image"] for pod in pods(job) for container in pod["containers"]}
    assert {commands[0][-1], commands[1][-1]} == images and len(commands[0]) == 4
    files = [command[command.index("-f") + 1] for command in commands[2:4]]
    assert [ROOT / name for name in files] == [STORAGE, RAYJOB]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "entrypont"], "idp"),
        (["spec", "backoffLimit"], "5"),
        (["spec", "rayClusterSpec", "authOptions", "mode"], "tokens"),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "volumeMount"], []),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"], None),
    ],
)
def test_the_schema_would_notice(job: Any, schema: Any, path: list[Any], value: Any) -> None:
    wrong = copy.deepcopy(job)
    place = wrong
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(wrong)


def test_it_runs_a_sweep_of_the_image_with_our_versions(job: Any) -> None:
    words = shlex.split(job["spec"]["entrypoint"])
    options = _parser().parse_args(words[1:])
    assert words[0] == "idp" and options.address == "auto" and options.tracking_uri == "none"
    assert options.sweep.startswith("/srv/idp/sweeps/")
    load_sweep(ROOT / Path(options.sweep).relative_to("/srv/idp"), options.profile)
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"].split()[0]
    assert "IDP_USER" in yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]


def test_every_pod_has_the_storage_no_privileges_and_a_token(job: Any) -> None:
    claim = yaml.safe_load(STORAGE.read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(job):
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/storage"]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
        assert {"name": "IDP_STORAGE", "value": "/storage"} in container["env"]
        assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["capabilities"] == {
            "drop": ["ALL"]
        }
        assert container["resources"]["limits"] == container["resources"]["requests"]
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(group["minReplicas"] >= 1 for group in cluster["workerGroupSpecs"])


def test_pods_ask_for_no_gpu_as_long_as_the_image_has_torch_for_cpus(job: Any) -> None:
    settings = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    asked = {kind for pod in pods(job) for container in pod["containers"] for kind in container["resources"]["limits"]}
    assert ("nvidia.com/gpu" in asked) == (not settings["TORCH_INDEX"].endswith("/cpu"))
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    assert "`TORCH_INDEX=`" in page and 'nvidia.com/gpu: "1"' in page
    assert 'nvidia.com/gpu: "1"' in RAYJOB.read_text(), "its comment says where"
