"""Which provider ran what: profiles of real runs, and written ones where a layer fell back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rest_deploy.engine.onnxruntime import FLOAT_KERNELS, placement
from rest_deploy.engine.placement import Placement, Ran, enforce, placed, read_profile, read_times
from rest_deploy.errors import VerificationError

CPU, CUDA, TRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


def event(name: str, operator: str, provider: str, **changes: Any) -> dict[str, Any]:
    args = {"op_name": operator, "provider": provider, "node_index": "7"}
    return {"cat": "Node", "name": f"{name}_kernel_time", "args": args, "dur": 3, **changes}


OTHERS: list[dict[str, Any]] = [
    {"cat": "Session", "name": "model_loading_uri", "args": {}},
    {"cat": "Node", "name": "stem.conv1.Conv_fence_before", "args": {"op_name": "Conv"}},
]


def found(*events: dict[str, Any], provider: str = CUDA) -> Placement:
    ran = read_profile(json.dumps([*OTHERS, *events]))
    return placed(ran, provider, FLOAT_KERNELS, lambda name: f"<{name}>")


def test_everything_where_it_was_asked_for() -> None:
    """Shapes are computed on the CPU by every provider: only matrix layers count."""
    good = found(event("stem.conv1.Conv", "Conv", CUDA), event("a.Shape", "Shape", CPU))
    assert good == Placement(CUDA, {CUDA: 1, CPU: 1}, ())
    enforce(good, "x.onnx")


def test_a_convolution_that_fell_back() -> None:
    bad = found(event("stem.conv1.Conv", "Conv", CPU), event("a.MatMul", "MatMul", CUDA))
    assert bad.elsewhere == (f"<stem.conv1.Conv> (Conv on {CPU})",)
    with pytest.raises(VerificationError, match=r"left 1 matrix layers of x\.onnx .*<stem\.conv1"):
        enforce(bad, "x.onnx")


@pytest.mark.parametrize("operator", ["FusedConv", "FusedMatMul", "NhwcFusedConv", "Gemm"])
def test_fused_layers_count_too(operator: str) -> None:
    assert found(event("a", operator, CPU), event("b", "Conv", CUDA)).elsewhere


def test_an_engine_of_the_whole_graph() -> None:
    """TensorRT's provider runs its nodes as one: what still has a name was not taken."""
    fused = event("TRTKernel_graph_main_1234_0", "TRTKernel_graph_main_1234_0", TRT)
    enforce(found(fused, provider=TRT), "x.onnx")
    left = found(fused, event("head.Gemm", "Gemm", CPU), provider=TRT)
    with pytest.raises(VerificationError, match=r"<head\.Gemm> \(Gemm on CPUExecutionProvider\)"):
        enforce(left, "x.onnx")


def test_a_provider_that_ran_nothing() -> None:
    nothing = found(event("a", "Add", CPU))
    assert nothing.elsewhere == ()
    with pytest.raises(VerificationError, match=f"did not run on {CUDA} at all: 1 on {CPU}"):
        enforce(nothing, "x.onnx")


def test_many_layers_are_counted_not_listed() -> None:
    events = [event(f"n{index}", "Conv", CPU) for index in range(9)]
    with pytest.raises(VerificationError, match=r"left 9 matrix layers .*<n4>.* and 4 more;"):
        enforce(found(*events, event("b", "Conv", CUDA)), "x.onnx")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "[1]", json.dumps(OTHERS), json.dumps([event("a", "Add", CPU, args={})]),
     json.dumps([{"cat": "Node"}])],
)  # fmt: skip
def test_a_profile_that_proves_nothing(text: str) -> None:
    with pytest.raises(VerificationError, match="proves"):
        read_profile(text)


def test_the_name_of_a_node_ends_before_the_event() -> None:
    assert read_profile(json.dumps([event("a.b", "Add", CPU)])) == (Ran("a.b", "Add", CPU),)


def test_a_real_run(exported_nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All on the CPU, and nothing left behind, here or where temporary files go."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ran = placement(exported_nano, "cpu")
    assert set(ran.nodes) == {CPU}
    assert ran.nodes[CPU] > 200
    enforce(ran, exported_nano.name)
    assert list(tmp_path.iterdir()) == []


def test_layers_of_a_real_run_have_their_places(
    exported_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the same profile had been asked of CUDA: every matrix layer is named, by its role."""
    from rest_deploy.engine import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "placed", lambda ran, _, matrices, layer: placed(ran, CUDA, matrices, layer)
    )
    ran = placement(exported_nano, "cpu")
    named = {text.partition(" ")[0] for text in ran.elsewhere}
    assert {"stem.conv1:stem", "stem.conv2:stem", "stem:pa", "stage3.1:qkv", "head:head",
            "stage2.0:transform", "patch_embed_4:patch", "stage4.0:context"} <= named  # fmt: skip
    assert not [name for name in named if ":" not in name], "none without a role"
    with pytest.raises(VerificationError, match="did not run on CUDAExecutionProvider at all"):
        enforce(ran, "x.onnx")


def test_times_of_each_run() -> None:
    """ "dur" is in microseconds."""
    events = [event(name, "Add", CPU, dur=dur) for name, dur in (("a", 1), ("b", 2)) * 3]
    assert read_times(json.dumps([*OTHERS, *events]), 3) == [[("a", 0.001), ("b", 0.002)]] * 3


@pytest.mark.parametrize("runs", [2, 4, 5])
def test_times_of_another_number_of_runs(runs: int) -> None:
    events = [event("a", "Add", CPU)] * 3
    with pytest.raises(VerificationError, match=f"3 nodes, which are not {runs} runs"):
        read_times(json.dumps(events), runs)


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"cat": "Node"}]'])
def test_times_of_no_profile(text: str) -> None:
    with pytest.raises(VerificationError, match="nothing tells where the time went"):
        read_times(text, 1)
