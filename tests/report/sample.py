"""A bench record as a run would leave it, made from a seed: nothing in it was measured.

python -m tests.report.sample > sample.json
"""

from __future__ import annotations

import hashlib
import random

import numpy as np

from rest_deploy.artifact import to_json
from rest_deploy.bench.record import (
    Accuracy,
    BlockTime,
    Ceilings,
    EngineResult,
    Environment,
    Growth,
    Measurement,
    Mode,
    NormError,
    NormErrors,
    PlaceError,
    Ratio,
    Record,
    Sensitivity,
    Spread,
    Start,
    Verdict,
)

SHAPES = ((1, 224), (8, 224), (1, 448), (8, 448))
"""(batch, side)."""

LATENCY = {
    "pytorch fp32": (38.0, 8.1, 1.06),
    "onnxruntime fp32": (21.5, 6.4, 1.00),
    "onnxruntime int8": (14.2, 5.3, 1.04),
    "openvino fp32": (20.3, 6.2, 0.99),
    "openvino int8": (9.4, 4.4, 0.96),
}
"""ms at 1x3x224x224, how much faster a batch of 8 is than 8 images one by one x 6, growth with
size beyond the number of pixels."""

ACCURACY = {
    "pytorch fp32": (4.1e-7, 1.0, 2.1e-13),
    "onnxruntime fp32": (2.1e-7, 1.0, 5.9e-14),
    "onnxruntime int8": (2.4e-3, 1.0, 4.8e-6),
    "openvino fp32": (2.6e-7, 1.0, 6.8e-14),
    "openvino int8": (7.5e-3, 0.996, 3.1e-5),
}

COMMAND = "rest-deploy bench build/rest_lite.onnx --batches 1,8 --sizes 224,448"

BLOCKS = {
    "stem": {"conv": 0.11, "other": 0.015},
    "stage1.0": {"gemm": 0.075, "attention": 0.055, "norm": 0.012, "conv": 0.008, "other": 0.008},
    "stage1.1": {"gemm": 0.074, "attention": 0.054, "norm": 0.012, "conv": 0.008, "other": 0.008},
    "patch2": {"conv": 0.041, "other": 0.006},
    "stage2.0": {"gemm": 0.062, "attention": 0.038, "norm": 0.009, "conv": 0.006, "other": 0.005},
    "stage2.1": {"gemm": 0.061, "attention": 0.037, "norm": 0.009, "conv": 0.006, "other": 0.005},
    "patch3": {"conv": 0.037, "other": 0.003},
    "stage3.0": {"gemm": 0.058, "attention": 0.019, "norm": 0.005, "conv": 0.003, "other": 0.003},
    "stage3.1": {"gemm": 0.057, "attention": 0.019, "norm": 0.005, "conv": 0.003, "other": 0.003},
    "patch4": {"conv": 0.034, "other": 0.002},
    "stage4.0": {"gemm": 0.052, "attention": 0.006, "norm": 0.002, "other": 0.001},
    "stage4.1": {"gemm": 0.051, "attention": 0.006, "norm": 0.002, "other": 0.001},
    "head": {"gemm": 0.003, "other": 0.001},
}
"""Of a run's time."""

PLACES = {
    "stem.conv2": {"stem": 2.9e-3},
    "stem.conv3": {"stem": 4.1e-3},
    "stage1.0": {"qkv": 4.2e-4, "proj": 9.1e-4, "mlp": 5.2e-4},
    "stage1.1": {"qkv": 3.1e-4, "proj": 6.3e-4, "mlp": 4.7e-4},
    "patch_embed_2": {"patch": 2.4e-3},
    "stage2.0": {"qkv": 6.2e-4, "proj": 8.8e-4, "mlp": 3.9e-4},
    "stage2.1": {"qkv": 2.8e-4, "proj": 5.4e-4, "mlp": 3.6e-4},
    "patch_embed_3": {"patch": 2.1e-3},
    "stage3.0": {"qkv": 3.3e-4, "proj": 4.9e-4, "mlp": 4.4e-4},
    "stage3.1": {"qkv": 2.2e-4, "proj": 4.1e-4, "mlp": 3.8e-4},
    "patch_embed_4": {"patch": 1.9e-3},
    "stage4.0": {"qkv": 1.6e-4, "proj": 2.3e-4, "mlp": 2.7e-4},
    "stage4.1": {"qkv": 9.4e-5, "proj": 1.4e-4, "mlp": 3.5e-4},
    "head": {"head": 2.3e-3},
}

NORM = {
    "folded": (5.2e-7, 2.3e-7, 2.2e-7, 2.1e-7),
    "decomposed": (7.8e-6, 1.8e-5, 8.7e-5, 1.2e-1),
    "native": (1.3e-5, 1.5e-5, 8.9e-5, 1.2e-1),
    "stock": (1.2e-5, 1.2e-5, 1.1e-4, 1.1e-1),
}


