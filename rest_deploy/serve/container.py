"""A folder to build an image from and to apply to a cluster: Dockerfile, engine, manifests."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rest_deploy import __version__
from rest_deploy.artifact import (
    Sidecar,
    data_path,
    read_sidecar,
    sha256_file,
    sidecar_path,
    staging,
    to_json,
)
from rest_deploy.contracts import Struct
from rest_deploy.errors import ArtifactError, InputError, OutputError
from rest_deploy.serve.kubernetes import Cluster, Flavour, documents, user_of
from rest_deploy.serve.settings import Settings
from rest_deploy.serve.yaml_text import to_documents

MARKER = "rest-deploy-k8s.json"
"""In a folder that was written here, and may be written again."""

HOME = "/srv/rest-deploy"
"""Where the engine is in the image."""

PYTHON_IMAGE = "python:3.11-slim"

NOT_RUN = (
    "Checked: that it is YAML, that its ports, probe paths and arguments are those of the service.",
    "Not checked: it was not applied to a cluster, and the image was not built.",
)


class Written(Struct, frozen=True):
    """`MARKER`, and the report: what is in a folder. files: below it."""

    folder: str
    flavour: Flavour
    engine: str
    engine_sha256: str
    image: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Order:
    """cluster: its settings name the engine's path in the image, see `engine_in_image`. base: the
    image to build on, "" for Python's or Ray's."""

    engine: Path
    cluster: Cluster
    flavour: Flavour
    base: str = ""


def engine_in_image(engine: Path) -> str:
    return f"{HOME}/{engine.name}"


def hand_over(order: Order, folder: Path) -> Written:
    """Write the folder whole, or not at all.

    Raises `ArtifactError` for an engine that is damaged or without a sidecar, `InputError` for a
    folder of other things and for an engine of TensorRT without a base image, `OutputError`.
    """
    sidecar = _checked(order.engine)
    if folder.exists() and not (folder / MARKER).is_file():
        if not folder.is_dir():
            raise InputError(f"{folder} is there already, and no folder")
        if any(folder.iterdir()):
            raise InputError(
                f"{folder} is there already, and holds other things", hint="another -o"
            )
    dockerfile = _dockerfile(order, sidecar)
    manifests = f"{_comment(order, sidecar)}{to_documents(documents(order.cluster, order.flavour))}"
    with staging(folder.parent) as staged:
        made = staged / "new"
        (made / "engine").mkdir(parents=True)
        for path in _files(order.engine):
            shutil.copyfile(path, made / "engine" / path.name)
        if sha256_file(made / "engine" / order.engine.name) != sidecar.sha256:
            raise ArtifactError(f"{order.engine} changed while it was copied", hint="again")
        (made / "Dockerfile").write_text(dockerfile, encoding="utf-8")
        (made / f"{order.flavour}.yaml").write_text(manifests, encoding="utf-8")
        files = sorted(p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file())
        written = Written(
            folder=str(folder), flavour=order.flavour, engine=order.engine.name,
            engine_sha256=sidecar.sha256, image=order.cluster.image, files=tuple(files),
        )  # fmt: skip
        (made / MARKER).write_text(to_json(written), encoding="utf-8")
        _replace(folder, made, staged / "old")
    return written


def _replace(folder: Path, made: Path, old: Path) -> None:
    """The new folder under the name of the old, which is kept until then."""
    if folder.exists():
        os.rename(folder, old)  # noqa: PTH104
    try:
        os.rename(made, folder)  # noqa: PTH104
    except OSError as error:
        if old.exists():
            os.rename(old, folder)  # noqa: PTH104
        raise OutputError(f"cannot write {folder}: {error.strerror}; it is as it was") from error


def _checked(engine: Path) -> Sidecar:
    if not engine.is_file():
        raise ArtifactError(f"no such engine: {engine}", hint="rest-deploy build-engine --int8")
    sidecar = read_sidecar(engine)
    if sidecar is None:
        raise ArtifactError(f"{engine} has no sidecar: nothing says what it is")
    return sidecar


def _files(engine: Path) -> list[Path]:
    found = (engine, sidecar_path(engine), data_path(engine))
    return [path for path in found if path.is_file()]


def _comment(order: Order, sidecar: Sidecar) -> str:
    cluster = order.cluster
    lines = [
        f"Written by rest-deploy {__version__} k8s --flavour {order.flavour}.",
        f"Engine: {order.engine.name}, sha256 {sidecar.sha256}.",
        *NOT_RUN,
        "The service authenticates nobody: leave it inside the cluster, or behind a gateway.",
        f"    docker build -t {cluster.image} . && docker push {cluster.image}",
        f"    kubectl apply -f {order.flavour}.yaml",
    ]
    return "".join(f"# {line}\n" for line in lines)


def _dockerfile(order: Order, sidecar: Sidecar) -> str:
    build, on_ray = sidecar.build, order.flavour == "rayservice"
    backend = order.cluster.settings.backend or (build.backend if build else "onnxruntime")
    if order.engine.suffix == ".engine" and not order.base:
        raise InputError(
            f"{order.engine.name} needs TensorRT {build.fit.version if build and build.fit else ''}"
            " and CUDA, which Python's image has not",
            hint="--base-image with an image that has both, and Python 3.11 or newer",
        )
    extras = ["serve", *(["ray"] if on_ray else [])]
    extras += [] if order.engine.suffix == ".engine" else [backend]
    ray = f"rayproject/ray:{order.cluster.ray}-py311"
    base = order.base or (ray if on_ray else PYTHON_IMAGE)
    lines = [
        f"# Written by rest-deploy {__version__} k8s --flavour {order.flavour}.",
        *(f"# {line}" for line in NOT_RUN),
        "#",
        "# The package is installed from its wheel, which belongs beside this file:",
        "#     python -m build --wheel --outdir . PATH_OF_THE_REPOSITORY",
        f"FROM {base}",
        *(["USER root"] if on_ray else []),
        "COPY *.whl /tmp/wheels/",
        "RUN python -m pip install --no-cache-dir "
        f'"$(ls /tmp/wheels/rest_deploy-*.whl)[{",".join(extras)}]" \\',
        "    && rm -r /tmp/wheels",
        f"COPY --chmod=555 engine/ {HOME}/",  # 4 alone would close the folder
        "ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1",
        f"USER {':'.join(map(str, user_of(order.flavour)))}",
    ]
    if not on_ray:
        lines += [
            f"EXPOSE {order.cluster.settings.port}",
            'ENTRYPOINT ["rest-deploy"]',
            f'CMD ["serve", "{engine_in_image(order.engine)}", "--host", "0.0.0.0", "--port", '
            f'"{order.cluster.settings.port}", "--no-loading"]',
        ]
    return "\n".join(lines) + "\n"


def settings_for(engine: Path, **options: object) -> Settings:
    """Of the service in the container."""
    return msgspec.convert({"engine": engine_in_image(engine), "loading": False, **options},
                           Settings)  # fmt: skip
