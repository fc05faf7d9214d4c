"""Engines as sessions run them, on a simulated GPU: what is asked of TensorRT, when, with what."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rest_deploy.bench.timers import TimedRunner
from rest_deploy.contracts import Profile, Runner
from rest_deploy.engine import tensorrt
from rest_deploy.engine.tensorrt import Flavour
from rest_deploy.errors import ArtifactError, DeviceError, InputError, ShapeError
from rest_deploy.runtime.kernel_cache import KernelCache
from rest_deploy.runtime.session import Float32, Session
from rest_deploy.runtime.tensorrt import GpuOptions, TensorRtRunner
from rest_deploy.verify.parity import Case, synthetic_images
from tests.doubles.cuda import SimulatedCuda
from tests.doubles.tensorrt import SimulatedContext, SimulatedTensorRt

real = pytest.importorskip("tensorrt_rtx_bindings")

SMALL = Profile(minimum=(1, 3, 32, 32), optimum=(2, 3, 64, 64), maximum=(4, 3, 64, 64))
WIDE = Profile(minimum=(1, 3, 64, 64), optimum=(1, 3, 96, 160), maximum=(2, 3, 96, 160))
ENGINE = b"vtrt and what NVIDIA writes"

Open = Callable[..., TensorRtRunner]


@pytest.fixture
def cuda() -> SimulatedCuda:
    return SimulatedCuda()


@pytest.fixture
def trt(
    cuda: SimulatedCuda, exported_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> SimulatedTensorRt:
    return simulated("tensorrt", cuda, exported_nano, monkeypatch)


def simulated(
    flavour: Flavour, cuda: SimulatedCuda, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> SimulatedTensorRt:
    module = SimulatedTensorRt(real, flavour, cuda)
    module.know(ENGINE, graph, (SMALL, WIDE))
    monkeypatch.setattr(tensorrt, "load", lambda _: module)
    return module


@pytest.fixture
def opened(trt: SimulatedTensorRt) -> Iterator[Open]:
    runners: list[TensorRtRunner] = []

    def make(**options: int) -> TensorRtRunner:
        runners.append(TensorRtRunner(ENGINE, trt.flavour, trt.cuda, GpuOptions(**options)))  # type: ignore[arg-type]  # all are numbers here
        return runners[-1]

    yield make
    for runner in runners:
        runner.close()
    assert trt.cuda.held() == dict.fromkeys(trt.cuda.held(), 0)


@pytest.fixture(scope="module")
def reference(exported_nano: Path) -> Session:
    return Session.open(exported_nano, threads=1)


def images(batch: int, height: int, width: int, seed: int = 0) -> Float32:
    return synthetic_images(Case(batch=batch, height=height, width=width), seed)


def infer(runner: TensorRtRunner, batch: Float32) -> Float32:
    return runner.infer({"image": batch})["logits"].astype(np.float32, copy=False)


def check(runner: TensorRtRunner, reference: Session, batch: Float32) -> None:
    assert np.abs(infer(runner, batch) - reference.run(batch)).max() < 1e-5


def test_it_is_a_runner(opened: Open) -> None:
    runner = opened()
    assert isinstance(runner, Runner)
    assert runner.backend == "tensorrt/cuda:0"
    assert runner.profiles == (SMALL, WIDE)
    assert (runner.inputs[0].name, runner.inputs[0].shape) == ("image", ("?", 3, "?", "?"))
    assert (runner.outputs[0].name, runner.outputs[0].shape) == ("logits", ("?", 1000))


def test_every_shape_every_time(opened: Open, reference: Session) -> None:
    """In any order, first time, graph captured, graph launched, buffers grown in between."""
    runner = opened()
    shapes = [(1, 32, 32), (2, 64, 64), (1, 96, 160), (4, 64, 48), (2, 96, 160)]
    for seed in range(4):
        for index in np.random.default_rng(seed).permutation(len(shapes)):
            batch, height, width = shapes[index]
            check(runner, reference, images(batch, height, width, seed))
    assert set(runner.lanes()[0].captured) == {(n, 3, h, w) for n, h, w in shapes}
    assert runner.cuda.launches > 0  # type: ignore[attr-defined]  # the simulated one counts


def test_a_graph_from_the_third_time_on(
    opened: Open, reference: Session, cuda: SimulatedCuda
) -> None:
    runner = opened()
    for launches in (0, 0, 1, 2):
        check(runner, reference, images(2, 64, 64, seed=launches))
        assert cuda.launches == launches
    assert runner.lanes()[0].captured == ((2, 3, 64, 64),)


def test_no_graphs(opened: Open, reference: Session, cuda: SimulatedCuda) -> None:
    runner = opened(graphs=0)
    for seed in range(4):
        check(runner, reference, images(1, 64, 64, seed))
    assert (cuda.launches, runner.lanes()[0].captured) == (0, ())


def test_a_graph_that_cannot_be_captured(
    opened: Open, reference: Session, cuda: SimulatedCuda, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs without, says so once, and is not tried again."""
    cuda.refuse_capture = True
    runner = opened()
    with caplog.at_level(logging.WARNING):
        for seed in range(5):
            check(runner, reference, images(1, 64, 64, seed))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("1x3x64x64 runs without a CUDA graph: ")
    assert "900" in runner.lanes()[0].uncapturable[1, 3, 64, 64]


