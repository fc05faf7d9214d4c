"""A machine with a GPU and one flavour of TensorRT, for tests on machines without."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rest_deploy.engine import backends, tensorrt
from rest_deploy.engine.tensorrt import Built, Flavour, Options, Step
from rest_deploy.runtime import loading
from rest_deploy.runtime import tensorrt as runtime
from rest_deploy.runtime.loading import Here
from rest_deploy.verbs import engine as verb
from rest_deploy.verbs import judge
from tests.doubles.cuda import SimulatedCuda
from tests.doubles.tensorrt import SimulatedTensorRt


def simulated_gpu(
    monkeypatch: pytest.MonkeyPatch, folder: Path, flavour: Flavour, sm: str = "89"
) -> SimulatedTensorRt:
    """Builds are NVIDIA's real ones (TensorRT-RTX's for both flavours), and what was built can be
    run: the graph of every build is kept in `folder`."""
    real: Any = pytest.importorskip("tensorrt_rtx_bindings")
    cuda = SimulatedCuda()
    module = SimulatedTensorRt(real, flavour, cuda)
    build = tensorrt.build

    def remembered(flavour: Flavour, graph: bytes, options: Options, step: Step) -> Built:
        # NVIDIA's builder does not make refittable engines without a GPU.
        built = build(flavour, graph, replace(options, refit=False, strip_weights=False), step)
        if flavour == "tensorrt":
            built = replace(built, engine=b"ptrt" + built.engine)  # its engines begin otherwise
        file = folder / f"{len(module.engines)}.graph.onnx"
        file.write_bytes(graph)
        module.know(built.engine, file, options.profiles)
        return built

    here = Here({flavour: str(real.__version__)}, sm, (13, 0))
    monkeypatch.setattr(loading, "examine", lambda *_: here)
    refit_module = importlib.import_module("rest_deploy.verbs.refit")  # the package has the verb
    for place in (runtime, judge, refit_module):
        monkeypatch.setattr(place, "open_cuda", lambda *_: cuda)
    monkeypatch.setattr(tensorrt, "load", lambda _: module)
    monkeypatch.setattr(tensorrt, "why_not", lambda name: None if name == flavour else "not here")
    monkeypatch.setattr(tensorrt, "build", remembered)
    monkeypatch.setattr(backends, "_no_gpu", lambda: None)
    monkeypatch.setattr(verb, "_compute_capability", lambda: sm)
    monkeypatch.setattr(verb, "_driver", lambda name: "13.0" if name == "tensorrt" else "")
    return module
