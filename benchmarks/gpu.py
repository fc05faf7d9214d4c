"""Engines for ONNX Runtime's CUDA provider beside PyTorch on the same GPU, in turn, in one run.

    python benchmarks/gpu.py --variant lite --checkpoint F --output benchmarks/results/NAME.json

Groups, each measured in rounds over all of its members, on the same weights and images:

- `host`: arrays of the host in, logits of the host out, as a service has them;
- `resident`: the images are on the GPU already, the logits come back: what the GPU itself takes;
- `norms`: the InstanceNorm's forms in FP16 and float32, resident;
- `settings`: what the provider's own options make of our FP16 file, resident; `fixed` is a session
  for each shape, `CUDA graph` one that captures its kernels and replays them;
- `compiled`: the same file beside torch.compile, resident.

And apart from those what the first inference of a size costs, which dynamic shapes pay. The clock
is the host's: every run ends with the logits in host memory, so the GPU has finished.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import numpy as np
import numpy.typing as npt
from peers import export_plain  # its neighbour: scripts here are run from this folder
from speed import point  # likewise

from rest_deploy import verbs
from rest_deploy.artifact import to_json, write_text
from rest_deploy.bench import environment, measure
from rest_deploy.bench.plan import Plan, Subject, sweep
from rest_deploy.bench.stopping import Limits
from rest_deploy.bench.timers import Engine
from rest_deploy.contracts import InstanceNormForm
from rest_deploy.runtime.session import Session
from rest_deploy.verbs.gate import gate_data
from rest_deploy.verify import gate, metrics
from rest_deploy.verify.parity import load_reference

PATH = click.Path(path_type=Path)
Float32 = npt.NDArray[np.float32]
Opener = Callable[[int], Engine]
IMAGES = 64
NEW_SIZES = ((224, 256), (256, 224), (200, 225), (288, 288), (320, 240), (192, 208))
FORMS = get_args(InstanceNormForm)
OURS = {"use_tf32": "0"}
"""The provider's defaults but for one: it computes float32 products in TF32 unless told not to."""


class Cuda:
    """A file on the CUDA provider with these of its options. resident: see the module. shape: the
    only one; () for any."""

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, str],
        *,
        resident: bool,
        shape: tuple[int, ...] = (),
    ) -> None:
        import onnx
        import onnxruntime as ort

        ort.preload_dlls()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if shape:
            (image,) = onnx.load(path, load_external_data=False).graph.input
            for dim, length in zip(image.type.tensor_type.shape.dim, shape, strict=True):
                if dim.dim_param:
                    options.add_free_dimension_override_by_name(dim.dim_param, length)
        self._session = ort.InferenceSession(
            str(path), options, enable_fallback=0,
            providers=[("CUDAExecutionProvider", dict(settings))],
        )  # fmt: skip
        assert self._session.get_providers()[0] == "CUDAExecutionProvider"
        self._names = [output.name for output in self._session.get_outputs()]
        self._resident = resident
        self._there: dict[int, tuple[Float32, Any]] = {}

    def run(self, images: Float32, /) -> Float32:
        if not self._resident:
            return np.asarray(self._session.run(self._names, {"image": images})[0])
        import onnxruntime as ort

        if id(images) not in self._there:
            self._there[id(images)] = (images, ort.OrtValue.ortvalue_from_numpy(images, "cuda", 0))
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("image", self._there[id(images)][1])
        for name in self._names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return np.asarray(binding.copy_outputs_to_cpu()[0])


class Fixed:
    """A session for each shape, made when it first comes. graph: it captures its kernels at the
    first run and replays them, between buffers that stay where they are; the images are copied on
    the GPU."""

    def __init__(self, path: Path, settings: Mapping[str, str], *, graph: bool) -> None:
        self._path, self._graph = path, graph
        self._settings = {**settings, "enable_cuda_graph": "1"} if graph else dict(settings)
        self._sessions: dict[tuple[int, ...], tuple[Any, Any, Any, Any]] = {}
        self._there: dict[int, tuple[Float32, Any]] = {}

    def run(self, images: Float32, /) -> Float32:
        import torch

        if images.shape not in self._sessions:
            self._sessions[images.shape] = self._open(images.shape)
        session, binding, source, target = self._sessions[images.shape]
        if id(images) not in self._there:
            self._there[id(images)] = (images, torch.from_numpy(images).to("cuda"))
        source.copy_(self._there[id(images)][1])
        torch.cuda.current_stream().synchronize()  # ONNX Runtime's stream is another
        session.run_with_iobinding(binding)
        return np.asarray(target.cpu().numpy())

    def _open(self, shape: tuple[int, ...]) -> tuple[Any, Any, Any, Any]:
        import torch

        session = Cuda(self._path, self._settings, resident=True, shape=shape)._session
        source = torch.zeros(shape, device="cuda")
        (output,) = session.get_outputs()
        target = torch.empty(shape[0], output.shape[1], device="cuda")
        binding = session.io_binding()
        for bind, name, tensor in (
            (binding.bind_input, "image", source),
            (binding.bind_output, output.name, target),
        ):
            bind(name, "cuda", 0, np.float32, tuple(tensor.shape), tensor.data_ptr())
        return session, binding, source, target


