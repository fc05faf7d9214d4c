"""The command line: every command parses, calls one function and prints one report."""

from __future__ import annotations

import click

from rest_deploy import __version__
from rest_deploy.commands import build, bulk, cluster, look, measure, serve, triton
from rest_deploy.console import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rest-deploy")
def main() -> None:
    """Deploy ResT image-recognition models: export, quantize, build, verify, predict.

    A usual start: rest-deploy export --variant lite; rest-deploy build-engine --int8.
    """


for command in (
    *(build.export, build.calibrate, build.sensitivity, build.quantize, build.build_engine),
    *(build.deploy, build.refit),
    *(look.verify, look.predict, look.variants, look.inspect, look.lint),
    *(look.selftest, look.doctor),
    *(measure.bench, measure.compare, measure.profile, measure.report),
    serve.serve,
    *(bulk.embed, cluster.ray_serve, cluster.k8s),
    *(triton.triton_repo, triton.triton_check),
):
    main.add_command(command)


if __name__ == "__main__":
    main()
