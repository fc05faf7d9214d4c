"""Our engines and those of other tools side by side: same weights, images and threads, in turn.

    python benchmarks/peers.py plain --variant lite --checkpoint F --output DIR     (and `quantize`)
    python benchmarks/speed.py --variant lite --checkpoint F --peers DIR --output F.json

Peers run as their tool ships them: a plain torch export with all axes dynamic, and the same fixed
to the shape; PyTorch eager and compiled. OpenVINO computes float layers in f32 everywhere. Two
groups, FP32 and INT8, each measured in rounds over all of its members; ratios are to our engine on
OpenVINO, which compiles for shapes that come often.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import numpy.typing as npt

from rest_deploy import verbs
from rest_deploy.artifact import to_json, write_text
from rest_deploy.bench import environment, measure
from rest_deploy.bench.plan import Plan, Subject, sweep
from rest_deploy.bench.record import Environment, Measurement
from rest_deploy.bench.stopping import Limits
from rest_deploy.bench.timers import Engine
from rest_deploy.runtime.session import Session
from rest_deploy.verbs import Images, Request
from rest_deploy.verbs.gate import gate_data, reference_answers
from rest_deploy.verify import gate, metrics

PATH = click.Path(path_type=Path)
Float32 = npt.NDArray[np.float32]
TOOLS = {"onnxruntime": "quantize_static", "nncf": "NNCF", "modelopt": "ModelOpt"}
GATE_IMAGES = 128


class OnnxRuntimePeer:
    """ONNX Runtime at its defaults; fixed: a session for each shape, made when it first comes."""

    def __init__(self, path: Path, threads: int, *, fixed: bool) -> None:
        self._path, self._threads, self._fixed = path, threads, fixed
        self._sessions: dict[tuple[int, ...], Any] = {}

    def run(self, images: Float32, /) -> Float32:
        key = images.shape if self._fixed else ()
        if key not in self._sessions:
            self._sessions[key] = self._open(key)
        (logits,) = self._sessions[key].run(None, {"image": images})
        return np.asarray(logits)

    def _open(self, shape: tuple[int, ...]) -> Any:
        import onnx
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        if shape:
            model = onnx.load(self._path, load_external_data=False)
            dims = model.graph.input[0].type.tensor_type.shape.dim
            for dim, length in zip(dims, shape, strict=True):
                if dim.dim_param:
                    options.add_free_dimension_override_by_name(dim.dim_param, length)
        return ort.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])


class OpenVinoPeer:
    """OpenVINO at its defaults but for the precision; fixed as above."""

    def __init__(self, path: Path, threads: int, *, fixed: bool) -> None:
        import openvino

        self._core = openvino.Core()
        self._path, self._fixed = path, fixed
        self._config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            self._config["INFERENCE_NUM_THREADS"] = threads
        self._compiled: dict[tuple[int, ...], Any] = {}

    def run(self, images: Float32, /) -> Float32:
        key = images.shape if self._fixed else ()
        if key not in self._compiled:
            model = self._core.read_model(self._path)
            if key:
                model.reshape(list(key))
            self._compiled[key] = self._core.compile_model(model, "CPU", self._config)
        return np.array(self._compiled[key](images)[0])


class Compiled:
    """torch.compile, one graph a shape."""

    def __init__(self, module: Any, threads: int) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self._module: Any = torch.compile(module.eval().float(), dynamic=False)

    def run(self, images: Float32, /) -> Float32:
        import torch

        with torch.inference_mode():
            return np.asarray(self._module(torch.from_numpy(images)).numpy())


@click.command()
@click.option("--variant", required=True)
@click.option("--checkpoint", type=PATH, required=True)
@click.option("--peers", type=PATH, required=True, help="Folder made by benchmarks/peers.py.")
@click.option("--output", type=PATH, required=True)
@click.option("--batches", default="1,8", show_default=True)
@click.option("--sizes", default="224,448", show_default=True)
@click.option("--threads", type=int, default=0, show_default=True, help="0: all cores.")
@click.option("--seconds", type=float, default=6.0, show_default=True, help="Per engine and shape.")
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True)
def main(
    variant: str, checkpoint: Path, peers: Path, output: Path, batches: str, sizes: str,
    threads: int, seconds: float, compiled: bool,
) -> None:  # fmt: skip
    """Measure both groups and write the JSON."""
    here = environment.examine()
    command = (
        f"python benchmarks/speed.py --variant {variant} --checkpoint F --peers DIR "
        f"--batches {batches} --sizes {sizes} --threads {threads} --seconds {seconds:g} "
        f"--{'' if compiled else 'no-'}compile --output F"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = _ours(variant, checkpoint, folder)
        export = Session.open(ours["export"])
        data = gate_data(export.metadata, None, GATE_IMAGES)
        answers, _ = reference_answers(export, data.images, checkpoint)
        expected = answers[export.metadata.output_name]
        groups = {
            "fp32": _float(ours, peers, export, checkpoint, compiled=compiled),
            "int8": _integer(ours, peers, export, checkpoint),
        }
        points = sweep(_numbers(batches), tuple((n, n) for n in _numbers(sizes)))
        plan = Plan(
            points=tuple(msgspec.structs.replace(point, threads=threads) for point in points),
            limits=Limits(max_seconds=seconds, min_seconds=min(1.0, seconds)),
            classes=export.metadata.num_classes,
        )
        found: dict[str, Any] = {}
        for group, members in groups.items():
            subjects = [Subject(label, opened) for label, opened in members.items()]
            result = measure.compare(subjects, plan, _tell)
            errors = {
                label: _error(opened, threads, data.images, np.asarray(expected))
                for label, opened in members.items()
            }
            found[group] = {
                "base": next(iter(members)),
                "relative_error": errors,
                "engines": [
                    {
                        "label": one.label, "failed": one.failed, "skipped": one.skipped,
                        "points": [point(measured) for measured in one.measurements],
                    }
                    for one in result.engines
                ],
                "ratios": msgspec.to_builtins(result.ratios),
            }  # fmt: skip
            _write(output, command, variant, here, peers, found)  # a group takes many minutes


def _write(
    output: Path, command: str, variant: str, here: Environment, peers: Path, found: dict[str, Any]
) -> None:
    write_text(output, to_json({
        "command": command,
        "variant": variant,
        "environment": msgspec.to_builtins(here),
        "peers": {file.stem: file.read_text().strip() for file in sorted(peers.glob("*.version"))},
        "ratio": "of base over engine: above 1 the engine is faster than base",
        "groups": found,
    }))  # fmt: skip


def _ours(variant: str, checkpoint: Path, folder: Path) -> dict[str, Path]:
    found = {"export": Path(verbs.export(variant, output_dir=folder, checkpoint=checkpoint).path)}
    for backend in ("openvino", "onnxruntime"):
        report = verbs.build_engine(
            found["export"], Request(precision="int8", images=Images(), gate_images=GATE_IMAGES),
            workspace=folder, backend=backend,
        )  # fmt: skip
        found[backend] = Path(report.path)
    return found


def _float(
    ours: dict[str, Path], peers: Path, export: Session, checkpoint: Path, *, compiled: bool
) -> dict[str, Callable[[int], Engine]]:
    from rest_deploy.model.eager import Eager
    from rest_deploy.verify.parity import load_reference

    plain = peers / "plain.onnx"
    module = load_reference(export.metadata, checkpoint)
    found: dict[str, Callable[[int], Engine]] = {
        "ours, OpenVINO": _session(ours["export"], "openvino"),
        "ours, ONNX Runtime": _session(ours["export"], "onnxruntime"),
        "torch export, OpenVINO": lambda n: OpenVinoPeer(plain, n, fixed=False),
        "torch export, OpenVINO, fixed": lambda n: OpenVinoPeer(plain, n, fixed=True),
        "torch export, ONNX Runtime": lambda n: OnnxRuntimePeer(plain, n, fixed=False),
        "torch export, ONNX Runtime, fixed": lambda n: OnnxRuntimePeer(plain, n, fixed=True),
        "PyTorch eager": lambda n: Eager(module, n),
    }
    if compiled:
        found["torch.compile"] = lambda n: Compiled(module, n)
    return found


def _integer(
    ours: dict[str, Path], peers: Path, export: Session, checkpoint: Path
) -> dict[str, Callable[[int], Engine]]:
    from rest_deploy.model.eager import Eager
    from rest_deploy.verify.parity import load_reference

    module = load_reference(export.metadata, checkpoint)
    found: dict[str, Callable[[int], Engine]] = {
        "ours, OpenVINO": _session(ours["openvino"], "openvino"),
        "ours, ONNX Runtime": _session(ours["onnxruntime"], "onnxruntime"),
    }
    for tool, name in TOOLS.items():
        path = peers / f"{tool}.onnx"
        if path.is_file():
            found[f"{name}, OpenVINO"] = _peer(OpenVinoPeer, path, fixed=False)
            found[f"{name}, OpenVINO, fixed"] = _peer(OpenVinoPeer, path, fixed=True)
            found[f"{name}, ONNX Runtime"] = _peer(OnnxRuntimePeer, path, fixed=False)
    found["PyTorch eager"] = lambda n: Eager(module, n)
    return found


def _session(path: Path, backend: str) -> Callable[[int], Engine]:
    return lambda threads: Session.open(path, backend=backend, threads=threads or None)


def _peer(kind: Any, path: Path, *, fixed: bool) -> Callable[[int], Engine]:
    return lambda threads: kind(path, threads, fixed=fixed)


def _error(
    opened: Callable[[int], Engine], threads: int, images: Float32, expected: npt.NDArray[Any]
) -> float | str:
    """Relative L2 error of the logits, or why there is none."""
    try:
        actual = gate.logits(opened(threads).run, images)
    except Exception as error:  # noqa: BLE001  # a peer's failure is a result
        return f"{type(error).__name__}: {error}"[:200]
    return metrics.relative_error(expected, actual)


def point(measured: Measurement) -> dict[str, Any]:
    """Without the raw samples, of which there are thousands."""
    kept = msgspec.to_builtins(measured)
    del kept["samples"]
    found: dict[str, Any] = kept
    return found


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _tell(what: str, done: int, total: int, _unit: str) -> None:
    print(f"\r{what}: {done} of {total} %   ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
