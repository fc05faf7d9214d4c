"""The commands as functions: the same names, the same defaults, the reports as frozen values.

Paths are strings or `pathlib.Path`. `workspace` is the folder of artifacts, $REST_DEPLOY_WORKSPACE
or ./build where it is left out; a `model` that is left out is its newest export. `progress` is
called with every finished step and its seconds. Errors are those of `rest_deploy.errors`; a
function that raises has left everything as it was.
"""

from rest_deploy.api.engines import build_engine, calibrate, deploy, quantize
from rest_deploy.api.measuring import benchmark
from rest_deploy.api.models import export, load_model, verify_model

__all__ = [
    "benchmark",
    "build_engine",
    "calibrate",
    "deploy",
    "export",
    "load_model",
    "quantize",
    "verify_model",
]
