"""OpenVINO's runner: what the contract suite does not ask of every backend."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

from rest_deploy import errors, verbs
from rest_deploy.engine import openvino
from rest_deploy.engine.compile_cache import DIGEST, CompileCache
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.engine.openvino import (
    OpenVinoRunner,
    cache_key,
    check_threads,
    metadata_json,
    streams_for,
    version,
)
from rest_deploy.engine.openvino_profile import operation
from rest_deploy.errors import ArtifactError, InputError, MissingDependencyError, ShapeError
from rest_deploy.verify.metrics import relative_error

Array = np.ndarray
BF16 = "BF16" in openvino._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def images(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def logits(runner: OpenVinoRunner | OnnxRuntimeRunner, given: Array) -> Array:
    return runner.infer({"image": given})["logits"]


@pytest.fixture(scope="module")
def runner(exported_nano: Path) -> OpenVinoRunner:
    return OpenVinoRunner(exported_nano, threads=1)


@pytest.fixture(scope="module")
def reference(exported_nano: Path) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(exported_nano, threads=1)


# --- which precision ------------------------------------------------------------------------------


def executed(runner: OpenVinoRunner) -> set[str]:
    kernels = map(operation, runner.executed().get_ordered_ops())
    return {k.precision for k in kernels if k.operator in ("Convolution", "MatMul")}


def test_float32_unless_told(runner: OpenVinoRunner) -> None:
    """Left alone, OpenVINO computes in bf16 where the CPU has it."""
    assert executed(runner) == {"fp32"}
    if BF16:
        core = openvino._core()
        left_alone = core.compile_model(openvino.read_model(runner.path), "CPU")
        assert str(left_alone.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'bfloat16'>"


@pytest.mark.skipif(not BF16, reason="this CPU has no bf16 units")
def test_bf16(runner: OpenVinoRunner) -> None:
    sixteen = OpenVinoRunner(runner.path, threads=1, precision="bf16")
    assert executed(sixteen) == {"bf16"}
    given = images(2, 3, 64, 64)
    error = relative_error(logits(runner, given), logits(sixteen, given))
    assert 1e-4 < error < 0.5  # fresh weights: their attention maps are flat, and bf16 is coarse


def test_bf16_that_is_not_here(monkeypatch: pytest.MonkeyPatch, exported_nano: Path) -> None:
    class Old:
        def get_property(self, *_: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "_core", Old)
    with pytest.raises(MissingDependencyError, match="no bf16 units"):
        OpenVinoRunner(exported_nano, precision="bf16")


# --- the first run --------------------------------------------------------------------------------

SMALLEST_FIRST = ((1, 3, 32, 32), (1, 3, 224, 224), (2, 3, 97, 131))


def worst(runner: OpenVinoRunner, reference: OnnxRuntimeRunner) -> float:
    given = [images(*shape) for shape in SMALLEST_FIRST]
    return max(relative_error(logits(reference, x), logits(runner, x)) for x in given)


def test_whatever_shape_comes_first(
    exported_nano: Path, reference: OnnxRuntimeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worst(OpenVinoRunner(exported_nano, threads=1), reference) < 1e-5
    monkeypatch.setattr(openvino, "FIRST", (1, 3, 32, 32))
    assert worst(OpenVinoRunner(exported_nano, threads=1), reference) < 1e-5, "q's bias hides it"


@pytest.mark.skipif(not version().startswith("2026.4.1"), reason="seen in 2026.4.1")
def test_the_run_before_is_not_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as OpenVINO is so: attention without an addition in it, after one with one key."""
    card = (Path(__file__).parents[2] / "models" / "rest_nano.toml").read_text()
    variant = tmp_path / "no_bias.toml"
    variant.write_text(card.replace("qkv_bias = true", "qkv_bias = false"))
    path = Path(verbs.export(str(variant), output_dir=tmp_path).path)
    reference = OnnxRuntimeRunner(path)
    assert worst(OpenVinoRunner(path, threads=1), reference) < 1e-5
    monkeypatch.setattr(openvino, "FIRST", (1, 3, 32, 32))
    assert worst(OpenVinoRunner(path, threads=1), reference) > 1e-2


# --- shapes ---------------------------------------------------------------------------------------


