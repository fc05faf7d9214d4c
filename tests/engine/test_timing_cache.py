"""TensorRT's timing cache, with a double of its module: the package is not on PyPI.

The double answers as NVIDIA's libraries were seen to: junk gives a message and an empty cache, a
cache of another GPU is not taken.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rest_deploy.contracts import Profile
from rest_deploy.engine import tensorrt, timing_cache
from rest_deploy.engine.tensorrt import Options, build
from rest_deploy.errors import ArtifactError, BuildError, InputError, OutputError

PROFILE = Profile(minimum=(1, 3, 32, 32), optimum=(1, 3, 64, 64), maximum=(2, 3, 64, 64))
HEADER = b"TIMINGS gpu0;"
UNREAD = "Failed to deserialize timing cache. Returning an empty timing cache."


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> memoryview:
        return memoryview(self.data)


class Config:
    """IBuilderConfig, as far as a build uses it; `calls` are recorded."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.calls: list[str] = []
        self.cache: Cache | None = None

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Cache | None:
        self.calls.append("create")
        if serialized_timing_cache and not serialized_timing_cache.startswith(b"TIMINGS"):
            self.say(UNREAD)
            return Cache(HEADER)
        return Cache(serialized_timing_cache or HEADER)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        self.calls.append(f"set {ignore_mismatch}")
        if not ignore_mismatch and not cache.data.startswith(HEADER):
            self.say("the cache is of another device")
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Cache | None:
        return self.cache

    def set_memory_pool_limit(self, *_: Any) -> None: ...
    def add_optimization_profile(self, *_: Any) -> None: ...


class Module:
    """A double of `tensorrt`. `fails`: the build ends without an engine."""

    __version__ = "11.0.0"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    ProfilingVerbosity = SimpleNamespace(DETAILED=2)

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = 1, 0, 2

    class IProgressMonitor:
        pass

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.configs: list[Config] = []

    def Builder(self, logger: Any) -> Any:  # NVIDIA's name
        def make() -> Config:
            self.configs.append(Config(lambda text: logger.log(self.ILogger.WARNING, text)))
            return self.configs[-1]

        def run(_network: Any, config: Config) -> bytes | None:
            config.calls.append("build")
            if config.cache is not None:
                config.cache.data += b"conv1=3us;"
            return None if self.fails else b"engine"

        image = SimpleNamespace(dtype=SimpleNamespace(name="FLOAT"))
        network = SimpleNamespace(get_input=lambda _index: image)
        return SimpleNamespace(
            create_network=lambda _flags: network,
            create_builder_config=make,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *_: None),
            build_serialized_network=run,
        )

    def OnnxParser(self, _network: Any, _logger: Any) -> Any:  # NVIDIA's name
        return SimpleNamespace(parse=lambda _graph: True)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    double = Module()
    monkeypatch.setattr(tensorrt, "load", lambda _flavour: double)
    return double


def built(path: Path | None) -> tensorrt.Built:
    options = Options(profiles=(PROFILE,), timing_cache=path)
    return build("tensorrt", b"graph", options, lambda *_: None)


def test_a_new_one_is_made_and_then_used(module: Module, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "timings"
    first = built(path)
    assert module.configs[0].calls == ["create", "set False", "build"]
    assert first.timings == HEADER + b"conv1=3us;"
    assert not path.exists(), "the verb stores it, after the proof"
    timing_cache.store(path, first.timings)
    assert built(path).timings == first.timings + b"conv1=3us;"
    assert path.read_bytes() == first.timings
    assert [found.name for found in path.parent.iterdir()] == ["timings"]


def test_without_the_option(module: Module) -> None:
    assert built(None).timings == b""
    assert module.configs[0].calls == ["build"]


def test_an_empty_file_and_an_empty_cache(module: Module, tmp_path: Path) -> None:
    for data in (b"", HEADER):
        (tmp_path / "timings").write_bytes(data)
        assert built(tmp_path / "timings").timings == HEADER + b"conv1=3us;"


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"junk", UNREAD), (b"TIMINGS gpu1;conv1=3us;", "the cache is of another device")],
)
def test_what_cannot_be_used_is_refused_and_kept(
    module: Module, tmp_path: Path, data: bytes, says: str
) -> None:
    path = tmp_path / "timings"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged, or no timing cache") as caught:
        built(path)
    assert says in caught.value.message
    assert "another name" in (caught.value.hint or "")
    assert "build" not in module.configs[0].calls
    assert path.read_bytes() == data


@pytest.mark.parametrize("answer", ["empty", "none"])
def test_junk_without_a_message(
    module: Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str
) -> None:
    """Should a version say nothing: what went in did not come out."""
    path = tmp_path / "timings"
    path.write_bytes(b"junk")
    monkeypatch.setattr(
        Config, "create_timing_cache", lambda *_: Cache(HEADER) if answer == "empty" else None
    )
    with pytest.raises(ArtifactError, match="says: nothing"):
        built(path)


def test_a_failed_build_stores_nothing(module: Module, tmp_path: Path) -> None:
    path = tmp_path / "timings"
    path.write_bytes(HEADER)
    module.fails = True
    with pytest.raises(BuildError):
        built(path)
    assert path.read_bytes() == HEADER


def test_a_full_disk_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "timings"
    path.write_bytes(HEADER)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        timing_cache.store(path, b"new")
    assert path.read_bytes() == HEADER
    assert list(tmp_path.iterdir()) == [path]


def test_no_place_for_a_file(tmp_path: Path) -> None:
    timing_cache.check_place(tmp_path / "new" / "timings")
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="is not a file"):
            timing_cache.check_place(path)


def test_nvidias_real_methods(tmp_path: Path) -> None:
    """TensorRT-RTX has the same ones, and why it is refused there: nothing is stored. Bytes that
    are no cache give a message that is known here and an empty cache, not an error."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    log = tensorrt.Log(trt)
    builder = trt.Builder(log.logger)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        config = builder.create_builder_config()
        path = tmp_path / "timings"
        assert timing_cache.attach(config, path, log.lines) is not None
        empty = timing_cache.contents(config)
        assert len(empty) > 0
        path.write_bytes(b"junk" * 50)
        with pytest.raises(ArtifactError, match="timing cache will not be used"):
            timing_cache.attach(config, path, log.lines)
        assert bytes(config.create_timing_cache(b"junk" * 50).serialize()) == empty
    assert any("no-ops in TensorRT-RTX" in str(found.message) for found in warned)
    assert "timing_cache" in tensorrt.NEEDS_GPU
