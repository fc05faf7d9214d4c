"""Kubernetes objects for the service in a container: plain values, written as YAML elsewhere.

Three flavours: a Deployment with Service, autoscaler and disruption budget; KServe's
InferenceService; a RayService for KubeRay. All of them run as a user without rights on a read-only
file system, are ready when the engine is warm, and answer what they took before they end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from rest_deploy.errors import InputError
from rest_deploy.serve.ray_app import RaySettings, config
from rest_deploy.serve.settings import Settings
from rest_deploy.serve.yaml_text import to_yaml

Flavour = Literal["deployment", "kserve", "rayservice"]
Values = dict[str, Any]

LIVE, READY = "/v2/health/live", "/v2/health/ready"
USER = (10001, 10001)
"""User and group in the container; numbers below 10000 may be somebody on a node."""

RAY_USER = (1000, 100)
"""Those of Ray's images, whose Python is in that user's home."""

SETTLE = 5
"""Seconds between the signal to end and its delivery: until no balancer sends requests here."""

STARTING = 300
"""Seconds that opening and warming an engine may take."""

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kKMGT]i?)?")


@dataclass(frozen=True)
class Cluster:
    """What is wanted of the cluster. name: of the objects. image: with its tag. engine: its path in
    the image. memory: a Kubernetes quantity, of one replica. gpus: of one replica. settings: of
    the service in the container; its `threads` are the cores of one replica. ray: version of the
    image, with the flavour rayservice."""

    name: str
    image: str
    settings: Settings
    min_replicas: int = 1
    max_replicas: int = 3
    memory: str = "1Gi"
    gpus: int = 0
    ray: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(
                f"{self.name!r} is no name for Kubernetes; expected lower-case letters, digits and "
                "'-', 40 at most",
                hint="--name rest-service",
            )
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise InputError(
                f"{self.min_replicas} to {self.max_replicas} replicas; expected "
                "1 <= --min-replicas <= --max-replicas"
            )
        if not _QUANTITY.fullmatch(self.memory):
            raise InputError(f"{self.memory!r} is no quantity of memory; expected one like 1Gi")
        if not self.image or any(one.isspace() for one in self.image):
            raise InputError(f"{self.image!r} is no name of an image")

    @property
    def cores(self) -> int:
        return self.settings.threads or 1

    @property
    def labels(self) -> dict[str, str]:
        return {"app.kubernetes.io/name": self.name, "app.kubernetes.io/managed-by": "rest-deploy"}


def documents(cluster: Cluster, flavour: Flavour) -> list[Values]:
    """The objects of a flavour, in the order to apply them."""
    if flavour == "deployment":
        return [_deployment(cluster), _service(cluster), _autoscaler(cluster), _budget(cluster)]
    return [_kserve(cluster) if flavour == "kserve" else _rayservice(cluster)]


def arguments(settings: Settings) -> list[str]:
    """Of `rest-deploy`, in the container."""
    words = ["serve", settings.engine, "--host", "0.0.0.0", "--port", str(settings.port)]
    words += ["--name", settings.name] if settings.name else []
    words += [
        "--max-batch",
        str(settings.max_batch),
        "--max-delay-ms",
        f"{settings.max_delay_ms:g}",
    ]
    words += ["--drain-s", f"{settings.drain_s:g}", "--no-loading"]
    for option, value in (("--backend", settings.backend), ("--provider", settings.provider)):
        words += [option, value] if value else []
    words += [] if settings.selftest else ["--no-selftest"]
    is_engine = settings.engine.endswith(".engine")  # which has no threads
    return words if is_engine else [*words, "--threads", str(settings.threads or 1)]


def _meta(cluster: Cluster, **more: Any) -> Values:
    return {"name": cluster.name, "labels": cluster.labels, **more}


def _container(cluster: Cluster, name: str) -> Values:
    port = cluster.settings.port
    return {
        "name": name,
        "image": cluster.image,
        "command": ["rest-deploy"],
        "args": arguments(cluster.settings),
        "env": _environment(),
        "ports": [{"name": "http1", "containerPort": port, "protocol": "TCP"}],
        "startupProbe": _probe(READY, port, period=2, failures=STARTING // 2),
        "readinessProbe": _probe(READY, port, period=5, failures=2),
        "livenessProbe": _probe(LIVE, port, period=10, failures=6),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(SETTLE)]}}},
        "resources": _resources(cluster),
        "securityContext": _locked_down(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def _probe(path: str, port: int, *, period: int, failures: int) -> Values:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _environment() -> list[Values]:
    # The one place that can be written, for whatever looks for a home.
    return [{"name": "HOME", "value": "/tmp"}]


def _resources(cluster: Cluster) -> Values:
    wanted: Values = {"cpu": cluster.cores, "memory": cluster.memory}
    if cluster.gpus:
        wanted["nvidia.com/gpu"] = cluster.gpus
    return {"requests": dict(wanted), "limits": dict(wanted)}


def _locked_down() -> Values:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _pod(cluster: Cluster, container: str) -> Values:
    grace = int(cluster.settings.drain_s) + SETTLE + 5
    return {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": grace,
        "securityContext": _user(USER),
        "containers": [_container(cluster, container)],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
    }


def user_of(flavour: Flavour) -> tuple[int, int]:
    """Numbers of the user and the group that the image runs as."""
    return RAY_USER if flavour == "rayservice" else USER


def _user(numbers: tuple[int, int]) -> Values:
    user, group = numbers
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": group,
        "fsGroup": group,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _deployment(cluster: Cluster) -> Values:
    # No number of replicas: the autoscaler has it, and another apply would set it back.
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(cluster),
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": cluster.name}},
            "strategy": {"type": "RollingUpdate",
                         "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": cluster.labels}, "spec": _pod(cluster, "service")},
        },
    }  # fmt: skip


def _service(cluster: Cluster) -> Values:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(cluster),
        "spec": {
            "type": "ClusterIP",
            "selector": {"app.kubernetes.io/name": cluster.name},
            "ports": [{"name": "http", "port": 80, "targetPort": cluster.settings.port}],
        },
    }


def _autoscaler(cluster: Cluster) -> Values:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _meta(cluster),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": cluster.name},
            "minReplicas": cluster.min_replicas,
            "maxReplicas": cluster.max_replicas,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": 70},
                    },
                }
            ],
        },
    }


def _budget(cluster: Cluster) -> Values:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _meta(cluster),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": {"app.kubernetes.io/name": cluster.name}},
        },
    }


def _kserve(cluster: Cluster) -> Values:
    # Newer KServe calls this mode "Standard" and takes the older name for it.
    mode = {"serving.kserve.io/deploymentMode": "RawDeployment"}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": _meta(cluster, annotations=mode),
        "spec": {
            "predictor": {
                "minReplicas": cluster.min_replicas,
                "maxReplicas": cluster.max_replicas,
                "scaleMetric": "cpu",
                "scaleTarget": 70,
                **_pod(cluster, "kserve-container"),
            }
        },
    }


def _rayservice(cluster: Cluster) -> Values:
    if not cluster.ray:
        raise InputError(
            "a RayService needs to know the version of Ray in its image",
            hint="--ray-version 2.51.0, or whatever is in it",
        )
    ray = RaySettings(
        service=cluster.settings, min_replicas=cluster.min_replicas,
        max_replicas=cluster.max_replicas, gpus=float(cluster.gpus),
    )  # fmt: skip
    served = config(ray, cluster.name)
    served["http_options"]["host"] = "0.0.0.0"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": _meta(cluster),
        "spec": {
            "serveConfigV2": to_yaml(served),
            "rayClusterConfig": {
                "rayVersion": cluster.ray,
                "enableInTreeAutoscaling": True,
                "headGroupSpec": {
                    # No engine on the head: when it ends, so does the cluster.
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": _ray_pod(cluster, "ray-head", head=True),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "engines",
                        "replicas": cluster.min_replicas,
                        "minReplicas": cluster.min_replicas,
                        "maxReplicas": cluster.max_replicas,
                        "rayStartParams": {},
                        "template": _ray_pod(cluster, "ray-worker", head=False),
                    }
                ],
            },
        },
    }


def _ray_pod(cluster: Cluster, container: str, *, head: bool) -> Values:
    """KubeRay puts the command and the probes in; a worker has one replica of the engine."""
    port = cluster.settings.port
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001} if head else {}
    resources = {"cpu": 1, "memory": "2Gi"} if head else _resources(cluster)["limits"]
    return {
        "metadata": {"labels": cluster.labels},
        "spec": {
            "automountServiceAccountToken": head,  # its autoscaler asks the cluster for workers
            "terminationGracePeriodSeconds": int(cluster.settings.drain_s) + SETTLE + 5,
            "securityContext": _user(RAY_USER),
            "containers": [
                {
                    "name": container,
                    "image": cluster.image,
                    "env": _environment(),
                    "ports": [
                        {"name": name, "containerPort": number}
                        for name, number in {**ports, "serve": port}.items()
                    ],
                    "resources": {"requests": dict(resources), "limits": dict(resources)},
                    "securityContext": _locked_down(),
                    "volumeMounts": [
                        {"name": "tmp", "mountPath": "/tmp"},
                        {"name": "shm", "mountPath": "/dev/shm"},
                    ],
                }
            ],
            "volumes": [
                {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "512Mi"}},
            ],
        },
    }
