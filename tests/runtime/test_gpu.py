"""The GPU runtime on a GPU: driver, streams, memory and graphs are NVIDIA's, engines are PyTorch's
(tests/doubles/gpu_tensorrt.py), files, checks and sessions are ours. Once for every package that
gives GPU memory. Skipped where no GPU is.
"""

from __future__ import annotations

import copy
import functools
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from rest_deploy.artifact import Sidecar, sealed, sha256_file, sidecar_path, to_json
from rest_deploy.cards import load_card
from rest_deploy.contracts import Build, Dims, EngineFit, ModelMetadata, Profile
from rest_deploy.cuda_driver import Driver
from rest_deploy.engine import tensorrt
from rest_deploy.errors import (
    ArtifactError,
    DeviceError,
    DeviceMemoryError,
    InputError,
    MissingDependencyError,
    ShapeError,
    installed,
)
from rest_deploy.layout import layout_of
from rest_deploy.preprocess import nearest_pixels, normalize
from rest_deploy.runtime import loading
from rest_deploy.runtime.cuda import PROVIDERS, DeviceBuffer
from rest_deploy.runtime.execution import Lane
from rest_deploy.runtime.session import Images, Session
from rest_deploy.runtime.tensorrt import GpuOptions, TensorRtRunner
from rest_deploy.signature import OUTPUT_KINDS, outputs_for
from rest_deploy.verify.parity import Case, synthetic_images
from tests.conftest import TRAINED_WEIGHTS

try:
    Driver()
except MissingDependencyError as error:
    pytest.skip(f"no GPU: {error.message}", allow_module_level=True)
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("this PyTorch does not see the GPU", allow_module_level=True)
if not any(map(installed, PROVIDERS.values())):
    pytest.skip(f"none of {', '.join(PROVIDERS)} is installed", allow_module_level=True)

# They import PyTorch, which is certain from here on.
from rest_deploy.model.checkpoint import load_model, read_checkpoint  # noqa: E402  # as above
from rest_deploy.model.deploy import to_deploy  # noqa: E402  # as above
from rest_deploy.model.outputs import Outputs, takes  # noqa: E402  # as above
from rest_deploy.model.reference import Reference  # noqa: E402  # as above
from tests.doubles.gpu_tensorrt import Context, GpuTensorRt, Network  # noqa: E402  # as above

DEVICE = "cuda"

SMALL = Profile(minimum=(1, 3, 32, 32), optimum=(2, 3, 64, 64), maximum=(4, 3, 64, 64))
WIDE = Profile(minimum=(1, 3, 64, 64), optimum=(1, 3, 96, 160), maximum=(2, 3, 96, 160))
SHAPES = ((1, 32, 32), (2, 64, 64), (1, 96, 160), (3, 33, 47), (4, 64, 48), (2, 96, 160))
"""(batch, height, width), of both profiles."""

EXACT = 1e-5
"""Relative L2 error of a float32 engine against float64, at most: on CPUs it is 1e-6, TF32 would
make it 1e-3."""

SAME = 5e-6
"""Of float32 against float32 on the same GPU, where a library may choose another kernel. Another
image's answer is off by 1."""

NAP = 400_000_000
"""Cycles of the GPU, about 0.2 s: longer than everything that must not wait for it."""

MIB = 1 << 20

Arrays = Mapping[str, npt.NDArray[Any]]
Kind = Literal["logits", "everything", "pixels"]
KINDS: tuple[Kind, ...] = ("logits", "everything", "pixels")
Open = Callable[..., Session]


@dataclass(frozen=True)
class Model:
    """What an engine computes, and what it must: `reference` in float64 on the CPU."""

    network: Network
    metadata: ModelMetadata
    reference: Reference

    def images(self, batch: int, height: int, width: int, seed: int = 0) -> Images:
        """As the model takes them, (N, 3, H, W) float32 or (N, H, W, 3) uint8."""
        made = synthetic_images(Case(batch=batch, height=height, width=width), seed)
        if self.metadata.input_kind == "float":
            return made
        return nearest_pixels(made, self.metadata.card.preprocessing)

    def exact(self, images: Any) -> Arrays:
        if self.metadata.input_kind == "uint8":
            images = np.stack([normalize(one, self.metadata.card.preprocessing) for one in images])
        return self.reference.all(images)

    def eager(self, images: Any) -> Arrays:
        """By PyTorch on the GPU, on its default stream."""
        with torch.inference_mode():
            found = self.network.module(on_gpu(images))
        tensors = found if isinstance(found, tuple) else (found,)
        names = [output.name for output in self.network.outputs]
        return {name: one.cpu().numpy() for name, one in zip(names, tensors, strict=True)}


