"""An engine on many machines: Ray Serve, Kubernetes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rest_deploy.console import show
from rest_deploy.options import PATH, backend_option, json_option, provider_option


@click.command("ray-serve")
@click.argument("engine", type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: every interface.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--name", default="", help="Of the model in URLs. [default: the card's]")
@click.option("--max-batch", type=click.IntRange(1, 1024), default=8, show_default=True,
              help="Images of one engine call.")  # fmt: skip
@click.option("--max-delay-ms", type=click.FloatRange(0, 1000), default=2.0, show_default=True,
              help="That a batch waits for callers seen lately.")  # fmt: skip
@click.option("--deadline-ms", type=click.FloatRange(1, 3_600_000), default=10_000.0,
              show_default=True, help="From the body's end to the answer; then 504.")  # fmt: skip
@click.option("--min-replicas", type=click.IntRange(0, 10_000), default=1, show_default=True,
              help="0: none while nobody asks.")  # fmt: skip
@click.option("--max-replicas", type=click.IntRange(1, 10_000), default=1, show_default=True)
@click.option("--ongoing", type=click.IntRange(1, 100_000), default=16, show_default=True,
              help="Requests of a replica at which another starts.")  # fmt: skip
@click.option("--waiting", type=click.IntRange(1, 1_000_000), default=256, show_default=True,
              help="Requests that wait for a replica; more get 503.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True,
              help="Cores of a replica.")  # fmt: skip
@click.option("--gpus", type=click.FloatRange(0, 64), default=0.0, help="Of a replica.")
@click.option("--ray-address", metavar="auto", help="Of a cluster. [default: a Ray started here]")
@click.option("--dry-run", is_flag=True, help="Print the config for `serve deploy`; start nothing.")
@backend_option
@provider_option
def ray_serve(engine: Path, dry_run: bool, ray_address: str | None, **options: Any) -> None:
    """Serve ENGINE with Ray Serve: the routes of `serve`, replicas by load."""
    from rest_deploy.artifact import read_sidecar
    from rest_deploy.errors import ArtifactError
    from rest_deploy.serve.ray_app import RaySettings, config, engine_path, run
    from rest_deploy.serve.settings import Settings
    from rest_deploy.serve.yaml_text import to_yaml

    sidecar = read_sidecar(engine) if engine.is_file() else None
    if sidecar is None:
        raise ArtifactError(f"{engine} is not there, or has no sidecar that says what it is",
                            hint="rest-deploy build-engine --int8")  # fmt: skip
    names = ("min_replicas", "max_replicas", "ongoing", "waiting", "gpus")
    of_ray = {name: options.pop(name) for name in names}
    settings = RaySettings(
        service=Settings(engine=engine_path(engine), loading=False, **options),
        most_ongoing=2 * of_ray["ongoing"],
        **of_ray,
    )
    name = options["name"] or sidecar.metadata.card.name
    if dry_run:
        click.echo(to_yaml(config(settings, name)), nl=False)
        return
    sys.exit(run(settings, name, ray_address))


@click.command()
@click.argument("engine", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="DIR")
@click.option("--flavour", type=click.Choice(["deployment", "kserve", "rayservice"]),
              default="deployment", show_default=True)  # fmt: skip
@click.option("--image", required=True, help="That will be built and pushed, with its tag.")
@click.option("--base-image", default="", help="To build on. [default: Python's, or Ray's]")
@click.option("--name", default="", help="Of the objects. [default: the card's]")
@click.option("--port", type=click.IntRange(1024, 65535), default=8080, show_default=True)
@click.option("--min-replicas", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--max-replicas", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1, 1024), default=2, show_default=True,
              help="Cores of a replica: its request and its limit.")  # fmt: skip
@click.option("--memory", default="1Gi", show_default=True, help="Of a replica, likewise.")
@click.option("--gpus", type=click.IntRange(0, 64), default=0, help="Of a replica.")
@click.option("--max-batch", type=click.IntRange(1, 1024), default=8, show_default=True)
@click.option("--max-delay-ms", type=click.FloatRange(0, 1000), default=2.0, show_default=True)
@click.option("--drain-s", type=click.FloatRange(1, 3600), default=30.0, show_default=True,
              help="That a pod which ends waits for requests it took.")  # fmt: skip
@click.option("--ray-version", default="", help="Of the image, with --flavour rayservice.")
@backend_option
@provider_option
@json_option
def k8s(
    engine: Path,
    output: Path,
    flavour: Any,
    image: str,
    base_image: str,
    name: str,
    ray_version: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Write a Dockerfile and manifests for Kubernetes that serve ENGINE. Runs nothing."""
    from rest_deploy.artifact import read_sidecar
    from rest_deploy.report.cluster import handed_over
    from rest_deploy.serve.container import Order, hand_over, settings_for
    from rest_deploy.serve.kubernetes import Cluster

    of_cluster = {key: options.pop(key)
                  for key in ("min_replicas", "max_replicas", "memory", "gpus")}  # fmt: skip
    sidecar = read_sidecar(engine) if engine.is_file() else None
    if not name and sidecar is not None:
        name = sidecar.metadata.card.name.replace("_", "-").replace(".", "-")
    cluster = Cluster(
        name=name or "rest", image=image, settings=settings_for(engine, **options),
        ray=ray_version, **of_cluster,
    )  # fmt: skip
    order = Order(engine=engine, cluster=cluster, flavour=flavour, base=base_image)
    show(hand_over(order, output), as_json, handed_over)
