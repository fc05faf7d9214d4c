"""NVIDIA's real builder, without a GPU: what it builds, refuses and says."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rest_deploy.contracts import Profile
from rest_deploy.engine import tensorrt
from rest_deploy.engine.tensorrt import Options, build, check_targets, known_sms
from rest_deploy.errors import BuildError, InputError, MissingDependencyError

PROFILE = Profile(minimum=(1, 3, 32, 32), optimum=(2, 3, 96, 96), maximum=(4, 3, 224, 224))
ROOT = Path(__file__).parents[2]
SMALL = Options(profiles=(PROFILE,), sms=("89",))


def silent(_phase: str, _done: int, _total: int) -> None:
    pass


@pytest.fixture(autouse=True)
def _builder() -> None:
    pytest.importorskip("tensorrt_rtx_bindings")


def test_an_engine_with_two_profiles(exported_nano: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    larger = Profile(minimum=(1, 3, 96, 96), optimum=(1, 3, 256, 256), maximum=(1, 3, 320, 320))
    options = Options(profiles=(PROFILE, larger), sms=("86", "89"), workspace=1.0)
    built = build("tensorrt-rtx", exported_nano.read_bytes(), options, lambda *s: steps.append(s))
    assert len(built.engine) > 1_000_000
    assert built.scratch_bytes > 1_000_000
    assert len(built.layers) > 100
    assert "Engine generation completed" in built.log
    assert steps
    assert all(1 <= done <= max(total, done) for _, done, total in steps)


def test_known_targets() -> None:
    known = known_sms("tensorrt-rtx")
    assert {"75", "86", "89", "120"} <= set(known)
    check_targets(("86", "89"), "int8", "fp32", known)
    with pytest.raises(InputError, match=r"not 90.*does not run on Hopper"):
        check_targets(("90",), "int8", "fp16", known)
    with pytest.raises(InputError, match="fp8 needs compute capability 89 or newer") as caught:
        check_targets(("86", "120"), "fp8", "fp16", known)
    assert caught.value.hint == "--target-sm 120"
    with pytest.raises(InputError, match="Turing has no BF16"):
        check_targets(("75",), "bf16", "fp32", known)
    check_targets(("75",), "fp16", "fp32", known)
    check_targets(("75",), "int8", "fp16", known)
    with pytest.raises(InputError, match="fp32 needs compute capability 80"):
        check_targets(("75", "89"), "int8", "fp32", known)


TURING = """
import sys
from rest_deploy.engine.tensorrt import Options, build
from rest_deploy.errors import BuildError
from tests.engine.test_tensorrt import PROFILE, silent
try:
    build("tensorrt-rtx", open(sys.argv[1], "rb").read(), Options((PROFILE,), ("75",)), silent)
except BuildError as error:
    print(error.message)
"""


def test_turing_has_no_float32_gemm(exported_nano: Path) -> None:
    """Why float32 begins at 80; the message says so when it comes from the builder.

    In a process of its own: after this failure NVIDIA's library (1.7.1) plans the INT8 convolutions
    of every later build in float.
    """
    said = subprocess.run([sys.executable, "-c", TURING, exported_nano], cwd=ROOT, check=True,
                          capture_output=True, text=True).stdout  # fmt: skip
    assert said.startswith("TensorRT-RTX has no float32 GEMM for Turing")


def test_what_the_step_raises_stops_the_build(exported_nano: Path) -> None:
    """Ctrl-C: not through NVIDIA's code, but after it has stopped."""
    phases: list[str] = []

    def interrupt(phase: str, _done: int, _total: int) -> None:
        phases.append(phase)
        if len(phases) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build("tensorrt-rtx", exported_nano.read_bytes(), SMALL, interrupt)
    assert len(phases) == 3


def test_a_truncated_graph(exported_nano: Path) -> None:
    with pytest.raises(BuildError, match="the file is not a whole ONNX model"):
        build("tensorrt-rtx", exported_nano.read_bytes()[:20_000], SMALL, silent)


def test_too_little_workspace(exported_nano: Path) -> None:
    options = Options(profiles=(PROFILE,), sms=("89",), workspace=0.001)
    with pytest.raises(BuildError, match="needs more memory than it may use") as caught:
        build("tensorrt-rtx", exported_nano.read_bytes(), options, silent)
    assert "--workspace-limit" in (caught.value.hint or "")
    assert "workspace" in caught.value.log


def test_an_operator_it_does_not_know(exported_nano: Path) -> None:
    import onnx

    model = onnx.load(exported_nano)
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Softmaxx"
    with pytest.raises(BuildError, match="does not know an operator"):
        build("tensorrt-rtx", model.SerializeToString(), SMALL, silent)


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_without_the_package(monkeypatch: pytest.MonkeyPatch, flavour: Any) -> None:
    monkeypatch.setattr(tensorrt, "installed", lambda _name: False)
    assert tensorrt.why_not(flavour) == (
        f"the package is not installed: pip install 'rest-deploy[{flavour}]'"
    )
    with pytest.raises(MissingDependencyError, match="pip install"):
        tensorrt.load(flavour)


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ("Cannot compile for target(s) sm86, because the model contains HW-specific datatypes: "
         "fp8_e4m3. In compileGraph", "a target GPU has no FP8"),
        ("Cannot compile for target(s) sm75, because the model contains HW-specific datatypes: "
         "b16. In compileGraph", "a target GPU has no BF16"),
        ("head.weight.fp8: something nobody has seen", "NVIDIA's builder failed: head.weight.fp8"),
    ],
)  # fmt: skip
def test_what_nvidias_messages_mean(message: str, meaning: str) -> None:
    """As 1.7.1 words them; a tensor's name is no diagnosis."""
    import tensorrt_rtx_bindings

    log = tensorrt.Log(tensorrt_rtx_bindings)
    log.lines.append(message)
    error = tensorrt._translated([message], log)
    assert error.message.startswith(meaning)
    assert error.log == message


def test_words_of_the_options() -> None:
    assert SMALL.words() == {}
    assert Options((PROFILE,), workspace=2.0, optimization_level=0, refit=True).words() == {
        "workspace": "2.0", "builder-optimization-level": "0", "refit": "True",
    }  # fmt: skip


@pytest.mark.parametrize("off", [True, False])
def test_tf32(off: bool) -> None:
    """NVIDIA's builder has it on; who asks for float32 does not get it."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    builder = trt.Builder(tensorrt.Log(trt).logger)
    config = builder.create_builder_config()
    assert config.get_flag(trt.BuilderFlag.TF32)
    tensorrt._configure(trt, config, replace(SMALL, no_tf32=off))
    assert config.get_flag(trt.BuilderFlag.TF32) != off


def test_no_collection_while_the_builder_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeing another builder in there waits for a lock that is held: it hung for good."""
    seen: list[bool] = []

    def load(_flavour: str) -> Any:
        seen.append(gc.isenabled())
        raise ZeroDivisionError

    monkeypatch.setattr(tensorrt, "load", load)
    with pytest.raises(ZeroDivisionError):
        build("tensorrt-rtx", b"", SMALL, silent)
    assert seen == [False]
    assert gc.isenabled()
