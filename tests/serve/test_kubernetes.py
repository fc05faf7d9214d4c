"""What is written for a cluster, held against the service it starts. No cluster is here."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml

from rest_deploy.cli import main
from rest_deploy.errors import ArtifactError, InputError
from rest_deploy.serve.container import (
    HOME,
    MARKER,
    Order,
    Written,
    engine_in_image,
    hand_over,
    settings_for,
)
from rest_deploy.serve.kubernetes import SETTLE, Cluster, Flavour
from rest_deploy.serve.ray_app import RaySettings
from tests.test_cli import done, refused, run, untouched

FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)
CLONE = Path(__file__).resolve().parents[2]


@pytest.fixture
def engine(trained_nano: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    shutil.copytree(trained_nano.parent, folder)
    return folder / trained_nano.name


def order(engine: Path, flavour: Flavour = "deployment", **changes: Any) -> Order:
    base = changes.pop("base", "")
    service = {"port": 8080, "threads": 2, **changes.pop("service", {})}
    wanted = {"name": "photos", "image": "registry.example/photos:1", "ray": "2.60.0", **changes}
    cluster = Cluster(settings=settings_for(engine, **service), **wanted)
    return Order(engine, cluster, flavour, base)


def objects(folder: Path, flavour: Flavour) -> dict[str, Any]:
    """kind -> object, as a cluster would read them."""
    found = yaml.safe_load_all((folder / f"{flavour}.yaml").read_text())
    return {one["kind"]: one for one in found}


def pods(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Every pod's specification in them."""
    if "Deployment" in found:
        return [found["Deployment"]["spec"]["template"]["spec"]]
    if "InferenceService" in found:
        return [found["InferenceService"]["spec"]["predictor"]]
    cluster = found["RayService"]["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


# --- of all flavours -----------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_pods_have_no_rights(engine: Path, tmp_path: Path, flavour: Flavour) -> None:
    hand_over(order(engine, flavour), tmp_path / "out")
    dockerfile = (tmp_path / "out" / "Dockerfile").read_text()
    for pod in pods(objects(tmp_path / "out", flavour)):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in dockerfile
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted["tmp"] == "/tmp"
        assert {volume["name"] for volume in pod["volumes"]} == set(mounted)
        assert all("emptyDir" in volume for volume in pod["volumes"])
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert {"cpu", "memory"} <= set(resources["limits"])
        # A pod is killed only after it has answered what it took.
        assert pod["terminationGracePeriodSeconds"] > 30 + SETTLE


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_files_say_what_was_not_run(engine: Path, tmp_path: Path, flavour: Flavour) -> None:
    hand_over(order(engine, flavour), tmp_path / "out")
    for name in ("Dockerfile", f"{flavour}.yaml"):
        text = (tmp_path / "out" / name).read_text()
        assert "# Not checked: it was not applied to a cluster, and the image was not built" in text


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_image_holds_the_engine(engine: Path, tmp_path: Path, flavour: Flavour) -> None:
    written = hand_over(order(engine, flavour), tmp_path / "out")
    copied = tmp_path / "out" / "engine" / engine.name
    assert copied.read_bytes() == engine.read_bytes()
    assert (copied.parent / f"{engine.name}.json").is_file()
    assert written.engine_sha256 in (tmp_path / "out" / f"{flavour}.yaml").read_text()
    dockerfile = (tmp_path / "out" / "Dockerfile").read_text()
    assert f"engine/ {HOME}/\n" in dockerfile
    manifest = (tmp_path / "out" / f"{flavour}.yaml").read_text()
    assert f"{HOME}/{engine.name}" in manifest
    found = msgspec.json.decode((tmp_path / "out" / MARKER).read_bytes(), type=Written)
    there = {path.relative_to(tmp_path / "out").as_posix()
             for path in (tmp_path / "out").rglob("*") if path.is_file()}  # fmt: skip
    assert set(found.files) == there - {MARKER}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_gpus_are_asked_for(engine: Path, tmp_path: Path, flavour: Flavour) -> None:
    for count in (0, 1):
        hand_over(order(engine, flavour, gpus=count), tmp_path / f"{count}")
        worker = pods(objects(tmp_path / f"{count}", flavour))[-1]
        limits = worker["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu", 0) == count


# --- the container is the service ----------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["deployment", "kserve"])
@pytest.mark.parametrize(
    "service",
    [{}, {"name": "m", "backend": "openvino", "max_batch": 4, "max_delay_ms": 0.5, "drain_s": 7.0}],
)
def test_arguments_are_those_of_serve(
    engine: Path, tmp_path: Path, flavour: Flavour, service: dict[str, Any]
) -> None:
    """Read by the command itself, they say what was wanted."""
    wanted = order(engine, flavour, service=service)
    hand_over(wanted, tmp_path / "out")
    (pod,) = pods(objects(tmp_path / "out", flavour))
    (container,) = pod["containers"]
    assert container["command"] == ["rest-deploy"]
    name, *arguments = container["args"]
    assert all(isinstance(word, str) for word in arguments)
    with main.commands[name].make_context(name, arguments) as context:
        given = context.params
    settings = wanted.cluster.settings
    assert str(given["engine"]) == engine_in_image(engine)
    assert (given["host"], given["port"], given["loading"]) == ("0.0.0.0", 8080, False)
    for field in ("name", "backend", "max_batch", "max_delay_ms", "drain_s", "threads"):
        assert given[field] == getattr(settings, field)
    assert [port["containerPort"] for port in container["ports"]] == [8080]


def check_probes(container: dict[str, Any], routes: set[str]) -> None:
    (port,) = (found["containerPort"] for found in container["ports"])
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[name]["httpGet"]
        assert asked["port"] == port
        assert asked["path"] in routes, name
    assert container["readinessProbe"]["httpGet"]["path"].endswith("ready")
    assert container["livenessProbe"]["httpGet"]["path"].endswith("live")


@pytest.fixture(scope="module")
def routes() -> set[str]:
    """Paths the service answers."""
    pytest.importorskip("starlette")
    from rest_deploy.serve import openapi

    return set(openapi.document()["paths"])


@pytest.mark.parametrize("flavour", ["deployment", "kserve"])
def test_probes_are_routes_of_the_service(
    engine: Path, tmp_path: Path, flavour: Flavour, routes: set[str]
) -> None:
    hand_over(order(engine, flavour), tmp_path / "out")
    (pod,) = pods(objects(tmp_path / "out", flavour))
    (container,) = pod["containers"]
    check_probes(container, routes)
    for name, value in (("path", "/health"), ("port", 80)):
        wrong = json.loads(json.dumps(container))
        wrong["readinessProbe"]["httpGet"][name] = value
        with pytest.raises(AssertionError):
            check_probes(wrong, routes)


def test_the_container_runs_and_ends(engine: Path, tmp_path: Path) -> None:
    """Its own command line, with the engine where it is here: ready, alive, and a clean end."""
    pytest.importorskip("uvicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hand_over(order(engine, service={"port": port, "threads": 1}), tmp_path / "out")
    (pod,) = pods(objects(tmp_path / "out", "deployment"))
    (container,) = pod["containers"]
    words = [word.replace(HOME, str(tmp_path / "out" / "engine")) for word in container["args"]]
    code = "import sys; from rest_deploy.cli import main; main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            path = container[name]["httpGet"]["path"]
            status = 0
            while status != 200:
                assert process.poll() is None
                assert time.monotonic() < deadline
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as found:
                        status = found.status
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=pod["terminationGracePeriodSeconds"])
        assert process.returncode == 0, said
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


# --- single flavours -----------------------------------------------------------------------------


def test_deployment(engine: Path, tmp_path: Path) -> None:
    hand_over(order(engine, min_replicas=2, max_replicas=5), tmp_path / "out")
    found = objects(tmp_path / "out", "deployment")
    assert set(found) == {
        *("Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget")
    }
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    (port,) = found["Service"]["spec"]["ports"]
    (container,) = pods(found)[0]["containers"]
    assert port["targetPort"] == container["ports"][0]["containerPort"]
    scaler = found["HorizontalPodAutoscaler"]["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 5)
    target = found["Deployment"]
    assert scaler["scaleTargetRef"] == {
        "apiVersion": target["apiVersion"], "kind": "Deployment",
        "name": target["metadata"]["name"],
    }  # fmt: skip
    assert "replicas" not in target["spec"]


def test_kserve(engine: Path, tmp_path: Path) -> None:
    hand_over(order(engine, "kserve", max_replicas=4), tmp_path / "out")
    found = objects(tmp_path / "out", "kserve")
    assert set(found) == {"InferenceService"}
    service = found["InferenceService"]
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    predictor = service["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (1, 4)
    assert predictor["containers"][0]["name"] == "kserve-container"


def test_rayservice(engine: Path, tmp_path: Path) -> None:
    hand_over(order(engine, "rayservice", min_replicas=2, max_replicas=4), tmp_path / "out")
    found = objects(tmp_path / "out", "rayservice")["RayService"]["spec"]
    served = yaml.safe_load(found["serveConfigV2"])
    (application,) = served["applications"]
    settings = msgspec.convert(application["args"], RaySettings)
    assert settings.service.engine == engine_in_image(engine)
    assert (settings.min_replicas, settings.max_replicas) == (2, 4)
    (group,) = found["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 4)
    actor = application["deployments"][0]["ray_actor_options"]
    worker = group["template"]["spec"]["containers"][0]
    assert actor["num_cpus"] <= worker["resources"]["limits"]["cpu"]
    head = found["rayClusterConfig"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    for pod in pods(objects(tmp_path / "out", "rayservice")):
        ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
        assert ports["serve"] == served["http_options"]["port"]
    assert found["rayClusterConfig"]["rayVersion"] == "2.60.0"
    dockerfile = (tmp_path / "out" / "Dockerfile").read_text()
    assert "FROM rayproject/ray:2.60.0-py311\n" in dockerfile
    assert "[serve,ray,onnxruntime]" in dockerfile


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Photos_1"}, "'Photos_1' is no name for Kubernetes"),
        ({"name": "x" * 41}, "40 at most"),
        ({"min_replicas": 4, "max_replicas": 3}, "4 to 3 replicas"),
        ({"memory": "lots"}, "'lots' is no quantity"),
        ({"memory": "1Gi\nevil: true"}, "is no quantity"),
        ({"image": "a b"}, "is no name of an image"),
        ({"ray": "", "flavour": "rayservice"}, "the version of Ray"),
    ],
)
def test_wishes_that_do_not_fit(
    engine: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        hand_over(order(engine, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_engine_leaves_what_was_there(engine: Path, tmp_path: Path) -> None:
    hand_over(order(engine), tmp_path / "out")
    with engine.open("ab") as stream:
        stream.write(b"!")
    with untouched(tmp_path / "out"), pytest.raises(ArtifactError):
        hand_over(order(engine), tmp_path / "out")


def test_written_again_over_itself_alone(engine: Path, tmp_path: Path) -> None:
    hand_over(order(engine, "kserve"), tmp_path / "out")
    hand_over(order(engine), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("Dockerfile", "deployment.yaml", "engine", MARKER)
    ]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with untouched(tmp_path / "mine"), pytest.raises(InputError, match="holds other things"):
        hand_over(order(engine), tmp_path / "mine")


def test_an_engine_of_tensorrt_needs_an_image(engine: Path, tmp_path: Path) -> None:
    plan = engine.with_suffix(".engine")
    sidecar = json.loads(engine.with_name(f"{engine.name}.json").read_text())
    plan.write_bytes(engine.read_bytes())
    plan.with_name(f"{plan.name}.json").write_text(json.dumps({**sidecar, "file": plan.name}))
    with pytest.raises(InputError, match="needs TensorRT"):
        hand_over(order(plan, gpus=1), tmp_path / "out")
    hand_over(order(plan, gpus=1, base="registry.example/tensorrt:11"), tmp_path / "out")
    text = (tmp_path / "out" / "Dockerfile").read_text()
    assert "FROM registry.example/tensorrt:11\n" in text
    assert "[serve]" in text
    (container,) = pods(objects(tmp_path / "out", "deployment"))[0]["containers"]
    assert "--threads" not in container["args"]


def test_command(engine: Path, tmp_path: Path) -> None:
    words = ("k8s", engine, "-o", tmp_path / "out", "--image", "registry.example/photos:1")
    text = done(*words, "--memory", "2Gi", "--threads", 4)
    assert "rest_nano.onnx as deployment, image registry.example/photos:1" in text
    assert "Not checked: it was not applied to a cluster" in text
    (container,) = pods(objects(tmp_path / "out", "deployment"))[0]["containers"]
    assert container["resources"]["limits"] == {"cpu": 4, "memory": "2Gi"}
    found = json.loads(done(*words, "--json"))
    assert found["flavour"] == "deployment"
    refused(run(*words, "--name", "Photos"), 3, "'Photos' is no name for Kubernetes")
    missing = tmp_path / "no.onnx"
    refused(run("k8s", missing, "-o", tmp_path / "new", "--image", "x"), 3, "no such engine")
