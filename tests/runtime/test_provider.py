"""Which provider a file runs on, and where what it compiles is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import onnxruntime
import pytest

from rest_deploy.artifact import Sidecar, read_sidecar, sha256_file, sidecar_path, to_json
from rest_deploy.contracts import Build, Profile, ProviderFit
from rest_deploy.engine.profiles import default_profiles
from rest_deploy.engine.providers import DEFAULTS
from rest_deploy.errors import InputError, MissingDependencyError
from rest_deploy.runtime.provider import cache_folder, default_cache, provider_for
from rest_deploy.runtime.session import Session

PROFILE = Profile(minimum=(1, 3, 32, 32), optimum=(1, 3, 64, 64), maximum=(2, 3, 64, 64))


def built(model: Path, provider: str, fit: ProviderFit | None = None) -> Sidecar:
    sidecar = read_sidecar(model)
    assert sidecar is not None
    build = Build(precision="fp32", backend="onnxruntime", io_type="float32", obtained={},
                  source_sha256="", provider=provider, through=fit)  # fmt: skip
    return msgspec.structs.replace(sidecar, build=build)


def fit(cache: str = "") -> ProviderFit:
    return ProviderFit(version="1.32.0", nodes={}, profiles=(PROFILE,), cache=cache)


def test_the_cpu_unless_it_was_built_for_another(exported_nano: Path) -> None:
    sidecar = read_sidecar(exported_nano)
    assert provider_for(exported_nano, sidecar, None) == ("cpu", DEFAULTS)
    assert provider_for(exported_nano, None, None) == ("cpu", DEFAULTS)
    assert provider_for(exported_nano, built(exported_nano, ""), None) == ("cpu", DEFAULTS)
    assert provider_for(exported_nano, built(exported_nano, "cuda"), None) == ("cuda", DEFAULTS)


def test_an_explicit_one_wins(exported_nano: Path) -> None:
    sidecar = built(exported_nano, "tensorrt", fit())
    assert provider_for(exported_nano, sidecar, "cpu") == ("cpu", DEFAULTS)
    name, options = provider_for(exported_nano, sidecar, "nv-tensorrt-rtx")
    assert name == "nv-tensorrt-rtx"
    card = sidecar.metadata.card.preprocessing
    assert options.profiles == default_profiles(card), "those of TensorRT were for TensorRT"
    with pytest.raises(InputError, match="unknown provider 'gpu'"):
        provider_for(exported_nano, sidecar, "gpu")


def test_as_it_was_built(exported_nano: Path) -> None:
    _, options = provider_for(exported_nano, built(exported_nano, "tensorrt", fit()), None)
    assert options.profiles == (PROFILE,)
    base = default_cache(exported_nano)
    assert base.name == "rest_nano.onnx.cache"
    assert options.timings == base
    assert options.cache == cache_folder(base, sha256_file(exported_nano))
    elsewhere = built(exported_nano, "tensorrt", fit("/var/cache/rest"))
    _, options = provider_for(exported_nano, elsewhere, None)
    assert options.timings == Path("/var/cache/rest")


def test_without_a_sidecar(exported_nano: Path) -> None:
    _, options = provider_for(exported_nano, None, "tensorrt")
    assert options.cache == cache_folder(default_cache(exported_nano), sha256_file(exported_nano))
    assert options.profiles == (), "the shapes it meets"


def test_another_file_gets_another_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path("x.onnx.cache")
    before = cache_folder(base, "a" * 64)
    assert before != cache_folder(base, "b" * 64)
    assert before.parent == base
    monkeypatch.setattr(onnxruntime, "__version__", "9.9.9")
    assert cache_folder(base, "a" * 64) != before


def test_a_session_for_what_is_not_here(exported_nano: Path, tmp_path: Path) -> None:
    """Never the CPU instead, and no empty folder beside the file."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    model = tmp_path / "model.onnx"
    shutil.copy(exported_nano, model)
    for name, lacking in (("cuda", "CUDA"), ("tensorrt", "Tensorrt")):
        sidecar_path(model).write_text(to_json(built(exported_nano, name, fit())))
        with pytest.raises(MissingDependencyError, match=f"has no {lacking}ExecutionProvider"):
            Session.open(model)
        assert Session.open(model, provider="cpu").runner.backend == "onnxruntime/cpu"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]


def test_a_sidecar_from_before_there_were_providers(exported_nano: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(exported_nano, model)
    text = to_json(built(exported_nano, ""))
    old = text.replace(',\n    "provider": "",\n    "through": null', "")
    assert old != text
    sidecar_path(model).write_text(old)
    assert Session.open(model).runner.backend == "onnxruntime/cpu"