def spread(samples: list[float]) -> Spread:
    values = np.asarray(samples)
    p90, p95, p99 = (float(np.percentile(values, q)) for q in (90, 95, 99))
    return Spread(
        n=len(samples),
        min=float(values.min()),
        max=float(values.max()),
        mean=float(values.mean()),
        median=float(np.median(values)),
        p90=p90,
        p95=p95,
        p99=p99,
        cov=float(values.std() / values.mean()),
    )


def median_ms(label: str, batch: int, side: int) -> float:
    base, gain, growth = LATENCY[label]
    batched = 1 if batch == 1 else 8 * 5 / (gain + 1)
    return float(base * batched * (side / 224) ** (2 * growth))


def measurement(
    label: str, batch: int, side: int, mode: Mode, in_flight: int, warnings: tuple[str, ...] = ()
) -> Measurement:
    noise = random.Random(f"{label} {batch} {side} {mode} {in_flight}")
    middle = median_ms(label, batch, side)
    if mode == "end-to-end":
        middle += 2.9 * batch * (side / 224) ** 1.4
    if mode == "saturated":
        middle *= in_flight / (1 + 0.38 * (1 - 0.55 ** (in_flight - 1)))
    n = round(min(420, max(46, 9000 / middle)))
    samples = []
    for _ in range(n):
        value = middle * (0.985 + noise.gammavariate(2.0, 0.0085))
        if noise.random() < 0.025:
            value *= 1 + noise.expovariate(5.0)
        samples.append(round(value, 4))
    host = spread(samples)
    half = 1.57 * (host.p90 - host.min) / n**0.5
    return Measurement(
        batch=batch,
        height=side,
        width=side,
        mode=mode,
        threads=0,
        in_flight=in_flight,
        host=host,
        samples=tuple(samples),
        images_per_second=batch * in_flight * 1e3 / host.mean,
        noise=half / host.median,
        stopped_by="the interval is within 1 % of the median" if n > 90 else "20 s had passed",
        outliers=sum(sample > 1.12 * host.median for sample in samples),
        warnings=warnings,
    )


def measurements(label: str) -> tuple[Measurement, ...]:
    found = []
    for batch, side in SHAPES:
        crowded = label == "openvino int8" and (batch, side) == (8, 448)
        warned = ("the clock fell by 9 % during the run",) if crowded else ()
        found.append(measurement(label, batch, side, "isolated", 1, warned))
        if label != "pytorch fp32":
            found += [measurement(label, batch, side, "saturated", k) for k in (1, 2, 4, 8)]
        if batch == 1:
            found.append(measurement(label, batch, side, "end-to-end", 1))
    return tuple(found)


def block_times(label: str) -> tuple[BlockTime, ...]:
    whole = median_ms(label, 8, 224)
    int8 = label.endswith("int8")
    weights = {
        (block, kind): part * ({"gemm": 0.52, "conv": 0.62, "attention": 1.5}.get(kind, 1.25)
                               if int8 else 1.0)
        for block, kinds in BLOCKS.items()
        for kind, part in kinds.items()
    }  # fmt: skip
    total = sum(weights.values())
    reached = {"gemm": 0.74, "conv": 0.51, "attention": 0.33, "norm": 0.4, "other": 0.28}
    peak = 610.0 if int8 else 182.0
    found = []
    for (block, kind), weight in weights.items():
        noise = random.Random(f"{label} {block} {kind}")
        ms = round(whole * weight / total, 4)
        floor = round(ms * reached[kind] * noise.uniform(0.75, 1.15), 4)
        compute = kind in ("gemm", "conv")
        flops = floor * peak * 1e6 * (1.0 if compute else 0.12)
        moved = floor * 19e6 * (noise.uniform(0.15, 0.6) if compute else 1.0)
        found.append(
            BlockTime(
                block=block,
                kind=kind,
                ms=ms,
                flops=round(flops),
                bytes=round(moved),
                floor_ms=floor,
            )
        )
    return tuple(found)


