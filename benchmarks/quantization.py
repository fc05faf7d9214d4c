"""INT8, FP16, BF16, FP8 and other tools' INT8, side by side: logit error, agreement, latency.

    python benchmarks/quantization.py --variant nano \\
        --checkpoint tests/assets/rest_nano_photos.safetensors --peers DIR --output F.json

Every row has the same weights, the same 128 calibration crops and the same 512 held-out crops;
errors are against PyTorch in float64, on ONNX Runtime's CPU provider. FP16 and BF16 rows round
after every operator (`graph.precision.emulate`). DIR: made by benchmarks/peers.py. Latency rounds
interleave all models; a ratio is the median over rounds of one model's time over the fastest
peer's, with the middle half of the rounds beside it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rest_deploy import photos, verbs
from rest_deploy.artifact import to_json, write_text
from rest_deploy.cards import load_card
from rest_deploy.doctor import examine
from rest_deploy.graph.precision import Sixteen, emulate, to_sixteen_bit
from rest_deploy.model.checkpoint import load_model, read_checkpoint
from rest_deploy.model.reference import Reference
from rest_deploy.preprocess import to_tensor
from rest_deploy.quant.calibrate import calibrate, quantize
from rest_deploy.quant.dataset import CalibrationSet, open_set
from rest_deploy.quant.level import level
from rest_deploy.quant.recipe import Recipe, Scaling, load_recipe
from rest_deploy.quant.scales import Algorithm
from rest_deploy.verify import metrics

Float32 = npt.NDArray[np.float32]
PATH = click.Path(path_type=Path)

BATCH = 32
LATENCY_BATCH = 4
CALIBRATION_SEED = 5
"""As in peers.py: the same crops."""

ROUNDS = 50
PEERS = ("modelopt", "onnxruntime", "nncf")
SHIPPED = ("int8", "int8-float-stem", "int8-openvino", "fp8")
ENGINE = "int8 engine for ONNX Runtime"


def recipes() -> dict[str, Recipe]:
    """Name of a row -> recipe: the shipped ones, then one thing changed, then one role alone."""
    shipped, change = load_recipe("int8"), msgspec.structs.replace
    rows = {name: load_recipe(name) for name in SHIPPED}
    exact: dict[str, Any] = {"leveling": False, "equalization": 0.0}
    changes: dict[str, dict[str, Any]] = {
        "int8 without leveling": {"leveling": False},
        "int8 without equalization": {"equalization": 0.0},
        "int8 without fitted rounding": {"rounding": ()},
        "int8 without all three": {"rounding": (), **exact},
        "int8 with bias correction": {"bias": True},
        "int8, every weight rounded to its inputs": {"rounding": shipped.quantize},
    }
    for name, fields in changes.items():
        rows[name] = change(shipped, corrections=change(shipped.corrections, **fields))
    for algorithm in get_args(Algorithm):
        rows[f"int8, {algorithm} everywhere"] = change(
            shipped, activations=Scaling(algorithm=algorithm)
        )
    for role in shipped.quantize:
        rows[f"only {role}"] = change(shipped, quantize=(role,))
    return rows


@click.command()
@click.option("--variant", default="nano", show_default=True)
@click.option("--checkpoint", type=PATH, required=True)
@click.option("--peers", type=PATH, help="Folder with TOOL.onnx. [default: no peers]")
@click.option("--latency/--no-latency", default=True, show_default=True)
@click.option("--ablations/--no-ablations", default=True, show_default=True)
@click.option("--calibration-crops", default=128, show_default=True)
@click.option("--test-crops", default=512, show_default=True)
@click.option("--output", type=PATH, required=True)
def main(
    variant: str,
    checkpoint: Path,
    peers: Path | None,
    latency: bool,
    ablations: bool,
    calibration_crops: int,
    test_crops: int,
    output: Path,
) -> None:
    card = load_card(variant)
    crops = photos.crops("test", test_crops, seed=7)
    images = np.stack([to_tensor(photos.load(crop), card.preprocessing) for crop in crops])
    reference = Reference(load_model(card, read_checkpoint(checkpoint)).module)
    expected = np.concatenate(
        [reference(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    )
    calibration = open_set(None, card.preprocessing, limit=calibration_crops, seed=CALIBRATION_SEED)
    rows: list[dict[str, Any]] = []
    timed: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Path(verbs.export(variant, output_dir=folder, checkpoint=checkpoint).path)

        def measure(row: str, path: Path) -> None:
            actual = _logits(path, images)
            rows.append(
                {
                    "row": row,
                    "relative_error": metrics.relative_error(expected, actual),
                    "kl": metrics.kl_divergence(expected, actual),
                    "agreement": metrics.agreement(expected, actual),
                }
            )
            click.echo(f"{row:42s} {rows[-1]['relative_error']:.2e} {rows[-1]['agreement']:.2%}")

        measure("float32", model)
        timed["float32"] = model
        for row, recipe in recipes().items():
            if not ablations and row not in SHIPPED:
                continue
            path = _quantized(model, calibration, recipe, folder / f"{len(rows)}.onnx")
            measure(row, path)
            if row in SHIPPED and row != "fp8":
                timed[row] = path
        images_of = verbs.Images(limit=calibration_crops, seed=CALIBRATION_SEED)
        request = verbs.Request(precision="int8", images=images_of, gate=False)
        timed[ENGINE] = Path(
            verbs.build_engine(model, request, workspace=folder, backend="onnxruntime").path
        )
        measure(ENGINE, timed[ENGINE])
        for precision in ("fp16", "bf16"):
            measure(precision, _sixteen(model, precision, folder / f"{precision}.onnx"))
        for tool in PEERS if peers is not None else ():
            assert peers is not None
            path = peers / f"{tool}.onnx"
            if path.is_file():
                measure(f"peer {tool}", path)
                timed[f"peer {tool}"] = path
        speeds = _latency(timed, images[:LATENCY_BATCH]) if latency else {}
    record = {
        "command": f"python benchmarks/quantization.py --variant {variant} --checkpoint F "
        + ("--peers DIR " if peers is not None else "")
        + ("" if latency else "--no-latency ")
        + "--output F",
        "variant": variant,
        "calibration_crops": calibration_crops,
        "test_crops": test_crops,
        "machine": [f"{row.name}: {row.detail}" for row in examine().rows if row.area == "cpu"],
        "versions": _versions() | _peer_versions(peers),
        "rows": rows,
        "latency": speeds,
    }
    write_text(output, to_json(record))


def _quantized(model: Path, images: CalibrationSet, recipe: Recipe, path: Path) -> Path:
    graph, _ = quantize(model, calibrate(model, images, recipe))
    ir.save(graph, path)
    return path


def _sixteen(model: Path, precision: Sixteen, path: Path) -> Path:
    graph = ir.load(model)
    graph.opset_imports[""] = 22
    level(graph)
    to_sixteen_bit(graph, precision)
    emulate(graph)
    ir.save(graph, path)
    return path


def _session(path: Path) -> Callable[[Float32], Float32]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def infer(images: Float32) -> Float32:
        logits: Float32 = session.run(None, {name: images})[0]
        return logits

    return infer


def _logits(path: Path, images: Float32) -> Float32:
    infer = _session(path)
    return np.concatenate([infer(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


def _openvino(path: Path) -> Callable[[Float32], Float32]:
    import openvino

    core = openvino.Core()
    # f32: on CPUs with bf16 units OpenVINO silently computes in bf16.
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()

    def infer(images: Float32) -> Float32:
        request.infer({0: images})
        logits: Float32 = request.get_output_tensor(0).data
        return logits

    return infer


def _latency(models: dict[str, Path], images: Float32) -> dict[str, Any]:
    """Per runtime and model: median milliseconds a batch and the ratio to the fastest peer."""
    results: dict[str, Any] = {"batch": len(images), "rounds": ROUNDS}
    for runtime, load in (("onnxruntime", _session), ("openvino", _openvino)):
        loaded, refused = {}, {}
        for name, path in models.items():
            try:
                loaded[name] = load(path)
                loaded[name](images)
            except RuntimeError as error:  # OpenVINO refuses what it cannot convert
                loaded.pop(name, None)
                refused[name] = " ".join(str(error).split())[-300:]
        times: dict[str, list[float]] = {name: [] for name in loaded}
        for infer in loaded.values():
            for _ in range(3):
                infer(images)
        shuffled = np.random.default_rng(0)
        for _ in range(ROUNDS):
            for name in shuffled.permutation(list(loaded)):  # no model always follows the same
                started = time.perf_counter()
                loaded[name](images)
                times[name].append((time.perf_counter() - started) * 1e3)
        medians = {name: float(np.median(values)) for name, values in times.items()}
        rivals = {name: value for name, value in medians.items() if name.startswith("peer")}
        base = min(rivals or medians, key=(rivals or medians).__getitem__)
        results[runtime] = {"fastest_peer": base, "models": {}, "does_not_load": refused}
        for name, values in times.items():
            ratios = np.array(values) / np.array(times[base])
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            results[runtime]["models"][name] = {
                "median_ms": medians[name],
                "ratio": float(middle),
                "ratio_quartiles": [float(low), float(high)],
            }
            click.echo(f"{runtime:12s} {name:24s} {medians[name]:7.1f} ms {middle:.3f}")
    return results


def _peer_versions(peers: Path | None) -> dict[str, str]:
    """Of the tools that made the peers' files, which may live in other environments."""
    return {path.stem: path.read_text().strip() for path in sorted(peers.glob("*.version"))
            } if peers is not None else {}  # fmt: skip


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "onnxruntime", "openvino", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