def test_compiled_for_one_shape(runner: OpenVinoRunner) -> None:
    fixed = runner.specialized((2, 3, 64, 96))
    assert fixed.inputs[0].shape == (2, 3, 64, 96)
    assert fixed.outputs[0].shape == (2, 1000)
    given = images(2, 3, 64, 96)
    np.testing.assert_allclose(logits(fixed, given), logits(runner, given), atol=1e-5, rtol=0)
    with pytest.raises(ShapeError, match=r"float32 of shape \(1, 3, 64, 96\) for 'image'"):
        logits(fixed, images(1, 3, 64, 96))


@pytest.mark.parametrize(
    ("batch", "threads", "streams"),
    [(1, 2, 1), (8, 2, 2), (8, 1, 1), (3, 2, 1), (6, 4, 2), (8, 64, 8), (5, 5, 5)],
)
def test_streams_share_batch_and_threads(batch: int, threads: int, streams: int) -> None:
    assert streams_for(batch, threads) == streams


def test_parts_of_a_batch_side_by_side(exported_nano: Path, tmp_path: Path) -> None:
    """Answers in the order of the images, the cache apart from that of one stream."""
    cache = CompileCache(tmp_path, "key")
    shape = (4, 3, 64, 96)
    one = OpenVinoRunner(exported_nano, shape=shape, cache=cache)
    two = OpenVinoRunner(exported_nano, shape=shape, cache=cache, streams=2)
    assert (one.inputs, one.outputs) == (two.inputs, two.outputs)
    assert not two.from_cache
    given = images(*shape)
    np.testing.assert_array_equal(logits(one, given), logits(two, given))
    given[3, 0, 0, 0] = np.nan
    assert np.isnan(logits(two, given)).any(axis=1).tolist() == [False, False, False, True]
    again = OpenVinoRunner(exported_nano, shape=shape, cache=cache, streams=2)
    assert again.from_cache
    np.testing.assert_array_equal(logits(again, given), logits(two, given))
    with pytest.raises(ShapeError, match=r"expected float32 \(4, 3, 64, 96\)"):
        logits(two, images(2, 3, 64, 96))


def test_a_part_that_fails_fails_the_call(exported_nano: Path) -> None:
    """And leaves none running: the next call gets its own answers."""
    runner = OpenVinoRunner(exported_nano, shape=(4, 3, 64, 64), streams=2)
    given = images(4, 3, 64, 64)
    expected = logits(runner, given)
    (requests,) = runner._idle
    real, requests[1] = requests[1], Broken()
    with pytest.raises(RuntimeError, match="no more memory"):
        logits(runner, given)
    requests[1] = real
    np.testing.assert_array_equal(logits(runner, given), expected)


class Broken:
    def start_async(self, *_: object, **__: object) -> None:
        pass

    def wait(self) -> None:
        raise RuntimeError("no more memory")


@pytest.mark.parametrize("streams", [2, 3])
def test_streams_that_do_not_fit(exported_nano: Path, streams: int) -> None:
    shape = None if streams == 2 else (4, 3, 64, 64)
    with pytest.raises(InputError, match="do not share a batch"):
        OpenVinoRunner(exported_nano, shape=shape, streams=streams)


@pytest.mark.parametrize(
    "given", [images(1, 1, 64, 64), images(3, 64, 64), images(0, 3, 64, 64),
              images(1, 3, 64, 64).astype(np.float64)],
)  # fmt: skip
def test_what_openvino_would_take(runner: OpenVinoRunner, given: Array) -> None:
    """It runs empty batches and converts float64 by itself."""
    with pytest.raises(ShapeError, match="expected float32"):
        logits(runner, given)


def test_another_input_name(runner: OpenVinoRunner) -> None:
    with pytest.raises(InputError, match="no input 'image' among pixels"):
        runner.infer({"pixels": images(1, 3, 64, 64)})


# --- threads and requests -------------------------------------------------------------------------


def test_threads(runner: OpenVinoRunner) -> None:
    assert runner._compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert runner._compiled.get_property("NUM_STREAMS") == 1
    cores = len(os.sched_getaffinity(0))
    check_threads(cores)
    check_threads(None)
    for wrong in (cores + 1, 0):
        with pytest.raises(InputError, match=f"{wrong} threads were asked for; OpenVINO has"):
            OpenVinoRunner(runner.path, threads=wrong)


