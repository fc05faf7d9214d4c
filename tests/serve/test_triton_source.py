"""Which backend an engine goes to, and which it must not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rest_deploy.artifact import sidecar_path
from rest_deploy.errors import ArtifactError, InputError, MissingDependencyError
from rest_deploy.serve.triton_config import DataType
from rest_deploy.serve.triton_source import Source, check_shapes, examine
from tests.serve.engines import SMALL, WIDE, onnx_for, plan_for


def test_an_export(exported_nano: Path) -> None:
    found = examine(exported_nano)
    assert (found.backend, found.io_type) == ("onnxruntime", DataType.FP32)
    assert found.scores is not None
    assert (found.scores.channels, found.embedding) == (1000, None)
    assert found.image_type is found.tensor_type is DataType.FP32
    assert (found.gpu, found.bf16, found.profiles, found.data) == (False, False, (), None)
    assert found.beside == sidecar_path(exported_nano)


def test_several_outputs_and_pixels(everything_nano: Path, pixels_nano: Path) -> None:
    found = examine(everything_nano)
    assert [one.name for one in found.metadata.gives] == [
        *("logits", "probabilities", "embedding", "c2", "c3", "c4", "c5"),
    ]
    assert (found.image_type, found.tensor_type) == (DataType.FP32, DataType.FP32)
    found = examine(pixels_nano)
    assert (found.image_type, found.tensor_type) == (DataType.UINT8, DataType.FP32)
    assert found.scores is not None
    assert found.embedding is not None
    assert (found.scores.name, found.embedding.unit_length) == ("logits", True)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "python"])
def test_an_export_goes_where_it_is_sent(exported_nano: Path, backend: str) -> None:
    assert examine(exported_nano, backend).backend == backend


@pytest.mark.parametrize(
    ("build", "wanted", "backend", "gpu"),
    [
        ({"backend": "onnxruntime"}, "auto", "onnxruntime", False),
        ({"backend": "openvino"}, "auto", "python", False),
        ({"backend": "openvino"}, "openvino", "openvino", False),
        ({"backend": "onnxruntime", "provider": "cuda"}, "auto", "onnxruntime", True),
        ({"backend": "onnxruntime", "provider": "tensorrt"}, "auto", "python", True),
        ({"backend": "onnxruntime", "provider": "nv-tensorrt-rtx"}, "auto", "python", True),
    ],
)
def test_engines_of_onnx(
    exported_nano: Path, tmp_path: Path, build: dict[str, Any], wanted: str, backend: str, gpu: bool
) -> None:
    pytest.importorskip("openvino")
    found = examine(onnx_for(exported_nano, tmp_path / "x.onnx", **build), wanted)
    assert (found.backend, found.gpu) == (backend, gpu)


@pytest.mark.parametrize(("precision", "rest", "bf16"), [("int8", "fp32", False),
                         ("bf16", "", True), ("int8", "bf16", True)])  # fmt: skip
def test_bf16_is_meant(
    exported_nano: Path,
    tmp_path: Path,
    openvino_bf16: Callable[[bool], None],
    precision: str,
    rest: str,
    bf16: bool,
) -> None:
    build = {"backend": "openvino", "precision": precision, "rest": rest}
    engine = onnx_for(exported_nano, tmp_path / "x.onnx", **build)
    openvino_bf16(True)
    assert examine(engine).bf16 == bf16
    openvino_bf16(False)
    if not bf16:
        assert not examine(engine).bf16
        return
    with pytest.raises(MissingDependencyError, match="has no bf16 units"):
        examine(engine)


@pytest.mark.parametrize(
    ("built_for", "other"), [("openvino", "onnxruntime"), ("onnxruntime", "openvino")]
)
def test_an_engine_is_not_the_other_runtimes(
    exported_nano: Path, tmp_path: Path, built_for: str, other: str
) -> None:
    """The gate has looked at it on one of them."""
    engine = onnx_for(exported_nano, tmp_path / "x.onnx", backend=built_for)
    with pytest.raises(InputError, match=f"gated for {built_for}, not for {other}"):
        examine(engine, other)


def test_an_engine_of_tensorrt(exported_nano: Path, tmp_path: Path) -> None:
    engine = plan_for(exported_nano, tmp_path / "x.engine", io_type="float16")
    found = examine(engine)
    assert (found.backend, found.io_type, found.gpu) == ("tensorrt", DataType.FP16, True)
    assert found.profiles == (SMALL, WIDE)
    assert examine(engine, "python").backend == "python"
    for other in ("onnxruntime", "openvino"):
        with pytest.raises(InputError, match=f"{other} backend takes .onnx files"):
            examine(engine, other)


@pytest.mark.parametrize("how", ["flavour", "magic"])
def test_tensorrt_rtx_is_refused(exported_nano: Path, tmp_path: Path, how: str) -> None:
    """Triton's backend is the other TensorRT; Session opens both."""
    engine = (
        plan_for(exported_nano, tmp_path / "x.engine", flavour="tensorrt-rtx")
        if how == "flavour"
        else plan_for(exported_nano, tmp_path / "x.engine", content=b"vtrt" * 99)
    )
    for wanted in ("auto", "tensorrt"):
        with pytest.raises(InputError, match="TensorRT-RTX engine") as caught:
            examine(engine, wanted)
        assert "--backend python" in str(caught.value.hint)
    assert examine(engine, "python").backend == "python"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda engine: engine.write_bytes(b"other"), "damaged or replaced"),
        (lambda engine: sidecar_path(engine).unlink(), "has no sidecar"),
        (lambda engine: sidecar_path(engine).write_text("{}"), "is damaged"),
        (lambda engine: engine.unlink(), "no such engine"),
    ],
)
def test_bad_engines(exported_nano: Path, tmp_path: Path, spoil: Any, words: str) -> None:
    engine = plan_for(exported_nano, tmp_path / "x.engine")
    spoil(engine)
    with pytest.raises(ArtifactError, match=words):
        examine(engine)


def test_an_engine_without_its_weights(exported_nano: Path, tmp_path: Path) -> None:
    engine = plan_for(exported_nano, tmp_path / "x.engine", options={"strip-weights": ""})
    with pytest.raises(ArtifactError, match="without its weights"):
        examine(engine)


def test_onnx_that_is_none(exported_nano: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ArtifactError):
        examine(path)
    shutil.copyfile(exported_nano, path)
    assert examine(path).sidecar is None
    with pytest.raises(InputError, match="tensorrt backend takes engines"):
        examine(path, "tensorrt")
    with pytest.raises(InputError, match="unknown backend 'pytorch'"):
        examine(path, "pytorch")
    with pytest.raises(ArtifactError, match=r"suffix '\.pth'"):
        examine(path.rename(tmp_path / "x.pth"))


@pytest.fixture
def plan(exported_nano: Path, tmp_path: Path) -> Source:
    return examine(plan_for(exported_nano, tmp_path / "x.engine"))


def test_shapes_that_a_profile_holds(plan: Source) -> None:
    check_shapes(plan, [(1, 3, 224, 224), (16, 3, 224, 224), (4, 3, 448, 448)])


@pytest.mark.parametrize("shape", [(17, 3, 224, 224), (5, 3, 448, 448), (1, 3, 512, 512)])
def test_shapes_that_none_holds(plan: Source, shape: Any) -> None:
    with pytest.raises(InputError, match="no profile of") as caught:
        check_shapes(plan, [shape])
    assert "--max-batch 16 at most" in str(caught.value.hint)
