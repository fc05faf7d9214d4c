"""Records with made-up times."""

from __future__ import annotations

from typing import Any

import numpy as np

from rest_deploy.bench.record import EngineResult, Environment, Measurement, Mode, Record
from rest_deploy.bench.statistics import noise, spread

MACHINE = Environment(
    cpu="AMD EPYC 9354 (25/17/1)", cores=2, features=("avx2", "avx512f"), memory_bytes=8 << 30,
    system="Linux 6.1 x86_64", python="3.11.9", gpus=(), packages={"onnxruntime": "1.32.0"},
)  # fmt: skip


def measurement(
    median: float, *, seed: int = 0, count: int = 200, sigma: float = 0.03,
    batch: int = 1, mode: Mode = "isolated", in_flight: int = 1,
) -> Measurement:  # fmt: skip
    generator = np.random.default_rng(seed)
    samples = tuple(float(v) for v in median * np.exp(generator.normal(0, sigma, count)))
    return Measurement(
        batch=batch, height=224, width=224, mode=mode, threads=0, in_flight=in_flight,
        host=spread(samples), samples=samples, images_per_second=batch * 1e3 / median,
        noise=noise(samples), stopped_by="made up",
    )  # fmt: skip


def engine(label: str, *measurements: Measurement, failed: str = "") -> EngineResult:
    return EngineResult(
        label=label, backend="onnxruntime", precision="fp32", measurements=measurements,
        failed=failed,
    )  # fmt: skip


def record(*engines: EngineResult, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "schema": 1, "created": "2026-11-25T17:12:03Z", "command": "rest-deploy bench",
        "version": "0.0", "model": "rest_nano", "model_sha256": "ab" * 32, "environment": MACHINE,
        "engines": engines,
    }  # fmt: skip
    return Record(**(fields | changes))
