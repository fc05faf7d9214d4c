"""Every kind of file with Q/DQ or 16 bits, against the letter of ONNX: its checker, its reference
evaluator, and ONNX Runtime without optimizations, which runs each node as it is written.

Results are held together image by image. A value at the edge between two steps may round to either,
and that shows as 1e-3 of the logits: so the median over the images is what is bounded tightly, and
the largest at a tenth of what the quantization itself costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from rest_deploy import verbs
from rest_deploy.contracts import Precision, Rest
from rest_deploy.runtime.session import Session
from rest_deploy.verbs import Images, Request
from rest_deploy.verify.parity import Case, synthetic_images
from tests.conftest import TRAINED_WEIGHTS

Array = npt.NDArray[np.floating]
IMAGES = synthetic_images(Case(batch=12, height=32, width=32))

SAME = 1e-6
"""Median of two float32 computations of the same graph."""
EDGES = 1e-2
"""Largest, of an image where a value rounded to the other step. Wrong results are beyond it, or
beyond `SAME` in the median."""
HALVES = 2e-3
"""Median between FP16 rounded after every operator (the evaluator) and float32 between Casts (ONNX
Runtime, which has few FP16 kernels for CPUs)."""
BOTH = 8e-3
"""Median of the same beside 8 bits: every such difference may round to another step."""
REQUANTIZED = 5e-3
"""Median where ONNX Runtime fuses a convolution: it rounds the bias to integers too."""


@dataclass(frozen=True)
class Kind:
    precision: Precision
    recipe: str | None = None
    rest: Rest | None = None
    backend: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.precision, self.recipe, self.rest, self.backend)))


KINDS = (
    Kind("int8"),
    Kind("int8", recipe="int8-openvino"),
    Kind("int8", recipe="int8-float-stem"),
    Kind("int8", rest="fp16"),
    Kind("int8", backend="onnxruntime"),
    Kind("int8", backend="openvino"),
    Kind("fp8"),
    Kind("fp8", rest="fp16"),
    Kind("fp16"),
    Kind("bf16"),
)

Made = Callable[[Kind], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With rest_nano.onnx at the opset that has BF16."""
    found = tmp_path_factory.mktemp("files")
    verbs.export("nano", output_dir=found, checkpoint=TRAINED_WEIGHTS, opset=22)
    return found


@pytest.fixture(scope="module")
def made(folder: Path) -> Made:
    """A kind's file, built at the first question for it."""
    done: dict[Kind, Path] = {}

    def file(kind: Kind) -> Path:
        if kind.backend == "openvino":
            pytest.importorskip("openvino")
        if kind not in done:
            done[kind] = Path(build(folder / "rest_nano.onnx", kind, folder / str(kind)))
        return done[kind]

    return file


def build(model: Path, kind: Kind, workspace: Path) -> str:
    request = Request(
        precision=kind.precision,
        recipe=kind.recipe,
        rest=kind.rest,
        images=Images(limit=8),
        gate=False,
    )
    if kind.backend:
        report = verbs.build_engine(model, request, workspace=workspace, backend=kind.backend)
        return report.path
    return verbs.quantize(model, request, workspace=workspace).path


def initializers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {found.name: found for found in graph.initializer}


def quantizers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [n for n in graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]


def zero_point(node: onnx.NodeProto) -> str:
    return node.input[2] if len(node.input) > 2 else ""


def unlike(graph: onnx.GraphProto) -> list[str]:
    """Nodes whose zero point has another shape than their scale."""
    stored = initializers(graph)
    return [
        node.name
        for node in quantizers(graph)
        if zero_point(node)
        and list(stored[node.input[1]].dims) != list(stored[zero_point(node)].dims)
    ]


def spread(expected: Array, actual: Array) -> tuple[float, float]:
    """Median and largest relative error of an image's logits; a value that is no number counts."""
    wide, exact = actual.astype(np.float64), expected.astype(np.float64)
    assert np.isfinite(wide).all()
    errors = np.linalg.norm(wide - exact, axis=1) / np.linalg.norm(exact, axis=1)
    return float(np.median(errors)), float(errors.max())


