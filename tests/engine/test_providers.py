"""Names and option dicts of ONNX Runtime's providers; nothing here needs one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rest_deploy.contracts import Profile
from rest_deploy.engine.providers import (
    NAMES,
    PROVIDERS,
    ProviderOptions,
    known,
    session_entries,
    settings,
)
from rest_deploy.errors import InputError

PROFILE = Profile(minimum=(1, 3, 32, 32), optimum=(8, 3, 224, 224), maximum=(32, 3, 224, 224))
WIDE = Profile(minimum=(1, 3, 32, 32), optimum=(1, 3, 384, 384), maximum=(4, 3, 512, 512))
CACHED = ProviderOptions(cache=Path("c/hash"), timings=Path("c"), profiles=(PROFILE,))
CONTEXT = replace(CACHED, context_model=Path("c/hash/m_ctx.onnx"))

COMPILING = [name for name in NAMES if PROVIDERS[name].compiles]


def test_the_four() -> None:
    assert {name: provider.ort_name for name, provider in PROVIDERS.items()} == {
        "cpu": "CPUExecutionProvider",
        "cuda": "CUDAExecutionProvider",
        "tensorrt": "TensorrtExecutionProvider",
        "nv-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    }
    assert COMPILING == ["tensorrt", "nv-tensorrt-rtx"]
    with pytest.raises(InputError, match="unknown provider 'gpu'; there are cpu, cuda, tensorrt"):
        known("gpu")


def test_a_refused_precision_has_its_reason() -> None:
    everything = known("tensorrt").precisions
    for provider in PROVIDERS.values():
        assert (provider.why_not == "") == (provider.precisions == everything), provider.name


@pytest.mark.parametrize("name", NAMES)
def test_precision_is_never_a_setting(name: str) -> None:
    options = CONTEXT if name in COMPILING else ProviderOptions()
    words = [*settings(name, options), *session_entries(name, options)]
    assert not [word for word in words for part in ("fp16", "bf16", "int8", "fp8") if part in word]


def test_settings_without_options() -> None:
    assert settings("cpu") == {}
    plain = {"enable_cuda_graph": "0", "use_tf32": "0"}
    assert settings("cuda") == {"device_id": "0", **plain}
    assert settings("tensorrt") == {"device_id": "0", "trt_cuda_graph_enable": "0"}
    assert settings("nv-tensorrt-rtx") == {"enable_cuda_graph": "0"}


def test_cuda() -> None:
    options = ProviderOptions(device=1, cuda_graph=True)
    assert settings("cuda", options) == {
        "device_id": "1", "enable_cuda_graph": "1", "use_tf32": "0",
    }  # fmt: skip


def test_tensorrt() -> None:
    assert settings("tensorrt", CACHED) == {
        "device_id": "0",
        "trt_cuda_graph_enable": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "c/hash",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "c",
        "trt_profile_min_shapes": "image:1x3x32x32",
        "trt_profile_opt_shapes": "image:8x3x224x224",
        "trt_profile_max_shapes": "image:32x3x224x224",
    }
    assert session_entries("tensorrt", CONTEXT) == {}, "it has options of its own for that"


def test_a_context_model_keeps_the_engines_of_tensorrt_beside_it() -> None:
    """It takes their path relative to the context model's, and refuses an absolute one."""
    found = settings("tensorrt", CONTEXT)
    assert "trt_engine_cache_path" not in found
    assert found["trt_engine_cache_enable"] == found["trt_dump_ep_context_model"] == "1"
    assert found["trt_ep_context_file_path"] == "c/hash/m_ctx.onnx"
    assert found["trt_ep_context_embed_mode"] == "1"
    beside = settings("tensorrt", replace(CONTEXT, embedded=False))
    assert beside["trt_ep_context_embed_mode"] == "0"


def test_several_profiles() -> None:
    two = replace(CACHED, profiles=(PROFILE, WIDE))
    found = settings("tensorrt", two)["trt_profile_max_shapes"]
    assert found == "image:32x3x224x224,image:4x3x512x512"
    with pytest.raises(InputError, match="takes one profile here, got 2"):
        settings("nv-tensorrt-rtx", two)


def test_tensorrt_rtx() -> None:
    """No device_id: the device is handed over. No timing cache: it has none."""
    assert settings("nv-tensorrt-rtx", replace(CONTEXT, input_name="x")) == {
        "enable_cuda_graph": "0",
        "nv_runtime_cache_path": "c/hash",
        "nv_profile_min_shapes": "x:1x3x32x32",
        "nv_profile_opt_shapes": "x:8x3x224x224",
        "nv_profile_max_shapes": "x:32x3x224x224",
    }
    assert session_entries("nv-tensorrt-rtx", CACHED) == {}
    assert session_entries("nv-tensorrt-rtx", CONTEXT) == {
        "ep.context_enable": "1",
        "ep.context_file_path": "c/hash/m_ctx.onnx",
        "ep.context_embed_mode": "1",
    }


@pytest.mark.parametrize("name", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("options", "what"),
    [
        (ProviderOptions(cache=Path("c")), "caches"),
        (ProviderOptions(timings=Path("c")), "caches"),
        (ProviderOptions(profiles=(PROFILE,)), "profiles"),
        (ProviderOptions(context_model=Path("m.onnx")), "a context model"),
    ],
)
def test_what_does_not_compile_keeps_nothing(
    name: str, options: ProviderOptions, what: str
) -> None:
    with pytest.raises(InputError, match=f"{what} are for providers that compile, not for {name}"):
        settings(name, options)