@functools.cache
def model(kind: Kind) -> Model:
    """The nano variant trained on photos, rewritten for deployment as in an export. "logits": that
    output alone; "everything": all, of normalized images; "pixels": all, of uint8."""
    card = load_card("nano")
    loaded = load_model(card, read_checkpoint(TRAINED_WEIGHTS))
    kinds = ("logits",) if kind == "logits" else OUTPUT_KINDS
    unit = kind == "pixels"
    outputs = outputs_for(kinds, card.architecture, loaded.num_classes, unit_length=unit)
    input_kind: Literal["float", "uint8"] = "uint8" if kind == "pixels" else "float"
    module = Outputs(to_deploy(loaded.module)[0], outputs, takes(input_kind, card.preprocessing))
    metadata = ModelMetadata(
        schema=1, variant=card.variant, card=card, num_classes=loaded.num_classes,
        labels=loaded.labels, input_name="image", output_name=outputs[0].name,
        instance_norm="folded", opset=20, weights=loaded.weights, tools={}, outputs=outputs,
        input_kind=input_kind,
    )  # fmt: skip
    network = Network(
        copy.deepcopy(module).to(DEVICE), outputs, layout_of(input_kind), (SMALL, WIDE)
    )
    return Model(network, metadata, Reference(loaded.module, "float64", outputs))


@functools.cache
def exact(kind: Kind, shape: tuple[int, int, int], seed: int) -> Arrays:
    """In float64 on the CPU, where a core that waits for the others takes longer than the sum."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return model(kind).exact(model(kind).images(*shape, seed))
    finally:
        torch.set_num_threads(threads)


class Watch:
    """What a provider has handed out and not got back, by the call that made it, with its size
    where it has one; and how many graphs were launched."""

    PAIRS = (("allocate", "free"), ("allocate_pinned", "free_pinned"),
             ("create_stream", "destroy_stream"), ("create_event", "destroy_event"),
             ("end_capture", "destroy_graph"))  # fmt: skip

    def __init__(self, cuda: Any) -> None:
        self.held: dict[str, dict[int, int]] = {make: {} for make, _ in self.PAIRS}
        self.launches = 0
        for make, give in self.PAIRS:
            self._replace(cuda, make, give)
        launch = cuda.launch

        def counted(graph: int, stream: int) -> None:
            self.launches += 1
            launch(graph, stream)

        cuda.launch = counted

    def counts(self) -> dict[str, int]:
        return {make: len(handles) for make, handles in self.held.items() if handles}

    def _replace(self, cuda: Any, make: str, give: str) -> None:
        held, made, given = self.held[make], getattr(cuda, make), getattr(cuda, give)

        def noted(*arguments: int) -> int:
            handle = int(made(*arguments))
            assert handle not in held
            held[handle] = arguments[0] if arguments else 0
            return handle

        def returned(handle: int) -> None:
            del held[handle]  # first: whoever is next may get the same one
            given(handle)

        setattr(cuda, make, noted)
        setattr(cuda, give, returned)


@pytest.fixture(autouse=True, scope="module")
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32, and the same kernel for the same shape."""
    products, library = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, library.allow_tf32, library.deterministic
    products.allow_tf32 = library.allow_tf32 = False
    library.deterministic = True
    yield
    products.allow_tf32, library.allow_tf32, library.deterministic = before


