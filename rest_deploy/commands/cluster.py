"""An engine on many machines: Ray Serve, Kubernetes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rest_deploy.console import show
from rest_deploy.options import (
    PATH,
    backend_option,
    batching_options,
    drain_option,
    json_option,
    provider_option,
    replica_options,
    selftest_option,
    service_options,
)


@click.command("ray-serve")
@click.argument("engine", type=PATH)
@service_options(any_port=False)
@replica_options(least=0, most=1, threads=1, gpus=click.FloatRange(0, 64))
@click.option("--ongoing", type=click.IntRange(1, 100_000), default=16, show_default=True,
              help="Requests of a replica at which another starts.")  # fmt: skip
@click.option("--waiting", type=click.IntRange(1, 1_000_000), default=256, show_default=True,
              help="Requests that wait for a replica; more get 503.")  # fmt: skip
@click.option("--ray-address", metavar="auto", help="Of a cluster. [default: a Ray started here]")
@click.option("--dry-run", is_flag=True, help="Print the config for `serve deploy`; start nothing.")
@backend_option
@provider_option
@selftest_option
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
@replica_options(least=1, most=3, threads=2, gpus=click.IntRange(0, 64))
@batching_options
@drain_option
@click.option(
    "--memory", default="1Gi", show_default=True, help="Of a replica: its request and its limit."
)
@click.option("--ray-version", default="", help="Of the image, with --flavour rayservice.")
@backend_option
@provider_option
@selftest_option
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