def test_requests_are_bounded(exported_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten threads through three requests, and each request is used again."""
    monkeypatch.setattr(openvino, "MOST_REQUESTS", 3)
    runner = OpenVinoRunner(exported_nano, threads=1)
    made: list[object] = []
    create = runner._compiled.create_infer_request

    class Counting:
        def create_infer_request(self) -> object:
            made.append(create())
            return made[-1]

    runner._compiled = Counting()
    expected = logits(runner, images(1, 3, 32, 32))
    answers: list[Array] = []

    def work() -> None:
        answers.extend(logits(runner, images(1, 3, 32, 32)) for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) + 1 <= 3  # one was made before it was counted
    assert len(answers) == 30
    assert all(np.array_equal(answer, expected) for answer in answers)


def test_closed(exported_nano: Path) -> None:
    runner = OpenVinoRunner(exported_nano, threads=1)
    runner.close()
    runner.close()
    with pytest.raises(InputError, match="is closed"):
        logits(runner, images(1, 3, 32, 32))


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1000], lambda b: b[:0], lambda b: b[-4:], lambda b: b[: len(b) // 2]]
)
def test_unreadable(
    exported_nano: Path,
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One line, and no other frontend's complaints beside it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(damage(exported_nano.read_bytes()))
    with pytest.raises(ArtifactError, match=r"OpenVINO cannot (load|compile)") as caught:
        OpenVinoRunner(path)
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")


def test_metadata(exported_nano: Path, reference: OnnxRuntimeRunner) -> None:
    assert metadata_json(exported_nano) == reference.metadata_json


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, exported_nano: Path) -> None:
    monkeypatch.setattr(errors, "installed", lambda name: name != "openvino")
    with pytest.raises(MissingDependencyError) as caught:
        OpenVinoRunner(exported_nano)
    assert caught.value.hint == "pip install 'rest-deploy[openvino]'"


# --- the compile cache ----------------------------------------------------------------------------


def cache_of(folder: Path, threads: int | None = 1) -> CompileCache:
    return CompileCache(folder, cache_key("0" * 64, threads, "f32"))


def test_from_the_cache(exported_nano: Path, tmp_path: Path) -> None:
    cache, given = cache_of(tmp_path / "c"), images(2, 3, 64, 64)
    first = OpenVinoRunner(exported_nano, threads=1, cache=cache)
    again = OpenVinoRunner(exported_nano, threads=1, cache=cache)
    assert (first.from_cache, again.from_cache) == (False, True)
    np.testing.assert_array_equal(logits(first, given), logits(again, given))
    assert (again.inputs, again.outputs) == (first.inputs, first.outputs)
    assert executed(again) == {"fp32"}
    assert not again.specialized((1, 3, 32, 32)).from_cache
    assert again.specialized((1, 3, 32, 32)).from_cache
    assert len(list(cache.folder.iterdir())) == 2


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.8, 0.999])
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_damaged_cache(
    exported_nano: Path,
    tmp_path: Path,
    how: str,
    share: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Never used, said once, and replaced. OpenVINO itself would take most of the flipped ones."""
    cache, given = cache_of(tmp_path / "c"), images(1, 3, 32, 32)
    expected = logits(OpenVinoRunner(exported_nano, threads=1, cache=cache), given)
    path = cache.path("dynamic")
    content = bytearray(path.read_bytes())
    position = int(share * len(content))
    if how == "flip":
        content[position] ^= 0xFF
    path.write_bytes(content if how == "flip" else content[:position])
    runner = OpenVinoRunner(exported_nano, threads=1, cache=cache)
    assert not runner.from_cache
    assert len(caplog.records) == 1
    np.testing.assert_array_equal(logits(runner, given), expected)
    assert OpenVinoRunner(exported_nano, threads=1, cache=cache).from_cache


def test_a_whole_blob_that_openvino_refuses(
    exported_nano: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of(tmp_path / "c")
    cache.save("dynamic", b"not OpenVINO's")
    assert not OpenVinoRunner(exported_nano, threads=1, cache=cache).from_cache
    assert "refuses the compile cache" in caplog.text
    assert cache.path("dynamic").stat().st_size > DIGEST + 1000


def test_the_key_names_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {cache_key("a", 1, "f32"), cache_key("b", 1, "f32"), cache_key("a", 2, "f32"),
            cache_key("a", None, "f32"), cache_key("a", 1, "bf16")}  # fmt: skip
    monkeypatch.setattr(openvino, "version", lambda: "another")
    keys.add(cache_key("a", 1, "f32"))
    assert len(keys) == 6