@pytest.fixture(params=list(PROVIDERS))
def provider(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if not installed(PROVIDERS[name]):
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> GpuTensorRt:
    module = GpuTensorRt()
    monkeypatch.setattr(tensorrt, "load", lambda _: module)
    monkeypatch.setattr(
        tensorrt, "why_not", lambda name: None if name == "tensorrt" else "not here"
    )
    return module


@pytest.fixture
def opened(provider: str, trt: GpuTensorRt, tmp_path: Path) -> Iterator[Open]:
    """Sessions of engine files, which have to give back whatever they take."""
    sessions: list[Session] = []

    def make(kind: Kind = "logits", **options: Any) -> Session:
        path = engine_file(tmp_path / f"{len(sessions)}.engine", kind, trt)
        session = Session.open(path, gpu=GpuOptions(cuda=provider, **options))
        watches[id(session)] = Watch(runner_of(session).cuda)
        sessions.append(session)
        return session

    yield make
    for session in sessions:
        session.close()
    gc.collect()
    left = [watches.pop(id(session)).counts() for session in sessions]
    assert left == [{}] * len(sessions)


watches: dict[int, Watch] = {}
"""Of the sessions that `opened` made, by their id."""


def engine_file(path: Path, kind: Kind, trt: GpuTensorRt, **changes: Any) -> Path:
    """An engine for the GPU that is here, with a whole sidecar; `changes`: of its fit."""
    found = model(kind)
    path.write_bytes(trt.know(f"ptrt {path.name} {kind}".encode(), found.network))
    fit: dict[str, Any] = {
        "flavour": "tensorrt", "version": trt.__version__, "sms": (loading.examine().sm,),
        "driver": "", "profiles": found.network.profiles, "options": {}, "key": "k",
        "graph_sha256": "g", "build_seconds": 1.0, "layers": 1, "scratch_bytes": 1,
    }  # fmt: skip
    build = Build(precision="fp32", backend="tensorrt", io_type="float32", obtained={},
                  source_sha256="s", fit=EngineFit(**{**fit, **changes}))  # fmt: skip
    sidecar = Sidecar(
        schema=1, kind="engine", file=path.name, sha256=sha256_file(path),
        size_bytes=path.stat().st_size, metadata=found.metadata, parity=None, passes={},
        command="rest-deploy build-engine", build=build,
    )  # fmt: skip
    sidecar_path(path).write_text(to_json(sealed(sidecar)), encoding="utf-8")
    return path


def runner_of(session: Session) -> TensorRtRunner:
    assert isinstance(session.runner, TensorRtRunner)
    return session.runner


def only_lane(session: Session) -> Lane:
    (lane,) = runner_of(session).lanes()
    return lane


def captured(session: Session) -> set[Dims]:
    return set(only_lane(session).captured)


def watch(session: Session) -> Watch:
    return watches[id(session)]


def on_gpu(images: Any) -> Any:
    """A tensor of its own on the GPU, there when this returns."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).to(DEVICE)
    torch.cuda.current_stream().synchronize()
    return tensor


def check(found: Arrays, expected: Arrays, bound: float) -> None:
    """Every output within `bound`, a relative L2 error."""
    assert list(found) == list(expected)
    for name, right in expected.items():
        assert found[name].shape == right.shape
        error = np.linalg.norm(found[name] - right) / np.linalg.norm(right)
        assert error <= bound, f"{name}: {error:.1e}"


def check_run(session: Session, kind: Kind, shape: tuple[int, int, int], seed: int = 0) -> None:
    """One request from the host against float64 on the CPU and against PyTorch on the GPU."""
    images = model(kind).images(*shape, seed)
    found = session.run_all(images)
    check(found, exact(kind, shape, seed), EXACT)
    check(found, model(kind).eager(images), SAME)


def dims(shape: tuple[int, int, int], kind: Kind = "logits") -> Dims:
    """(batch, height, width) -> the input's shape."""
    return model(kind).network.layout.shape((shape[0], 3, shape[1], shape[2]))


# --- from the host --------------------------------------------------------------------------------


def test_a_file_is_opened(opened: Open, provider: str, trt: GpuTensorRt, tmp_path: Path) -> None:
    """With what the driver says of the GPU, through the package that was asked for."""
    session = opened()
    runner = runner_of(session)
    assert (runner.backend, runner.cuda.name) == ("tensorrt/cuda:0", provider)
    assert runner.profiles == (SMALL, WIDE)
    other = engine_file(tmp_path / "other.engine", "logits", trt, sms=("75",))
    with pytest.raises(ArtifactError, match=f"the GPU here has {loading.examine().sm}"):
        Session.open(other, gpu=GpuOptions(cuda=provider))
    with pytest.raises(MissingDependencyError, match="there is no GPU 99"):
        Session.open(other, gpu=GpuOptions(cuda=provider, ordinal=99))


@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_every_time(opened: Open, kind: Kind) -> None:
    """In any order, first time, graph captured, graph launched, buffers grown in between."""
    session = opened(kind)
    for seed in range(4):
        for index in np.random.default_rng(seed).permutation(len(SHAPES)):
            check_run(session, kind, SHAPES[index], seed)
    assert captured(session) == {dims(shape, kind) for shape in SHAPES}
    assert watch(session).launches > 0


@pytest.mark.parametrize("graphs", [0, 8])
def test_growing_and_shrinking(opened: Open, graphs: int) -> None:
    session = opened("everything", graphs=graphs)
    for shape in (*SHAPES, *reversed(SHAPES)):
        check_run(session, "everything", shape)
        check_run(session, "everything", shape, seed=1)
    assert (watch(session).launches > 0) == (graphs > 0)


def test_outside_every_profile(opened: Open) -> None:
    session = opened()
    for shape in ((5, 64, 64), (1, 64, 161), (1, 512, 512)):
        with pytest.raises(ShapeError, match="nearest of its 2 profiles"):
            session.run(model("logits").images(*shape))
    assert runner_of(session).lanes() == ()
    check_run(session, "logits", (1, 64, 64))


def test_a_graph_from_the_third_time_on(opened: Open) -> None:
    """It is launched for new images, and made anew after the buffers moved."""
    session = opened()
    for launches in (0, 0, 1, 2):
        check_run(session, "logits", (2, 64, 64), seed=launches)
        assert watch(session).launches == launches
    assert captured(session) == {(2, 3, 64, 64)}
    check_run(session, "logits", (2, 96, 160))
    assert captured(session) == set(), "it holds addresses of memory that is gone"
    for seed in range(3):
        check_run(session, "logits", (2, 64, 64), seed)
    assert captured(session) == {(2, 3, 64, 64)}
    assert watch(session).launches == 4


def test_most_graphs_are_kept_for_what_comes_most(opened: Open) -> None:
    session = opened(graphs=2)
    shapes = [(1, 32, 32), (1, 32, 48), (1, 32, 64)]
    for seed in range(4):
        for shape in shapes:
            check_run(session, "logits", shape, seed)
    assert captured(session) == {dims(shape) for shape in shapes[:2]}
    for seed in range(8):
        check_run(session, "logits", shapes[2], seed)
    assert dims(shapes[2]) in captured(session)
    assert watch(session).counts()["end_capture"] == 2


@pytest.mark.parametrize("how", ["capture", "capture, void"])
def test_a_refused_capture(
    opened: Open, trt: GpuTensorRt, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The shape runs without a graph, it is said once, others get theirs."""
    session = opened()
    trt.refuse = how
    with caplog.at_level(logging.WARNING):
        for seed in range(5):
            check_run(session, "logits", (1, 64, 64), seed)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("1x3x64x64 runs without a CUDA graph: ")
    why = only_lane(session).uncapturable[1, 3, 64, 64]
    assert ("in a capture" if "void" in how else "made to fail") in why
    assert "end_capture" not in watch(session).counts()
    trt.refuse = ""
    for seed in range(4):
        check_run(session, "logits", (2, 64, 64), seed)
    assert watch(session).launches == 2


def test_a_lane_that_failed_is_not_used_again(opened: Open, trt: GpuTensorRt) -> None:
    session = opened()
    check_run(session, "logits", (1, 64, 64))
    failed = only_lane(session)
    trt.refuse = "enqueue"
    with pytest.raises(DeviceError, match=r"TensorRT refused to enqueue an inference: .* made to"):
        session.run(model("logits").images(1, 64, 64))
    trt.refuse = ""
    assert watch(session).counts() == {}
    check_run(session, "logits", (1, 64, 64))
    assert only_lane(session) is not failed


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Call `work` with 0 to count - 1, all at once. Fails where one does or is not done in time."""
    failures: list[str] = []
    begin = threading.Barrier(count)

    def guarded(index: int) -> None:
        try:
            # PyTorch's handles of this thread: making one may wait for the device, which no capture
            # of another thread's stands.
            model("logits").eager(model("logits").images(1, 32, 32))
            begin.wait(60)
            work(index)
        except BaseException as error:  # noqa: BLE001  # whatever it is, the test tells it
            failures.append(f"{index}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)


def test_many_threads(opened: Open) -> None:
    """200 requests of 8 threads over 3 contexts, graphs captured meanwhile: nobody gets another's
    answer."""
    batches = [model("logits").images(*SHAPES[seed % len(SHAPES)], seed) for seed in range(12)]
    alone = opened(contexts=1, graphs=0)
    expected = [alone.run_all(batch) for batch in batches]
    session = opened(contexts=3, graphs=3)

    def work(index: int) -> None:
        for which in np.random.default_rng(index).integers(0, len(batches), 25):
            check(session.run_all(batches[which]), expected[which], SAME)

    in_threads(8, work)
    assert 1 <= len(runner_of(session).lanes()) <= 3
    assert watch(session).launches > 0


def test_times_of_the_device(opened: Open) -> None:
    """Each part takes time on the GPU's clock, all of them no more than the host waits."""
    session = opened()
    runner = runner_of(session)
    check_run(session, "logits", (2, 96, 160))
    for seed in range(4):
        images = model("logits").images(2, 96, 160, seed)
        begin = time.perf_counter_ns()
        answer, times = runner.infer_timed({"image": images})
        waited = (time.perf_counter_ns() - begin) / 1e6
        check(answer, model("logits").exact(images), EXACT)
        assert min(times.h2d, times.compute, times.d2h, times.enqueue) > 0
        assert times.h2d + times.compute + times.d2h <= waited
        assert times.enqueue <= waited
    assert watch(session).launches > 0
    assert watch(session).counts()["create_event"] == 4


# --- on the device --------------------------------------------------------------------------------


class Interface:
    """A tensor by the CUDA Array Interface alone, which says nothing of streams here."""

    def __init__(self, tensor: Any) -> None:
        self.__cuda_array_interface__ = {**tensor.__cuda_array_interface__, "stream": None}


def as_torch(arrays: Mapping[str, Any]) -> Arrays:
    """Device arrays -> the host's, through PyTorch's current stream."""
    return {name: torch.from_dlpack(array).cpu().numpy() for name, array in arrays.items()}


def sized(session: Session, shape: tuple[int, int, int]) -> Any:
    """A tensor for the logits, of NaN."""
    size = (shape[0], session.metadata.num_classes)
    tensor = torch.full(size, float("nan"), device=DEVICE)
    torch.cuda.current_stream().synchronize()
    return tensor


def seen_now(tensor: Any) -> Any:
    """What is in the tensor at this moment: read on a stream that waits for nothing."""
    stream = torch.cuda.Stream()
    found = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    with torch.cuda.stream(stream):
        found.copy_(tensor, non_blocking=True)
    stream.synchronize()
    return found.numpy().copy()


@pytest.mark.parametrize("kind", KINDS)
def test_in_and_out_without_a_copy(
    opened: Open, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT is given the caller's memory, and the caller TensorRT's."""
    session = opened(kind)
    told: dict[str, int] = {}
    tell = Context.set_tensor_address

    def noted(context: Context, name: str, memory: int) -> bool:
        told[name] = memory
        return tell(context, name, memory)

    monkeypatch.setattr(Context, "set_tensor_address", noted)
    for shape in SHAPES:
        images = model(kind).images(*shape)
        tensor = on_gpu(images)
        answer = session.run_all_on_device(tensor)
        assert told == {
            "image": tensor.data_ptr(),
            **{name: array.pointer for name, array in answer.items()},
        }
        for array in answer.values():
            assert torch.from_dlpack(array).data_ptr() == array.pointer
            assert torch.as_tensor(array, device=DEVICE).data_ptr() == array.pointer
        check(as_torch(answer), model(kind).exact(images), EXACT)
        check(as_torch(answer), session.run_all(images), SAME)
        first = session.metadata.output_name
        check({first: as_torch({first: session.run_on_device(tensor)})[first]},
              {first: model(kind).exact(images)[first]}, EXACT)  # fmt: skip


def test_answers_go_where_they_are_wanted(opened: Open) -> None:
    session = opened("everything")
    images = model("everything").images(2, 64, 48)
    exact = model("everything").exact(images)
    wanted = {
        name: torch.full(exact[name].shape, float("nan"), device=DEVICE)
        for name in ("embedding", "c4", "logits")
    }
    answer = session.run_all_on_device(on_gpu(images), out=wanted)
    assert {name: answer[name].pointer for name in wanted} == {
        name: tensor.data_ptr() for name, tensor in wanted.items()
    }
    check(as_torch(answer), exact, EXACT)
    for name, tensor in wanted.items():
        check({name: tensor.cpu().numpy()}, {name: exact[name]}, EXACT)
    with pytest.raises(InputError, match="no output 'c1', but logits"):
        session.run_all_on_device(on_gpu(images), out={"c1": wanted["c4"]})
    with pytest.raises(ShapeError, match="the output c3 as float32 of shape"):
        session.run_all_on_device(on_gpu(images), out={"c3": wanted["c4"]})
    check(session.run_all(images), exact, EXACT)


@pytest.mark.parametrize("given", [True, False], ids=["out", "own memory"])
def test_on_the_callers_stream(opened: Open, given: bool) -> None:
    """Its earlier work is waited for, its later work finds the answer, this call waits for nothing.
    Nothing but `stream` tells of the order: the input has no stream, and PyTorch's current one is
    another."""
    session = opened()
    shape = (2, 64, 48)
    images = model("logits").images(*shape)
    right = on_gpu(images)
    side = torch.cuda.Stream()
    for cycles in (1000, NAP):  # the first time whatever has to be loaded is
        source, target = torch.full_like(right, float("nan")), sized(session, shape)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(cycles)
            source.copy_(right)
        answer = session.run_on_device(
            Interface(source), out=target if given else None, stream=side
        )
        early = not side.query()
        before = seen_now(target)
        with torch.cuda.stream(side):
            found = torch.from_dlpack(answer).clone()
        side.synchronize()
        check({"logits": found.cpu().numpy()}, model("logits").exact(images), EXACT)
        del answer  # giving its memory back would wait for the next nap
    assert early, "it returned when the work was done"
    assert np.isnan(before).all(), "the answer was there before its input"


def test_without_a_stream_it_waits(opened: Open) -> None:
    """For PyTorch's current stream as well, by DLPack."""
    session = opened()
    shape = (2, 64, 48)
    images = model("logits").images(*shape)
    right = on_gpu(images)
    source, target = torch.full_like(right, float("nan")), sized(session, shape)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(NAP)
        source.copy_(right)
        session.run_on_device(source, out=target)
    check({"logits": seen_now(target)}, model("logits").exact(images), EXACT)


@pytest.mark.parametrize("which", ["0", "1", "object"])
def test_the_default_stream(opened: Open, which: str) -> None:
    session = opened()
    images = model("logits").images(2, 64, 48)
    right = on_gpu(images)
    streams = {"0": 0, "1": 1, "object": torch.cuda.default_stream()}
    for cycles in (1000, NAP):
        source = torch.full_like(right, float("nan"))
        torch.cuda.synchronize()
        torch.cuda._sleep(cycles)
        source.copy_(right)
        answer = session.run_on_device(Interface(source), stream=streams[which])
        early = not torch.cuda.default_stream().query()
        found = torch.as_tensor(answer, device=DEVICE).clone()
        check({"logits": found.cpu().numpy()}, model("logits").exact(images), EXACT)
        del answer  # giving its memory back would wait for the next nap
    assert early, "it returned when the work was done"


def test_another_consumer_waits(opened: Open) -> None:
    """One on a stream of its own, which takes the answer by DLPack."""
    session = opened()
    images = model("logits").images(2, 64, 48)
    right = on_gpu(images)
    side, other = torch.cuda.Stream(), torch.cuda.Stream()
    for cycles in (1000, NAP):
        source = torch.full_like(right, float("nan"))
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(cycles)
            source.copy_(right)
        answer = session.run_on_device(source, stream=side)
        with torch.cuda.stream(other):
            found = torch.from_dlpack(answer).clone()
        waits = not other.query()
        other.synchronize()
        check({"logits": found.cpu().numpy()}, model("logits").exact(images), EXACT)
        del answer  # giving its memory back would wait for the next nap
    assert waits


@pytest.mark.parametrize("forgotten", [False, True], ids=["answer kept", "answer forgotten"])
def test_the_input_is_kept(opened: Open, forgotten: bool) -> None:
    """A caller that forgets the input at once, and the answer where it goes to a tensor of its own:
    PyTorch would give the input's memory to the next tensor, while the work that reads it has not
    begun."""
    session = opened()
    shape = (2, 64, 48)
    images = model("logits").images(*shape)
    side = torch.cuda.Stream()
    for cycles in (1000, NAP):
        source, target = on_gpu(images), sized(session, shape)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(cycles)
        answer: Any = session.run_on_device(source, out=target, stream=side)
        if forgotten:
            answer = None
        del source
        gc.collect()
        others = [on_gpu(np.full_like(images, np.nan)) for _ in range(8)]
        early = not side.query()
        side.synchronize()
        check({"logits": target.cpu().numpy()}, model("logits").exact(images), EXACT)
        del answer, others
    assert early, "the others came when the work was done"


def test_the_answer_outlives_the_session(opened: Open) -> None:
    session = opened()
    images = model("logits").images(2, 64, 48)
    answer = session.run_on_device(on_gpu(images))
    session.close()
    assert watch(session).counts() == {"allocate": 1}
    check(as_torch({"logits": answer}), model("logits").exact(images), EXACT)
    with pytest.raises(InputError, match="the session is closed"):
        session.run(images)


def test_what_cannot_be_taken(opened: Open) -> None:
    """It is refused before anything is enqueued: the next request goes on in the same lane."""
    session = opened()
    images = model("logits").images(2, 64, 48)
    good = on_gpu(images)
    room = torch.zeros(good.numel() + 1, device=DEVICE)
    wrong: list[tuple[str, Any]] = [
        ("no multiple of 256 bytes", room[1:].view(good.shape).copy_(good)),
        ("device type 1, not of the GPU; Session.run takes", torch.from_numpy(images)),
        ("device type 1, not of the GPU", images),
        ("expected float32", good.half()),
        ("expected float32 of shape", good[0]),
        ("C order", good.transpose(2, 3)),
        ("refuses", good.clone().requires_grad_()),
        ("nearest of its 2 profiles", on_gpu(model("logits").images(5, 64, 64))),
    ]
    session.run(images)
    lane = only_lane(session)
    for words, tensor in wrong:
        with pytest.raises(ShapeError, match=words):
            session.run_on_device(tensor)
        check(as_torch({"logits": session.run_on_device(good)}),
              model("logits").exact(images), EXACT)  # fmt: skip
        assert only_lane(session) is lane
    with pytest.raises(ShapeError, match="the output as float32 of shape"):
        session.run_on_device(good, out=sized(session, (1, 64, 48)))
    with pytest.raises(ShapeError, match="device type 1"):
        session.run_on_device(good, out=torch.zeros(2, session.metadata.num_classes))
    assert only_lane(session) is lane


def test_threads_on_the_device_and_on_the_host(opened: Open) -> None:
    """Each with a stream of its own, over one lane less than there are threads."""
    batches = [model("logits").images(*SHAPES[seed % len(SHAPES)], seed) for seed in range(12)]
    tensors = [on_gpu(batch) for batch in batches]
    alone = opened(contexts=1, graphs=0)
    expected = [alone.run_all(batch) for batch in batches]
    session = opened(contexts=5, graphs=3)

    def work(index: int) -> None:
        stream = torch.cuda.Stream()
        for which in np.random.default_rng(index).integers(0, len(batches), 25):
            if index % 2:
                check(session.run_all(batches[which]), expected[which], SAME)
                continue
            answer = session.run_all_on_device(tensors[which], stream=stream)
            with torch.cuda.stream(stream):
                check(as_torch(answer), expected[which], SAME)

    in_threads(6, work)


def test_cupy(opened: Open) -> None:
    """Arrays of another library, on a stream of its own kind."""
    cupy: Any = pytest.importorskip("cupy")
    session = opened()
    images = model("logits").images(2, 64, 48)
    exact = model("logits").exact(images)
    right = cupy.asarray(images)
    stream = cupy.cuda.Stream(non_blocking=True)
    target = cupy.full((2, session.metadata.num_classes), cupy.nan, cupy.float32)
    for out in (None, target):
        source = cupy.full(images.shape, cupy.nan, cupy.float32)
        cupy.cuda.Device().synchronize()
        with stream:
            source[...] = right
            answer = session.run_on_device(source, out=out, stream=stream)
            found = cupy.from_dlpack(answer)
            assert found.data.ptr == answer.pointer
            check({"logits": cupy.asnumpy(found, stream=stream)}, exact, EXACT)
    assert answer.pointer == target.data.ptr
    check({"logits": cupy.asnumpy(cupy.asarray(answer))}, exact, EXACT)
    waited = session.run_on_device(right, stream=cupy.cuda.Stream.null)
    check({"logits": cupy.asnumpy(cupy.from_dlpack(waited))}, exact, EXACT)


# --- memory ---------------------------------------------------------------------------------------


def free_bytes(session: Session) -> int:
    """Of the device, without what PyTorch keeps for later."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    with runner_of(session).cuda.current():
        return runner_of(session).cuda.memory()[0]


def test_memory_is_given_back(opened: Open) -> None:
    """By 50 sessions that did everything a session does."""

    def one() -> Session:
        session = opened(contexts=2)
        images = model("logits").images(2, 96, 160)
        for _ in range(3):
            session.run(images)
        runner_of(session).infer_timed({"image": images})
        answer = session.run_on_device(on_gpu(images), stream=torch.cuda.current_stream())
        as_torch({"logits": answer})
        del answer
        gc.collect()
        assert watch(session).launches > 0
        assert watch(session).counts() == {"allocate": 3, "allocate_pinned": 2, "create_stream": 1,
                                           "create_event": 4, "end_capture": 1}  # fmt: skip
        assert only_lane(session).device_bytes == sum(watch(session).held["allocate"].values())
        session.close()
        assert watch(session).counts() == {}
        return session

    for _ in range(3):  # what libraries and the driver keep once is no loss
        before = free_bytes(one())
    for _ in range(50):
        session = one()
    lost = before - free_bytes(session)
    assert lost < 8 * MIB, f"{lost} bytes; each session had 2 MiB of scratch memory alone"


def test_more_memory_than_there_is(opened: Open) -> None:
    """It is told as such, and neither the session nor PyTorch is the worse for it."""
    session = opened()
    check_run(session, "logits", (2, 64, 64))
    cuda = runner_of(session).cuda
    before = watch(session).counts()
    with cuda.current():
        buffer = DeviceBuffer(cuda)
        with pytest.raises(DeviceMemoryError, match="out of GPU memory"):
            buffer.reserve(2 * cuda.memory()[1])
        assert (buffer.pointer, buffer.size) == (0, 0)
        buffer.reserve(MIB)
        buffer.close()
    assert watch(session).counts() == before
    assert float(torch.ones(1000, device=DEVICE).sum()) == 1000
    for seed in range(3):
        check_run(session, "logits", (2, 64, 64), seed)


def test_memory_for_one_context_only(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Threads that were promised three go on with the one there is room for, and it is said."""
    session = opened(contexts=3, graphs=0)
    batches = [model("logits").images(2, 64, 64, seed) for seed in range(6)]
    expected = [session.run_all(batch) for batch in batches]
    cuda: Any = runner_of(session).cuda
    allocate, held = cuda.allocate, watch(session).held["allocate"]
    room = sum(held.values())

    def limited(size: int) -> int:
        return int(allocate(size if sum(list(held.values())) + size <= room else 1 << 46))

    cuda.allocate = limited

    def work(index: int) -> None:
        for _ in range(4):
            check(session.run_all(batches[index]), expected[index], SAME)

    in_threads(6, work)
    assert "no memory for more than 1 contexts at once" in caplog.text
    assert len(runner_of(session).lanes()) == 1


# --- the double is no more than what it stands for ------------------------------------------------


def test_the_double_is_strict(opened: Open) -> None:
    """It refuses what TensorRT leaves undefined, or the tests above would prove nothing."""
    session = opened()
    runner = runner_of(session)
    session.run(model("logits").images(1, 64, 64))
    lane = only_lane(session)
    with runner.cuda.current():
        context = runner.create_context()
        assert not context.execute_async_v3(lane.stream)
        context.set_device_memory(lane._scratch.pointer, 256)
        assert not context.set_input_shape("image", (1, 3, 512, 512))
        assert context.set_input_shape("image", (1, 3, 64, 64))
        assert not context.set_tensor_address("image", lane._input.pointer + 4)
        for name, pointer in {"image": lane._input.pointer, **lane._own_outputs()}.items():
            assert context.set_tensor_address(name, pointer)
        assert not context.execute_async_v3(lane.stream)
        context.set_device_memory(lane._scratch.pointer, lane._scratch.size)
        with pytest.raises(AssertionError, match="the default stream"):
            context.execute_async_v3(1)
        runner.cuda.begin_capture(lane.stream)
        refused = not context.execute_async_v3(lane.stream)
        runner.cuda.destroy_graph(runner.cuda.end_capture(lane.stream))
        assert refused
        assert context.execute_async_v3(lane.stream)
        runner.cuda.synchronize(lane.stream)
    assert runner._log.last().endswith("the first enqueue of a shape cannot be captured")