class Torch:
    """The reference module on the GPU. tf32: in float32 products and convolutions. compiled: mode
    of torch.compile, "" for eager."""

    def __init__(
        self, module: Any, dtype: str, *, resident: bool, tf32: bool = False, compiled: str = ""
    ) -> None:
        import copy

        import torch

        self._dtype = getattr(torch, dtype)
        self._tf32 = tf32
        moved = copy.deepcopy(module).eval().to("cuda", self._dtype)
        self._module: Any = moved
        if compiled:
            self._module = torch.compile(moved, dynamic=False, mode=compiled)
        self._resident = resident
        self._there: dict[int, tuple[Float32, Any]] = {}

    def run(self, images: Float32, /) -> Float32:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = self._tf32
        torch.backends.cudnn.allow_tf32 = self._tf32
        if not self._resident:
            source = torch.from_numpy(images).to("cuda").to(self._dtype)
        else:
            if id(images) not in self._there:
                there = torch.from_numpy(images).to("cuda").to(self._dtype)
                self._there[id(images)] = (images, there)
            source = self._there[id(images)][1]
        with torch.inference_mode():
            return np.asarray(self._module(source).float().cpu().numpy())


@click.command()
@click.option("--variant", required=True)
@click.option("--checkpoint", type=PATH, required=True)
@click.option("--output", type=PATH, required=True)
@click.option("--batches", default="1,8,32", show_default=True)
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Per engine and shape.")
@click.option("--groups", default="host,resident,norms,settings,compiled,first", show_default=True)
def main(
    variant: str, checkpoint: Path, output: Path, batches: str, seconds: float, groups: str
) -> None:
    """Measure and write the JSON."""
    command = (
        f"python benchmarks/gpu.py --variant {variant} --checkpoint F --batches {batches} "
        f"--seconds {seconds:g} --groups {groups} --output F"
    )
    record: dict[str, Any] = {
        "command": command,
        "variant": variant,
        "environment": msgspec.to_builtins(environment.examine()),
        "ratio": "of base over engine: above 1 the engine is faster than base",
        "groups": {},
    }
    with tempfile.TemporaryDirectory() as name:
        files = _files(variant, checkpoint, Path(name))
        export = Session.open(files["fp32, folded"], backend="onnxruntime", provider="cpu")
        data = gate_data(export.metadata, None, IMAGES)
        module = load_reference(export.metadata, checkpoint)
        expected = _exact(module, data.images)
        plan = Plan(
            points=sweep(tuple(map(int, batches.split(",")))),
            limits=Limits(max_seconds=seconds, min_seconds=min(0.5, seconds)),
            warmup_seconds=min(0.5, seconds),
            instances=1,  # a GPU's allocator puts two sessions alike
            classes=export.metadata.num_classes,
        )
        wanted = groups.split(",")
        for group, members in _groups(files, module).items():
            if group not in wanted:
                continue
            result = measure.compare([Subject(*one) for one in members.items()], plan, _tell)
            record["groups"][group] = {
                "base": next(iter(members)),
                "relative_error": {
                    label: _error(opened, data.images, expected)
                    for label, opened in members.items()
                },
                "engines": [
                    {
                        "label": one.label, "failed": one.failed, "skipped": one.skipped,
                        "points": [point(measured) for measured in one.measurements],
                    }
                    for one in result.engines
                ],
                "ratios": msgspec.to_builtins(result.ratios),
            }  # fmt: skip
            write_text(output, to_json(record))  # each group takes minutes
        if "first" in wanted:
            record["first_inference"] = _first(files["fp16, folded"])
            write_text(output, to_json(record))
    _print(record)


def _files(variant: str, checkpoint: Path, folder: Path) -> dict[str, Path]:
    """Each form in float32, FP16 and BF16, and what torch exports without us."""
    import onnx_ir as ir

    from rest_deploy.graph.precision import BF16_OPSET, to_sixteen_bit

    found: dict[str, Path] = {}
    for form in FORMS:
        report = verbs.export(
            variant, output_dir=folder / form, checkpoint=checkpoint, instance_norm=form,
            opset=BF16_OPSET,
        )  # fmt: skip
        found[f"fp32, {form}"] = Path(report.path)
        for kind in ("fp16", "bf16"):
            graph = ir.load(report.path)
            to_sixteen_bit(graph, kind)
            found[f"{kind}, {form}"] = folder / form / f"{kind}.onnx"
            ir.save(graph, found[f"{kind}, {form}"])
    found["torch export"] = folder / "plain.onnx"
    export_plain(variant, checkpoint, found["torch export"])
    return found