def run(model: Path | bytes, *, optimized: bool = True, exact_pairs: bool = False) -> Array:
    """ONNX Runtime's logits. exact_pairs: of its kernels without the 16-bit sums of x86."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        off = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = off
    if exact_pairs:
        options.add_session_config_entry("session.x64quantprecision", "1")
    source = str(model) if isinstance(model, Path) else model
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    logits: Array = session.run(None, {"image": IMAGES})[0]
    return logits


def evaluated(model: Path) -> Array:
    logits: Array = ReferenceEvaluator(str(model)).run(None, {"image": IMAGES})[0]  # type: ignore[index] # its outputs are a list
    return logits


def convolves_integers(graph: onnx.GraphProto) -> bool:
    made = {output: node.op_type for node in graph.node for output in node.output}
    return any(
        node.op_type == "Conv" and made.get(node.input[1]) == "DequantizeLinear"
        for node in graph.node
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_shapes_and_types(made: Made, kind: Kind) -> None:
    model = onnx.load(made(kind))
    onnx.checker.check_model(model, full_check=True)
    stored, pairs = initializers(model.graph), quantizers(model.graph)
    assert unlike(model.graph) == []
    assert bool(pairs) is (kind.precision in {"int8", "fp8"})
    for node in pairs:
        weight = node.input[0] in stored
        per_channel = stored[node.input[1]].dims
        assert bool(per_channel) is weight
        if weight:
            axis = next(a.i for a in node.attribute if a.name == "axis")
            assert list(per_channel) == [stored[node.input[0]].dims[axis]]
            assert bool(zero_point(node)) is (kind.precision == "int8")
        else:
            assert zero_point(node), "it gives the type"
        if zero_point(node) and weight:
            assert stored[zero_point(node)].data_type == stored[node.input[0]].data_type
            assert not numpy_helper.to_array(stored[zero_point(node)]).any()


def same(kind: Kind) -> float:
    """Median of two computations of such a file."""
    if kind.precision == "fp16":
        return HALVES
    return BOTH if kind.rest == "fp16" else SAME


@pytest.mark.parametrize("kind", [k for k in KINDS if k.precision != "bf16"], ids=str)
def test_node_by_node_it_is_what_onnx_says(made: Made, kind: Kind) -> None:
    """ONNX Runtime's default optimizations are left out: on CPUs without VNNI their integer kernels
    saturate (docs/quantization.md)."""
    median, largest = spread(evaluated(made(kind)), run(made(kind), optimized=False))
    assert median < same(kind)
    assert largest < EDGES


GPU_FILE = Kind("int8", rest="fp16")
"""On a CPU ONNX Runtime makes its convolutions' biases integers, with scales FP16 cannot hold."""


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if k.precision != "bf16" and k != GPU_FILE], ids=str
)
def test_precise_integer_kernels_give_the_same(made: Made, kind: Kind) -> None:
    fused = convolves_integers(onnx.load(made(kind)).graph)
    plain = run(made(kind), optimized=False)
    median, largest = spread(plain, run(made(kind), exact_pairs=True))
    assert median < (REQUANTIZED if fused else same(kind))
    assert largest < EDGES


def test_bf16_by_the_evaluator_alone(made: Made, folder: Path) -> None:
    """ONNX Runtime's CPU has no BF16 Conv; against float32, within what the gate allows BF16."""
    median, largest = spread(evaluated(folder / "rest_nano.onnx"), evaluated(made(Kind("bf16"))))
    assert 1e-4 < median < largest < 3e-2


def shifted(model: onnx.ModelProto, layer: str) -> bytes:
    """With the zero points of one weight at 1 instead of 0."""
    stored = initializers(model.graph)
    node = next(n for n in model.graph.node if n.name == f"{layer}.weight.DequantizeLinear")
    zero = stored[zero_point(node)]
    zero.CopyFrom(numpy_helper.from_array(np.ones(zero.dims, np.int8), zero.name))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("layer", ["stage1.0.mlp.fc1.MatMul", "stage3.0.mlp.fc1.MatMul"])
def test_wrong_zero_points_are_seen(made: Made, layer: str) -> None:
    file = made(Kind("int8"))
    wrong = run(shifted(onnx.load(file), layer), optimized=False)
    assert spread(run(file, optimized=False), wrong)[0] > 100 * SAME


def test_another_shape_is_seen(made: Made) -> None:
    """A scalar beside one scale a channel: ONNX Runtime refuses the head's node as well."""
    model = onnx.load(made(Kind("int8")))
    stored = initializers(model.graph)
    head = next(n for n in quantizers(model.graph) if n.name.startswith("head.Gemm.weight"))
    zero = stored[zero_point(head)]
    zero.CopyFrom(numpy_helper.from_array(np.zeros((), np.int8), zero.name))
    assert unlike(model.graph) == [head.name]
    with pytest.raises(Exception, match="x_zero_point must be null or 1D tensor"):
        run(model.SerializeToString(), optimized=False)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_files_of_older_versions_compute_the_same(made: Made, tmp_path: Path, backend: str) -> None:
    """They have no zero point at their weights."""
    file = made(Kind("int8", backend=backend))
    model = onnx.load(file)
    for node in quantizers(model.graph):
        if node.input[0] in initializers(model.graph):
            del node.input[2]
    older = tmp_path / file.name
    onnx.save(model, older)
    sessions = [Session.open(path, backend=backend) for path in (file, older)]
    new, old = (session.run(IMAGES) for session in sessions)
    np.testing.assert_array_equal(old, new)
