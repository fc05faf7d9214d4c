"""Sessions of ONNX Runtime that run where they were asked to, or not at all."""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rest_deploy.cuda_driver import MEND, Driver
from rest_deploy.engine.providers import Provider, ProviderOptions, known, session_entries, settings
from rest_deploy.errors import (
    ArtifactError,
    InputError,
    MissingDependencyError,
    OutputError,
    require,
)

if TYPE_CHECKING:
    import onnxruntime

LIBRARIES = {
    "cuda": "pip install 'onnxruntime-gpu[cuda,cudnn]' brings CUDA's; rest-deploy doctor shows the "
    "driver and the GPU",
    "tensorrt": "TensorRT of the major version that onnxruntime-gpu was built for (1.31: 10), its "
    "folder in LD_LIBRARY_PATH; pip install 'onnxruntime-gpu[cuda,cudnn]' brings CUDA's",
}
"""Where those come from that onnxruntime-gpu itself does not bring."""


def open_session(
    path: Path,
    name: str,
    options: ProviderOptions,
    *,
    threads: int | None = None,
    profile: Path | None = None,
    optimized: Path | None = None,
    in_float: bool = False,
) -> onnxruntime.InferenceSession:
    """A session that runs on the provider of that name, or an error.

    threads: for one operator, None for all cores. profile: beginning of the path of the profile it
    writes at `end_profiling`. optimized: where the graph goes that it really runs. in_float: Q/DQ
    pairs round, and the layers between them compute in float: no integer kernels.
    Raises `ArtifactError` for a file it cannot load, `MissingDependencyError` when the package or
    the provider is not here, `InputError` for options it does not have, `OutputError`.
    """
    require("onnxruntime", "onnxruntime")
    import onnxruntime as ort

    provider, wanted = known(name), settings(name, options)
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3  # errors; its warnings concern its own optimizer
    if threads is not None:
        session_options.intra_op_num_threads = threads
    if profile is not None:
        session_options.enable_profiling = True
        session_options.profile_file_prefix = str(profile)
    if optimized is not None:
        session_options.optimized_model_filepath = str(optimized)
    if in_float:
        session_options.add_session_config_entry("session.disable_quant_qdq", "1")
    for key, value in session_entries(name, options).items():
        session_options.add_session_config_entry(key, value)
    chosen: dict[str, object] = {}
    if provider.plugin:
        session_options.add_provider_for_devices([_device(provider, options.device)], wanted)
    else:
        _check_available(provider)
        chosen["providers"] = [(provider.ort_name, wanted)]
    with _kept(options.cache):
        session = _loaded(path, provider, session_options, chosen)
        running = session.get_providers()
        if running[0] != provider.ort_name:
            raise MissingDependencyError(
                f"{provider.ort_name} was asked for, ONNX Runtime runs {running[0]}: its "
                "libraries, driver or GPU are not here",
                hint=LIBRARIES.get(name, "rest-deploy doctor shows what is missing"),
            )
    return session


def _loaded(
    path: Path, provider: Provider, options: onnxruntime.SessionOptions, chosen: dict[str, object]
) -> onnxruntime.InferenceSession:
    import onnxruntime as ort

    name = provider.name
    try:
        # Its fallback goes to the CPU, at the start or in the middle of a run, with a mere print.
        return ort.InferenceSession(str(path), options, enable_fallback=0, **chosen)
    except Exception as error:  # its exception classes share no public base
        if name in LIBRARIES and "Please install" in str(error):
            raise MissingDependencyError(
                f"{provider.ort_name} cannot be loaded: its libraries are not here",
                hint=LIBRARIES[name],
            ) from error
        on = "" if name == "cpu" else f" on {provider.ort_name}"
        typed = "docs/tensorrt.md says which types this provider takes with TensorRT 10 and 11"
        raise ArtifactError(
            f"ONNX Runtime cannot load {path}{on}: {reason(error)}",
            hint=typed if name == "tensorrt" else None,
        ) from error


@contextlib.contextmanager
def _kept(cache: Path | None) -> Iterator[None]:
    """The cache folder, gone again where nothing came into it. Raises `OutputError`."""
    if cache is None:
        yield
        return
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the cache folder {cache}: {error.strerror}",
            hint="build-engine --provider-cache DIR has it elsewhere",
        ) from error
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty
            cache.rmdir()
            cache.parent.rmdir()
        raise


def version() -> str:
    """Of the package. Raises `MissingDependencyError`."""
    require("onnxruntime", "onnxruntime")
    import onnxruntime as ort

    return str(ort.__version__)


def check_provider(name: str, device: int = 0) -> None:
    """Raise `MissingDependencyError` where that provider cannot be here: its package, the driver, a
    GPU. What else it lacks a session tells."""
    require("onnxruntime", "onnxruntime")
    provider = known(name)
    if provider.plugin:
        _device(provider, device)
        return
    _check_available(provider)
    if name != "cpu" and Driver().count() <= device:
        raise MissingDependencyError(f"{provider.ort_name} needs a GPU, none is here", hint=MEND)


def may_run(name: str) -> bool:
    """Whether that provider is compiled in and a GPU is here. Nothing is loaded for the answer, so
    libraries may still be missing."""
    import onnxruntime as ort

    if known(name).ort_name not in ort.get_available_providers():
        return False
    try:
        return Driver().count() > 0
    except MissingDependencyError:
        return False


def reason(error: Exception) -> str:
    """Of ONNX Runtime's, on one line and not endless."""
    return re.sub(r"\s+", " ", str(error))[:300]


def _check_available(provider: Provider) -> None:
    import onnxruntime as ort

    names = ort.get_available_providers()
    if provider.ort_name not in names:
        raise MissingDependencyError(
            f"this onnxruntime has no {provider.ort_name}; it has {', '.join(names)}",
            hint=provider.install,
        )
    if provider.name != "cpu" and hasattr(ort, "preload_dlls"):
        # NVIDIA's wheels are not on the loader's path. It prints what it does not find.
        with contextlib.redirect_stdout(sys.stderr):
            ort.preload_dlls()


_registering = threading.Lock()


def _device(provider: Provider, index: int) -> object:
    """The GPU that a plugin offers under that number."""
    require(provider.plugin, "onnxruntime-rtx")
    import onnxruntime as ort

    if not hasattr(ort, "register_execution_provider_library"):
        raise MissingDependencyError(
            f"onnxruntime {ort.__version__} takes no plugins; {provider.ort_name} needs 1.24",
            hint=provider.install,
        )
    with _registering:  # a second registration of one name is an error
        _register(provider.plugin)
    devices = [found for found in ort.get_ep_devices() if found.ep_name == provider.ort_name]
    if not devices:
        raise MissingDependencyError(
            f"{provider.ort_name} is here and finds no GPU it runs on (compute capability 8.6, "
            "8.9, 12.0 and later)",
            hint=MEND,
        )
    if not 0 <= index < len(devices):
        raise InputError(f"device {index} was asked for; {provider.ort_name} has {len(devices)}")
    return devices[index]


@functools.cache
def _register(module: str) -> None:
    """Once a process; a failure is not kept, so that the next call tries again."""
    import onnxruntime as ort

    plugin = importlib.import_module(module)
    name: Callable[[], str] = plugin.get_ep_name
    try:
        ort.register_execution_provider_library(name(), plugin.get_library_path())
    except Exception as error:  # as of a session
        raise MissingDependencyError(
            f"ONNX Runtime cannot load the plugin {name()}: "
            f"{reason(error).rpartition('with error: ')[2]}",
            hint=MEND,
        ) from error
