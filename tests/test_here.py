"""The first line of `make test`."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from rest_deploy.machine import Cpu
from tests.here import here

OLD = Cpu(name="old", features=("avx2", "fma"))
NEW = Cpu(name="new", features=("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16"))
VERSION = r"\d+\.\d+\.\d+"


@pytest.mark.parametrize(
    ("chip", "environ", "expected"),
    [
        (OLD, {}, "AVX2 without VNNI, without bf16, old, OpenVINO V, "),
        (NEW, {}, "AVX-512 with VNNI, with bf16, new, OpenVINO V, "),
        (
            NEW,
            {"ONEDNN_MAX_CPU_ISA": "AVX2"},
            "AVX-512 with VNNI, with bf16, new, OpenVINO V held to AVX2 without VNNI, without bf16 "
            "by ONEDNN_MAX_CPU_ISA=AVX2, ",
        ),
        (
            OLD,
            {"DNNL_MAX_CPU_ISA": "AVX512_CORE"},
            "AVX2 without VNNI, without bf16, old, OpenVINO V (DNNL_MAX_CPU_ISA=AVX512_CORE leaves "
            "all of it), ",
        ),
    ],
)
def test_what_it_says(chip: Cpu, environ: dict[str, str], expected: str) -> None:
    pytest.importorskip("openvino")
    said = here(chip, environ)
    assert re.sub(VERSION, "V", said) == f"instruction set: {expected}ONNX Runtime V"


def test_without_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert here(OLD, {}).endswith("old, no OpenVINO, no ONNX Runtime")


def test_it_is_printed() -> None:
    environ = os.environ | {"ONEDNN_MAX_CPU_ISA": "SSE41"}
    said = subprocess.run(
        [sys.executable, "-m", "tests.here"],
        capture_output=True,
        text=True,
        check=True,
        env=environ,
    ).stdout
    assert said == here(environ=environ) + "\n"
    assert "ONEDNN_MAX_CPU_ISA=SSE41" in said