def engine(label: str) -> EngineResult:
    backend, precision = label.split()
    error, agreement, kl = ACCURACY[label]
    torch = backend == "pytorch"
    suffix = ".int8" if precision == "int8" else ""
    file = "" if torch else f"build/rest_lite{suffix}.{backend}.onnx"
    load = {"pytorch": 412.0, "onnxruntime": 96.0, "openvino": 318.0}[backend]
    imports = {"pytorch": 1904.0, "onnxruntime": 121.0, "openvino": 148.0}[backend]
    first = 1.8 * median_ms(label, 1, 224)
    peak = {"pytorch": 612, "onnxruntime": 208, "openvino": 296}[backend] * 1_000_000
    return EngineResult(
        label=label,
        backend=backend,
        precision=precision,
        file=file,
        sha256="" if torch else hashlib.sha256(label.encode()).hexdigest(),
        size_bytes=0 if torch else 11_900_000 if precision == "int8" else 42_300_000,
        accuracy=Accuracy(images=512, relative_error=error, agreement=agreement, kl=kl),
        measurements=measurements(label),
        blocks=() if torch else block_times(label),
        blocks_shape="" if torch else "8x3x224x224",
        start=Start(
            import_ms=imports,
            load_ms=load,
            first_ms=first,
            total_ms=imports + load + first,
            peak_bytes=peak,
        ),
        peak_bytes=peak + 90_000_000,
    )


def growth() -> tuple[Growth, ...]:
    return tuple(
        Growth(
            engine=label,
            small="1x3x224x224",
            large=f"{batch}x3x{side}x{side}",
            measured=median_ms(label, batch, side) / median_ms(label, 1, 224),
            flops=batch * (side / 224) ** 2.2,
            bytes=batch**0.9 * (side / 224) ** 2,
        )
        for label in LATENCY
        for batch, side in SHAPES[1:]
    )


def ratios() -> tuple[Ratio, ...]:
    base = "pytorch fp32"
    found = []
    for batch, side in SHAPES:
        for label in LATENCY:
            if label == base:
                continue
            ratio = median_ms(base, batch, side) / median_ms(label, batch, side)
            half = random.Random(f"{label}{batch}{side}").uniform(0.008, 0.05) * ratio
            low, high = ratio - half, ratio + 1.2 * half
            verdict: Verdict = "faster" if low > 1.02 else "slower" if high < 0.98 else "ambiguous"
            found.append(
                Ratio(
                    base=base,
                    other=label,
                    shape=f"{batch}x3x{side}x{side}",
                    mode="isolated",
                    ratio=ratio,
                    low=low,
                    high=high,
                    verdict=verdict,
                )
            )
    return tuple(found)


def environment() -> Environment:
    return Environment(
        cpu="Example CPU @ 2.1 GHz (made up)",
        cores=8,
        features=("avx2", "avx512f", "avx512_vnni"),
        memory_bytes=33_600_000_000,
        system="Linux 6.8.0 x86_64, glibc 2.36",
        python="3.11.9",
        gpus=(),
        packages={
            "torch": "2.13.0+cpu", "onnxruntime": "1.32.0", "openvino": "2026.4.1",
            "numpy": "2.4.1", "rest-deploy": "0.1.0",
        },
        governor="performance",
        load=0.21,
    )  # fmt: skip


def record() -> Record:
    """The sample."""
    total = sum(len(roles) for roles in PLACES.values())
    failed = EngineResult(
        label="tensorrt fp16",
        backend="tensorrt",
        precision="fp16",
        failed="no GPU is here to run its engines (libcuda.so.1 is not installed); "
        "rest-deploy doctor says what is missing",
    )
    return Record(
        schema=1,
        created="2026-11-25T16:40:12Z",
        command=COMMAND,
        version="0.1.0",
        model="rest_lite",
        model_sha256=hashlib.sha256(b"rest_lite").hexdigest(),
        environment=environment(),
        engines=(*map(engine, LATENCY), failed),
        ratios=ratios(),
        ceilings=Ceilings(
            gemm_gflops={"fp32": 182.0, "int8": 610.0},
            copy_gb_per_s=19.0,
            threads=8,
            absent=("bf16",),
        ),
        advice="Deploy openvino int8: 9.4 ms an image at 224x224, 4.0 times as fast as PyTorch, "
        "with the same top-1 on 510 of 512 images.",
        notes=(
            "sample data: no number here was measured",
            "the machine was not idle before the run: load 0.21 on 8 cores",
        ),
        growth=growth(),
        sensitivity=Sensitivity(
            command='rest-deploy sensitivity build/rest_lite.onnx --budget "agreement>=99.5%"',
            recipe="int8",
            images=64,
            whole=7.5e-3,
            places=tuple(
                PlaceError(block=block, role=role, relative_error=error, share=1 / total)
                for block, roles in PLACES.items()
                for role, error in roles.items()
            ),
        ),
        instance_norm=NormErrors(
            command="python benchmarks/instance_norm.py --checkpoint F --variant lite --output F",
            rows=tuple(
                NormError(weights="trained", form=form, size=size, relative_error=error)
                for form, errors in NORM.items()
                for size, error in zip(
                    ("64x64", "97x131", "224x224", "448x448"), errors, strict=True
                )
            ),
        ),
    )


if __name__ == "__main__":
    print(to_json(record()), end="")
