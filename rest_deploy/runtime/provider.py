"""Which of ONNX Runtime's providers a model file runs on, and with which settings."""

from __future__ import annotations

from pathlib import Path

from rest_deploy.artifact import Sidecar, sha256_file
from rest_deploy.engine.onnxruntime_session import version
from rest_deploy.engine.profiles import default_profiles
from rest_deploy.engine.providers import DEFAULTS, ProviderOptions, known

CACHE_SUFFIX = ".cache"


def cache_folder(base: Path, sha256: str) -> Path:
    """Where engines made of the file with that hash are kept.

    TensorRT's provider names an engine after the file's name and its nodes', not after the weights:
    without the hash a rebuilt file would run the engine of the one before.
    """
    return base / f"{sha256[:16]}-onnxruntime-{version()}"


def default_cache(path: Path) -> Path:
    """The folder beside a model file."""
    return path.with_name(path.name + CACHE_SUFFIX)


def provider_for(
    path: Path, sidecar: Sidecar | None, wanted: str | None
) -> tuple[str, ProviderOptions]:
    """wanted: a name, or None for the provider the file was built for, else the CPU.

    Raises `InputError` for an unknown name.
    """
    build = sidecar.build if sidecar else None
    name = wanted or (build.provider if build else "") or "cpu"
    if not known(name).compiles:
        return name, DEFAULTS
    fit = build.through if build is not None and build.provider == name else None
    base = Path(fit.cache) if fit is not None and fit.cache else default_cache(path)
    if sidecar is None:
        return name, ProviderOptions(cache=cache_folder(base, sha256_file(path)), timings=base)
    metadata = sidecar.metadata
    return name, ProviderOptions(
        cache=cache_folder(base, sidecar.sha256),
        timings=base,
        profiles=fit.profiles if fit else default_profiles(metadata.card.preprocessing),
        input_name=metadata.input_name,
        input_kind=metadata.input_kind,
    )
