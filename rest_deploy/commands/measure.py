"""How fast, and why: what was measured and how it is shown."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from rest_deploy.console import Numbers, Percent, Sizes, counter, progress, show
from rest_deploy.options import PATH, json_option, threads_option, workspace_option


@click.command()
@click.argument("engines", type=PATH, nargs=-1)
@click.option("--sizes", type=Sizes(), default=(), help="Like 224,384x512. [default: the card's]")
@click.option("--batches", type=Numbers(), default=(1, 8), help="[default: 1,8]")
@click.option("--threads", type=Numbers(), default=(0,), help="Per operator. [default: all cores]")
@click.option("--in-flight", type=click.IntRange(1, 256), default=2, show_default=True,
              help="Requests at once where throughput is measured; 1: it is not.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True,
              help="At most, for each engine at each shape and mode.")  # fmt: skip
@click.option("--noise", type=Percent(), default=0.01, help="Target, to stop early. [default: 1%]")
@click.option("--images", type=click.IntRange(min=16), default=64, show_default=True,
              help="Real ones, for the accuracy.")  # fmt: skip
@click.option("--checkpoint", type=PATH, help="Where the exported weights are now.")
@click.option("--no-pytorch", is_flag=True, help="Leave PyTorch out.")
@click.option("--no-profile", is_flag=True, help="Do not time layers.")
@click.option("--no-cold-start", is_flag=True, help="Do not start fresh processes.")
@workspace_option
@json_option
def bench(engines: tuple[Path, ...], workspace: Path | None, as_json: bool, **options: Any) -> None:
    """How fast and how accurate are ENGINES (default: all of the workspace), and which to deploy?

    Compares them with PyTorch in interleaved rounds, explains where their time goes, and writes a
    record (JSON) and a page (HTML) into the workspace.
    """
    from rest_deploy import artifact, verbs
    from rest_deploy.report import bench as text
    from rest_deploy.report import page

    for part in ("pytorch", "profile", "cold_start"):
        options[part] = not options.pop(f"no_{part}")
    report = verbs.bench(
        engines,
        verbs.BenchWishes(**options),
        workspace=artifact.workspace(workspace),
        command=shlex.join(["rest-deploy", *sys.argv[1:]]),
        progress=progress(as_json),
        counter=counter(as_json),
    )
    target = verbs.page_path(Path(report.record_file), None)
    artifact.write_text(target, page.page(report.record))
    written = (report.record_file, str(target))
    show(report, as_json, lambda found: text.bench(found.record, written))


@click.command()
@click.argument("model", type=PATH)
@click.option("--size", type=Sizes(), help="Like 224 or 200x225. [default: 224]")
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True)
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "openvino"]),
    help="[default: the one MODEL was built for, else onnxruntime]",
)
@threads_option
@json_option
def profile(
    model: Path, size: tuple[tuple[int, int], ...] | None, as_json: bool, **options: Any
) -> None:
    """Where MODEL's time goes on this CPU: per stage and layer, against what the machine can do."""
    from rest_deploy import verbs
    from rest_deploy.report import profile as text

    sizes = size or ((224, 224),)
    if len(sizes) != 1:
        raise click.BadParameter("one size at a time", param_hint="--size")
    report = verbs.profile(model, size=sizes[0], progress=progress(as_json), **options)
    show(report, as_json, text.profile)


@click.command()
@click.argument("record", type=PATH)
@click.option("-o", "--output", type=PATH, help="Of the page. [default: RECORD with .html]")
@click.option("--markdown", is_flag=True, help="Print GitHub Markdown; a page only with -o.")
@json_option
def report(record: Path, output: Path | None, markdown: bool, as_json: bool) -> None:
    """Show a bench RECORD (.json): a table here, all of it as one HTML page."""
    from rest_deploy import artifact, verbs
    from rest_deploy.bench import store
    from rest_deploy.report import bench, page
    from rest_deploy.report import markdown as github

    if markdown and as_json:
        raise click.UsageError("--markdown and --json exclude each other")
    found = store.read(record)
    written = []
    if output or not (markdown or as_json):
        target = verbs.page_path(record, output)
        artifact.write_text(target, page.page(found))
        written.append(str(target))
    if markdown:
        click.echo(github.markdown(found), nl=False)
        return
    show(found, as_json, lambda value: bench.bench(value, written))


@click.command()
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@click.option("--fail-if-slower", "allowed", type=Percent(), metavar="5%",
              help="Exit 1 if any engine takes that much longer, with confidence.")  # fmt: skip
@click.option("--unlike-machines", is_flag=True, help="Compare although the machines differ.")
@json_option
def compare(before: Path, after: Path, as_json: bool, **options: Any) -> None:
    """What changed between two records of `bench`: ratios of times with their 95 % intervals."""
    from rest_deploy import verbs
    from rest_deploy.report import compare as text

    report = verbs.compare(before, after, **options)
    show(report, as_json, text.comparison)
    if report.regressed:
        sys.exit(1)
