"""The gate of an engine for OpenVINO, on both ways a session runs it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("openvino")

from rest_deploy import machine, verbs
from rest_deploy.contracts import GateCheck
from rest_deploy.engine.openvino import OpenVinoRunner
from rest_deploy.errors import VerificationError
from rest_deploy.verbs import Images, Request, openvino

REQUEST = Request(precision="fp32", images=Images(limit=16), gate_images=22)
Feeds = Mapping[str, npt.NDArray[np.generic]]


@pytest.fixture
def workspace(trained_nano: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_nano.parent, tmp_path / "workspace")
    return tmp_path / "workspace"


def checks(workspace: Path) -> dict[str, GateCheck]:
    report = verbs.build_engine(None, REQUEST, workspace=workspace, backend="openvino")
    assert report.build.gate is not None
    return {check.name: check for check in report.build.gate.checks}


def test_both_are_held_to_one_bound(workspace: Path) -> None:
    found = checks(workspace)
    dynamic = found["relative logit error"]
    fixed = found["relative logit error, one shape compiled"]
    assert 0 < fixed.value < fixed.bound == dynamic.bound


def test_a_compilation_that_answers_otherwise(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = OpenVinoRunner.infer

    def wrong(self: OpenVinoRunner, feeds: Feeds) -> dict[str, npt.NDArray[np.generic]]:
        answers = infer(self, feeds)
        return answers if self.shape is None else {k: v[::-1] for k, v in answers.items()}

    monkeypatch.setattr(OpenVinoRunner, "infer", wrong)
    with pytest.raises(VerificationError, match="one shape compiled"):
        checks(workspace)
    assert not list(workspace.glob("*.openvino.onnx"))


VNNI, PLAIN = ("avx2", "avx512f", "avx512_vnni"), ("avx2", "fma")


@pytest.mark.parametrize(("features", "recipe"), [(VNNI, "int8-openvino"), (PLAIN, None)])
def test_products_of_activations_only_where_they_are_exact(
    features: tuple[str, ...], recipe: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "features_for", lambda _backend: features)
    asked = Request(precision="int8")
    assert openvino.with_recipe(asked, "openvino").recipe == recipe
    assert openvino.with_recipe(asked, "onnxruntime") is asked
    named = Request(precision="int8", recipe="int8-float-stem")
    assert openvino.with_recipe(named, "openvino") is named