def _groups(files: Mapping[str, Path], module: Any) -> dict[str, dict[str, Opener]]:
    def ours(name: str, resident: bool, **settings: str) -> Opener:
        return lambda _: Cuda(files[name], {**OURS, **settings}, resident=resident)

    def torch(dtype: str, resident: bool, **options: Any) -> Opener:
        return lambda _: Torch(module, dtype, resident=resident, **options)

    def contest(resident: bool) -> dict[str, Opener]:
        return {
            "ours, FP16": ours("fp16, folded", resident),
            "ours, BF16": ours("bf16, folded", resident),
            "ours, FP32": ours("fp32, folded", resident),
            "ours, TF32": ours("fp32, folded", resident, use_tf32="1"),
            "torch export, FP32": ours("torch export", resident),
            "torch export, as shipped (TF32)": ours("torch export", resident, use_tf32="1"),
            "PyTorch, FP32": torch("float32", resident),
            "PyTorch, TF32": torch("float32", resident, tf32=True),
            "PyTorch, all FP16": torch("float16", resident),
        }

    def fixed(*, graph: bool) -> Opener:
        return lambda _: Fixed(files["fp16, folded"], OURS, graph=graph)

    return {
        "host": contest(resident=False),
        "resident": contest(resident=True),
        "norms": {
            f"{kind}, {form}": ours(f"{kind}, {form}", True)
            for kind in ("fp16", "fp32")
            for form in FORMS
        },
        "settings": {
            "defaults": ours("fp16, folded", True),
            "heuristic search": ours("fp16, folded", True, cudnn_conv_algo_search="HEURISTIC"),
            "no search": ours("fp16, folded", True, cudnn_conv_algo_search="DEFAULT"),
            "NHWC": ours("fp16, folded", True, prefer_nhwc="1"),
            "TF32 islands": ours("fp16, folded", True, use_tf32="1"),
            "bias fused": ours("fp16, folded", True, fuse_conv_bias="1"),
            "fixed": fixed(graph=False),
            "fixed, CUDA graph": fixed(graph=True),
        },
        "compiled": {
            "ours, FP16": ours("fp16, folded", True),
            "ours, FP16, fixed, CUDA graph": fixed(graph=True),
            "PyTorch, all FP16": torch("float16", True),
            "torch.compile, all FP16": torch("float16", True, compiled="default"),
            "torch.compile, all FP16, CUDA graphs": torch(
                "float16", True, compiled="reduce-overhead"
            ),
        },
    }


def _first(path: Path) -> list[dict[str, Any]]:
    """Milliseconds of the first and the best later inference of sizes a session has not seen."""
    found = []
    for search in ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"):
        started = time.perf_counter()
        engine = Cuda(path, {**OURS, "cudnn_conv_algo_search": search}, resident=False)
        opened = time.perf_counter() - started
        rows = []
        for height, width in ((224, 224), *NEW_SIZES):
            images = np.random.default_rng(0).standard_normal((8, 3, height, width), np.float32)
            times = []
            for _ in range(6):
                started = time.perf_counter()
                engine.run(images)
                times.append((time.perf_counter() - started) * 1e3)
            rows.append({"size": f"8x3x{height}x{width}", "first_ms": times[0],
                         "later_ms": min(times[1:])})  # fmt: skip
        found.append({"search": search, "open_s": opened, "sizes": rows})
    return found


def _exact(module: Any, images: Float32) -> npt.NDArray[np.float64]:
    """Logits in float64 on the GPU."""
    import copy

    import torch

    exact = copy.deepcopy(module).eval().to("cuda", torch.float64)
    with torch.inference_mode():
        parts = [
            exact(torch.from_numpy(batch).to("cuda", torch.float64)).cpu().numpy()
            for batch in gate.in_batches(images)
        ]
    return np.concatenate(parts)


def _error(
    opened: Opener, images: Float32, expected: npt.NDArray[np.float64]
) -> dict[str, float] | str:
    """Relative L2 error of the logits and top-1 agreement, or why there is neither."""
    try:
        actual = gate.logits(opened(0).run, images)
    except Exception as error:  # noqa: BLE001  # an engine's failure is a result
        return f"{type(error).__name__}: {error}"[:200]
    return {
        "relative_error": metrics.relative_error(expected, actual),
        "agreement": float(np.mean(actual.argmax(1) == expected.argmax(1))),
    }


def _print(record: dict[str, Any]) -> None:
    for name, group in record["groups"].items():
        click.echo(f"{name}: ms by batch; error")
        for engine in group["engines"]:
            error = group["relative_error"][engine["label"]]
            words = error if isinstance(error, str) else f"{error['relative_error']:.1e}"
            times = "  ".join(f"{p['batch']}: {p['host']['median']:8.3f}" for p in engine["points"])
            click.echo(f"  {engine['label']:34} {times or engine['failed']}  {words}")
    for row in record.get("first_inference", ()):
        times = "  ".join(
            f"{r['size'][4:]} {r['first_ms']:.0f}/{r['later_ms']:.1f}" for r in row["sizes"]
        )
        click.echo(f"{row['search']}: open {row['open_s']:.1f} s; {times}")


def _tell(what: str, done: int, total: int, _unit: str) -> None:
    if done == total:
        print(f"{what}: done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
