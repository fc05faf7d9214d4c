"""Many images: from folders, lists and Parquet to Parquet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rest_deploy.console import Percent, Sizes, counter, show
from rest_deploy.options import (
    PATH,
    backend_option,
    json_option,
    provider_option,
    selftest_option,
    threads_option,
    workspace_option,
)


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("-o", "--output", type=PATH, required=True, metavar="OUT.parquet",
              help="Answers. Images without one: OUT.bad.parquet.")  # fmt: skip
@click.option("--engine", type=PATH, help="[default: the newest export of the workspace]")
@click.option("--only", type=click.Choice(["labels", "embeddings"]),
              help="Of an engine that gives both. [default: both]")  # fmt: skip
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True,
              help="Classes of each image.")  # fmt: skip
@click.option("--logits", is_flag=True, help="Keep the logits of all classes too.")
@click.option("--batch", type=click.IntRange(1, 4096), default=32, show_default=True)
@click.option("--size", type=Sizes(), help="Like 224 or 200x225. [default: the card's]")
@click.option("--column", help="Of Parquet: with bytes or paths. [default: the one with bytes]")
@click.option("--id-column", help="Of Parquet. [default: the paths, else FILE:ROW]")
@click.option("--workers", type=click.IntRange(1, 1024),
              help="Threads that decode. [default: one a core]")  # fmt: skip
@click.option("--shard", type=click.IntRange(min=1),
              help="Images a kill may cost, a multiple of --batch. [default: 2048]")  # fmt: skip
@click.option("--parts", "keep_parts", is_flag=True, help="OUT is a folder with a file a shard.")
@click.option("--max-bad", type=Percent(), metavar="1%",
              help="Exit 1 when more images than that had no answer.")  # fmt: skip
@click.option("--ray", is_flag=True, help="Compute the shards with Ray Data; needs --threads.")
@click.option("--ray-address", metavar="auto", help="Of a cluster. [default: a Ray started here]")
@click.option("--replicas", type=click.IntRange(min=1), help="With --ray. [default: what fits]")
@backend_option
@provider_option
@threads_option
@selftest_option
@workspace_option
@json_option
def embed(
    sources: tuple[str, ...],
    output: Path,
    engine: Path | None,
    size: tuple[tuple[int, int], ...] | None,
    only: Any,
    workspace: Path | None,
    as_json: bool,
    ray: bool,
    ray_address: str | None,
    replicas: int | None,
    **options: Any,
) -> None:
    """Labels, embeddings or both of all images of SOURCE... in a Parquet file.

    SOURCE: a folder (recursive), a list (.txt) of paths or URIs, a .parquet, an image, or a URI of
    these (s3://, gs://, file://). A run that was stopped goes on where it was.
    """
    from rest_deploy import artifact
    from rest_deploy.embed.run import Wishes
    from rest_deploy.embed.run import embed as run
    from rest_deploy.report.embed import embedded

    sizes = size or (None,)
    if len(sizes) != 1:
        raise click.BadParameter("one size at a time", param_hint="--size")
    compute = None
    if ray:
        from rest_deploy.embed.ray_data import on_ray
        from rest_deploy.errors import require

        require("ray", "ray")
        compute = on_ray(ray_address, replicas)
    elif ray_address or replicas:
        raise click.UsageError("--ray-address and --replicas go with --ray")
    count = counter(as_json)

    def watch(done: int, total: int, bad: int) -> None:
        count("embed", done, total, f"images ({bad} bad)" if bad else "images")

    report = run(
        sources,
        output,
        engine or artifact.newest(artifact.workspace(workspace), ".onnx"),
        Wishes(size=sizes[0], only=only or "", **options),
        watch=watch,
        compute=compute,
    )
    show(report, as_json, embedded)
    if report.too_many_bad:
        sys.exit(1)