def test_a_capture_that_tensorrt_refuses(
    opened: Open, reference: Session, trt: SimulatedTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = opened()
    original = trt.cuda.begin_capture

    def begin(stream: int) -> None:
        original(stream)
        trt.refuse = "execute_async_v3"

    def end(stream: int) -> int:
        trt.refuse = ""
        return ended(stream)

    ended = trt.cuda.end_capture
    monkeypatch.setattr(trt.cuda, "begin_capture", begin)
    monkeypatch.setattr(trt.cuda, "end_capture", end)
    for seed in range(4):
        check(runner, reference, images(1, 64, 64, seed))
    assert "made to fail" in runner.lanes()[0].uncapturable[1, 3, 64, 64]
    assert trt.cuda.held()["graphs"] == 0


def test_a_capture_in_which_something_is_raised_ends(
    opened: Open, trt: SimulatedTensorRt, reference: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt, say: the stream does not stay capturing, and the next lane is a good one."""
    runner = opened()
    check(runner, reference, images(1, 64, 64))
    ends: list[int] = []
    execute, end = SimulatedContext.execute_async_v3, trt.cuda.end_capture

    def interrupted(context: SimulatedContext, stream: int) -> bool:
        if trt.cuda.capturing(stream):
            raise KeyboardInterrupt
        return execute(context, stream)

    def ended(stream: int) -> int:
        ends.append(stream)
        return end(stream)

    monkeypatch.setattr(SimulatedContext, "execute_async_v3", interrupted)
    monkeypatch.setattr(trt.cuda, "end_capture", ended)
    with pytest.raises(KeyboardInterrupt):
        infer(runner, images(1, 64, 64))
    assert len(ends) == 1
    assert trt.cuda.held()["graphs"] == 0
    monkeypatch.setattr(SimulatedContext, "execute_async_v3", execute)
    for seed in range(3):
        check(runner, reference, images(1, 64, 64, seed))
    assert runner.lanes()[0].captured


def test_most_graphs_are_kept_for_what_comes_most(
    opened: Open, reference: Session, cuda: SimulatedCuda
) -> None:
    """Shapes in rotation do not push each other out; one that comes far more often does."""
    runner = opened(graphs=2)
    shapes = [(1, 32, 32), (1, 32, 48), (1, 32, 64)]
    for seed in range(4):
        for shape in shapes:
            check(runner, reference, images(*shape, seed))
    assert cuda.held()["graphs"] == 2
    kept = set(runner.lanes()[0].captured)
    assert kept == {(1, 3, 32, 32), (1, 3, 32, 48)}
    for seed in range(8):
        check(runner, reference, images(1, 32, 64, seed))
    assert (1, 3, 32, 64) in runner.lanes()[0].captured
    assert cuda.held()["graphs"] == 2


def test_times_of_the_device(
    opened: Open, reference: Session, cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One piece of work between each pair of events, with a graph and without; same answers."""
    runner = opened()
    recorded: list[int] = []
    record = cuda.record

    def noted(event: int, stream: int) -> None:
        recorded.append(event)
        record(event, stream)

    monkeypatch.setattr(cuda, "record", noted)
    runner.infer({"image": images(1, 64, 64)})
    assert recorded == [], "no events where nobody asks for times"
    for seed in range(4):
        batch = images(1, 64, 64, seed)
        answer, times = runner.infer_timed({"image": batch})
        assert np.abs(answer["logits"].astype(np.float32) - reference.run(batch)).max() < 1e-5
        assert (times.h2d, times.d2h) == (1.0, 1.0)
        assert times.compute >= 1.0
        assert times.enqueue >= 0.0
    assert isinstance(runner, TimedRunner), "bench finds the device's clock by it"
    assert cuda.launches > 0
    assert len(recorded) == 16
    assert len(set(recorded)) == 4, "events are made once"


def test_the_tuned_profile_is_taken(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = opened(graphs=0)
    runner.infer({"image": images(1, 64, 64)})
    lane = runner.lanes()[0]
    assert lane.device_bytes == 3 * 64 * 64 * 4 + 1000 * 4 + 4 * 64 * 64 * 4
    runner.infer({"image": images(1, 96, 96)})
    assert lane.device_bytes == 3 * 96 * 96 * 4 + 1000 * 4 + 2 * 96 * 160 * 4


@pytest.mark.parametrize("shape", [(5, 3, 64, 64), (1, 3, 64, 161), (1, 3, 512, 512)])
def test_outside_every_profile(opened: Open, shape: tuple[int, ...]) -> None:
    runner = opened()
    with pytest.raises(ShapeError, match="nearest of its 2 profiles") as caught:
        runner.infer({"image": np.zeros(shape, np.float32)})
    assert "build-engine --max-shapes" in (caught.value.hint or "")
    assert runner.lanes() == ()


def test_not_images(opened: Open) -> None:
    with pytest.raises(ShapeError, match="expected"):
        opened().infer({"image": np.zeros((3, 64, 64), np.float32)})


def test_many_threads(opened: Open, reference: Session, trt: SimulatedTensorRt) -> None:
    """More threads than contexts, shapes mixed: nobody gets another's answer."""
    runner = opened(contexts=3, graphs=2)
    batches = [images(1 + i % 2, 32 + 16 * (i % 3), 64, seed=i) for i in range(8)]
    expected = [reference.run(batch) for batch in batches]
    failures: list[str] = []

    def work(index: int) -> None:
        try:
            for _ in range(6):
                assert np.abs(infer(runner, batches[index]) - expected[index]).max() < 1e-5
        except BaseException as error:  # noqa: BLE001  # whatever it is, the test tells it
            failures.append(f"{index}: {error}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert 1 <= len(runner.lanes()) <= 3


def test_one_context_for_one_thread(opened: Open) -> None:
    runner = opened(contexts=4)
    for _ in range(3):
        runner.infer({"image": images(1, 64, 64)})
    assert len(runner.lanes()) == 1


def test_a_lane_that_failed_is_not_used_again(
    opened: Open, reference: Session, trt: SimulatedTensorRt
) -> None:
    runner = opened()
    check(runner, reference, images(1, 64, 64))
    failed = runner.lanes()[0]
    trt.refuse = "execute_async_v3"
    with pytest.raises(DeviceError, match=r"TensorRT refused to enqueue an inference: .* made to"):
        runner.infer({"image": images(1, 64, 64)})
    assert runner.lanes() == ()
    trt.refuse = ""
    check(runner, reference, images(1, 64, 64))
    assert runner.lanes()[0] is not failed


def test_no_memory(trt: SimulatedTensorRt) -> None:
    cuda = trt.cuda = SimulatedCuda(memory=100_000)
    runner = TensorRtRunner(ENGINE, "tensorrt", cuda, GpuOptions())
    with pytest.raises(DeviceError, match="out of GPU memory"):
        runner.infer({"image": images(4, 64, 64)})
    runner.close()
    assert cuda.held() == dict.fromkeys(cuda.held(), 0)


def test_memory_for_one_context_only(
    trt: SimulatedTensorRt, reference: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """Threads that were promised three go on with the one there is room for, and it is said."""
    one = 4 * 64 * 64 * 4 + 2 * (2 * 3 * 64 * 64 * 4)
    cuda = trt.cuda = SimulatedCuda(memory=one)
    runner = TensorRtRunner(ENGINE, "tensorrt", cuda, GpuOptions(contexts=3, graphs=0))
    batches = [images(2, 64, 64, seed) for seed in range(6)]
    expected = [reference.run(batch) for batch in batches]
    wrong: list[str] = []

    def work(index: int) -> None:
        for _ in range(4):
            try:
                if np.abs(infer(runner, batches[index]) - expected[index]).max() > 1e-5:
                    wrong.append(f"{index}: another's answer")
            except DeviceError as error:
                wrong.append(f"{index}: {error}")

    infer(runner, batches[0])
    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert "no memory for more than 1 contexts at once" in caplog.text
    runner.close()


def test_an_engine_that_tensorrt_refuses(trt: SimulatedTensorRt) -> None:
    with pytest.raises(ArtifactError, match=r"tensorrt refuses the engine: .*magic tag"):
        TensorRtRunner(b"other", "tensorrt", trt.cuda, GpuOptions())


def test_closed(opened: Open) -> None:
    runner = opened()
    runner.infer({"image": images(1, 64, 64)})
    runner.close()
    with pytest.raises(InputError, match="the session is closed"):
        runner.infer({"image": images(1, 64, 64)})


def test_forgotten_buffers_are_freed(trt: SimulatedTensorRt) -> None:
    """Without close: memory goes with the objects (streams and graphs go with the process)."""
    runner = TensorRtRunner(ENGINE, "tensorrt", trt.cuda, GpuOptions())
    runner.infer({"image": images(1, 64, 64)})
    assert trt.cuda.held()["device"] == 3
    del runner
    gc.collect()
    assert trt.cuda.held()["device"] == trt.cuda.held()["pinned"] == 0


@pytest.mark.parametrize("options", [{"contexts": 0}, {"graphs": -1}, {"ordinal": -1}])
def test_options(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected ordinal >= 0"):
        GpuOptions(**options)  # type: ignore[arg-type]  # numbers


# --- TensorRT-RTX: its own graphs, its kernel cache ----------------------------------------------


@pytest.fixture
def rtx(
    cuda: SimulatedCuda, exported_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> SimulatedTensorRt:
    return simulated("tensorrt-rtx", cuda, exported_nano, monkeypatch)


def run_rtx(rtx: SimulatedTensorRt, file: Path, *sizes: int) -> bytes | None:
    """What is in the cache when a session begins that then runs these sizes."""
    kernels = KernelCache(file, "00" * 32)
    saved = kernels.load()
    runner = TensorRtRunner(ENGINE, "tensorrt-rtx", rtx.cuda, GpuOptions(), kernels)
    for size in sizes:
        for _ in range(3):
            runner.infer({"image": images(1, size, size)})
    runner.close()
    return saved


def test_rtx_captures_by_itself(rtx: SimulatedTensorRt, reference: Session) -> None:
    runner = TensorRtRunner(ENGINE, "tensorrt-rtx", rtx.cuda, GpuOptions())
    for seed in range(4):
        check(runner, reference, images(1, 64, 64, seed))
    assert runner.own_graphs
    assert rtx.cuda.launches == 0
    runner.close()


def test_kernels_are_kept(rtx: SimulatedTensorRt, tmp_path: Path) -> None:
    file = tmp_path / "x.kernels"
    assert run_rtx(rtx, file, 32, 64) is None
    rtx.compiled.clear()
    kept = run_rtx(rtx, file)
    assert kept is not None
    assert rtx.compiled == {(1, 3, 32, 32), (1, 3, 64, 64)}


def test_kernels_compiled_since_are_kept_at_the_end(rtx: SimulatedTensorRt, tmp_path: Path) -> None:
    kernels = KernelCache(tmp_path / "x.kernels", "00" * 32)
    runner = TensorRtRunner(ENGINE, "tensorrt-rtx", rtx.cuda, GpuOptions(), kernels)
    rtx.compiled.add((1, 3, 32, 32))  # as by an inference on the device
    runner.close()
    assert b"(1, 3, 32, 32)" in (KernelCache(kernels.path, "00" * 32).load() or b"")


@pytest.mark.parametrize("harm", ["flipped", "cut", "empty", "another engine's"])
def test_damaged_kernels_are_not_handed_on(
    rtx: SimulatedTensorRt, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "x.kernels"
    run_rtx(rtx, file, 32)
    good = file.read_bytes()
    bad = {"flipped": good[:-1] + bytes([good[-1] ^ 1]), "cut": good[:-1], "empty": b"",
           "another engine's": good}[harm]  # fmt: skip
    file.write_bytes(bad)
    other = KernelCache(file, "11" * 32 if harm == "another engine's" else "00" * 32)
    assert other.load() is None
    assert "damaged or another engine's" in caplog.text
    run_rtx(rtx, file, 32)
    assert file.read_bytes() == good, "written anew"


def test_kernels_of_another_gpu(
    rtx: SimulatedTensorRt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "x.kernels"
    KernelCache(file, "00" * 32).save(b"of another driver")
    run_rtx(rtx, file, 32)
    assert "is for another GPU, driver or version" in caplog.text


def test_a_folder_that_cannot_be_written(
    rtx: SimulatedTensorRt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    run_rtx(rtx, tmp_path / "file" / "x.kernels", 32)
    assert "the kernel cache is not " in caplog.text


# --- the doubles are not more than what they stand for -------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("SimulatedContext", "IExecutionContext"), ("SimulatedRuntime", "Runtime"),
     ("SimulatedEngine", "ICudaEngine"), ("SimulatedConfig", "IRuntimeConfig"),
     ("SimulatedCache", "IRuntimeCache"), ("SimulatedSerialization", "ISerializationConfig"),
     ("SimulatedRefitter", "Refitter"), ("SimulatedParserRefitter", "OnnxParserRefitter")],
)  # fmt: skip
def test_doubles_have_only_nvidias_methods(ours: str, theirs: str) -> None:
    from tests.doubles import tensorrt as doubles

    names = [name for name in vars(getattr(doubles, ours)) if not name.startswith("_")]
    assert names
    assert [name for name in names if not hasattr(getattr(real, theirs), name)] == []
