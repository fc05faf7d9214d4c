"""What the tests run on: the first line of `make test`, printed by `python -m tests.here`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from rest_deploy.machine import BF16_UNITS, CAPS, Cpu, cpu, features_for, instruction_set


def here(of: Cpu | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """of: this machine's CPU where None. A variable that holds OpenVINO below it is named; ONNX
    Runtime knows none."""
    found = of or cpu()
    held = features_for("openvino", found, environ)
    openvino = _package("openvino", "OpenVINO")
    cap = next((f"{name}={environ[name]}" for name in CAPS if environ.get(name)), "")
    if held != found.features:
        openvino += f" held to {_units(held)} by {cap}"
    elif cap:
        openvino += f" ({cap} leaves all of it)"
    return (
        f"instruction set: {_units(found.features)}, {found.name}, {openvino}, "
        f"{_package('onnxruntime', 'ONNX Runtime')}"
    )


def _units(features: tuple[str, ...]) -> str:
    """ "AVX2 without VNNI, without bf16"."""
    bf16 = "with" if BF16_UNITS & set(features) else "without"
    return f"{instruction_set(features)}, {bf16} bf16"


def _package(name: str, shown: str) -> str:
    try:
        return f"{shown} {version(name)}"
    except PackageNotFoundError:
        return f"no {shown}"


if __name__ == "__main__":
    print(here())
