"""The backends side by side: who is tried first, and what is said where float32 is faster."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rest_deploy.artifact import to_json
from rest_deploy.contracts import HostBackend, Precision
from rest_deploy.engine.backends import Choice, choose
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.errors import InputError, VerificationError, installed
from rest_deploy.runtime.session import Session
from rest_deploy.verbs import trial as module
from rest_deploy.verbs.calibrate import Images
from rest_deploy.verbs.make import Request
from rest_deploy.verbs.progress import silent
from rest_deploy.verbs.trial import (
    Candidates,
    Timed,
    Trial,
    candidates,
    first_built,
    read_trial,
    trial,
)

Feeds = Mapping[str, npt.NDArray[np.generic]]
Answers = dict[str, npt.NDArray[np.generic]]

needs_both = pytest.mark.skipif(
    not (installed("openvino") and installed("onnxruntime")), reason="needs both CPU backends"
)
INT8 = Request(precision="int8", images=Images(limit=8))


def measured(**times: float) -> Trial:
    """fp32_openvino=18.5; 0 is one that failed."""
    rows = []
    for name, ms in times.items():
        precision, backend = name.split("_")
        failed = "" if ms else "no such kernel"
        rows.append(Timed(backend, precision, ms, failed))  # type: ignore[arg-type]  # literals
    rows.sort(key=lambda row: (bool(row.failed), row.ms))
    return Trial(shape="1x3x224x224", on="AVX2 without VNNI", rows=tuple(rows))


AVX2 = measured(fp32_openvino=18.5, int8_onnxruntime=19.3, fp32_onnxruntime=19.2,
                int8_openvino=37.0)  # fmt: skip


@pytest.mark.parametrize(
    ("found", "order"),
    [
        (AVX2, ("onnxruntime", "openvino")),
        (measured(int8_openvino=10, int8_onnxruntime=15), ("openvino", "onnxruntime")),
        (measured(int8_openvino=10.2, int8_onnxruntime=10), ("openvino", "onnxruntime")),
        (measured(int8_openvino=10.4, int8_onnxruntime=10), ("onnxruntime", "openvino")),
        (measured(int8_openvino=0, int8_onnxruntime=10), ("onnxruntime",)),
        (measured(fp32_openvino=10), ()),
    ],
)
def test_the_fastest_first_and_of_level_ones_the_usual(
    found: Trial, order: tuple[HostBackend, ...]
) -> None:
    assert found.order("int8") == order


def test_float32_is_advised_where_it_is_no_slower() -> None:
    said = AVX2.advice("onnxruntime", "int8")
    assert said.startswith("int8 on onnxruntime has 0.96 times the speed of fp32 on openvino")
    assert "AVX2 without VNNI" in said
    assert said.endswith("build-engine --fp32 --backend openvino")
    assert AVX2.advice("openvino", "fp32") == ""


@pytest.mark.parametrize(
    "found",
    [
        measured(fp32_openvino=18.5, int8_openvino=10),
        measured(fp32_openvino=0, int8_openvino=10),
        measured(fp32_openvino=5),
    ],
)
def test_nothing_is_advised_without_a_reason(found: Trial) -> None:
    assert found.advice("openvino", "int8") == ""


def test_its_words() -> None:
    words = measured(int8_openvino=10, int8_onnxruntime=0).words()
    assert words == (
        "1x3x224x224 on AVX2 without VNNI: int8 on openvino 10.0 ms, int8 on onnxruntime failed"
    )


# --- whom to build for ----------------------------------------------------------------------------


@needs_both
def test_candidates_in_the_order_of_the_trial(exported_nano: Path) -> None:
    source = Session.open(exported_nano)
    found = candidates(source, INT8, Choice("openvino", (("tensorrt", "no GPU"),)), known=AVX2)
    assert [choice.backend for choice in found.choices] == ["onnxruntime", "openvino"]
    first, last = found.choices
    told = ("openvino", "37.0 ms an image here, onnxruntime 19.3")
    assert first.passed_over == (("tensorrt", "no GPU"), told)
    assert last.passed_over == (("tensorrt", "no GPU"),)
    assert found.trial == AVX2


@needs_both
@pytest.mark.parametrize(
    ("request_", "choice"),
    [
        (INT8, Choice("tensorrt", ())),
        (replace(INT8, precision="bf16"), Choice("openvino", ())),
        (replace(INT8, rest="bf16"), Choice("openvino", ())),
        (replace(INT8, precision="fp32"), Choice("onnxruntime", (("openvino", "unfit"),))),
    ],
)
def test_nothing_is_timed_where_nothing_is_to_choose(
    exported_nano: Path, request_: Request, choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "trial", lambda *_a: pytest.fail("timed"))
    found = candidates(Session.open(exported_nano), request_, choice)
    assert found == Candidates((choice,))


def refusing(*names: str) -> tuple[list[Choice], Callable[[Choice], str]]:
    tried: list[Choice] = []

    def build(choice: Choice) -> str:
        tried.append(choice)
        if choice.backend in names:
            raise VerificationError(f"{choice.backend} loses too much")
        return f"built for {choice.backend}"

    return tried, build


BOTH = Candidates((Choice("openvino", (("tensorrt", "no GPU"),)), Choice("onnxruntime", ())), AVX2)


def test_the_first_that_passes_is_taken() -> None:
    tried, build = refusing()
    assert first_built(BOTH, build, silent) == (BOTH.choices[0], "built for openvino")
    assert len(tried) == 1


def test_a_refused_backend_is_passed_over_with_its_reason() -> None:
    _, build = refusing("openvino")
    told: list[str] = []
    choice, built = first_built(BOTH, build, lambda words, _s: told.append(words))
    assert built == "built for onnxruntime"
    assert choice.passed_over == (("openvino", "refused by the gate: openvino loses too much"),)
    assert told == ["openvino loses too much; on to the next backend"]


def test_where_all_are_refused_the_last_one_says_why() -> None:
    tried, build = refusing("openvino", "onnxruntime")
    with pytest.raises(VerificationError, match="onnxruntime loses too much"):
        first_built(BOTH, build, silent)
    assert len(tried) == 2


def test_another_error_is_no_refusal() -> None:
    def build(_choice: Choice) -> str:
        raise InputError("no images")

    with pytest.raises(InputError):
        first_built(BOTH, build, silent)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "trial.json"
    assert read_trial(file) is None
    file.write_text(to_json(AVX2))
    assert read_trial(file) == AVX2
    file.write_text("{")
    assert read_trial(file) is None


# --- measured here --------------------------------------------------------------------------------


@needs_both
def test_every_engine_is_timed_and_nothing_is_left_behind(
    trained_nano: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copy(trained_nano, tmp_path))
    shutil.copy(trained_nano.with_name(f"{trained_nano.name}.json"), tmp_path)
    before = sorted(tmp_path.iterdir())
    found = trial(Session.open(model), INT8, ("openvino", "onnxruntime"))
    wanted: set[tuple[str, Precision]] = {
        (backend, precision)
        for backend in ("openvino", "onnxruntime")
        for precision in ("int8", "fp32")
    }
    assert {(row.backend, row.precision) for row in found.rows} == wanted
    assert all(not row.failed and row.ms > 0 for row in found.rows)
    assert [row.ms for row in found.rows] == sorted(row.ms for row in found.rows)
    assert sorted(tmp_path.iterdir()) == before
    assert choose("auto", "int8").backend in found.order("int8")


@needs_both
def test_an_engine_that_cannot_be_opened_has_a_row_with_its_reason(
    trained_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, path: Path) -> None:
            raise InputError(f"no kernel for {path.suffix}")

    monkeypatch.setattr(module, "OpenVinoRunner", Broken)
    first: HostBackend
    for first in ("onnxruntime", "openvino"):  # and the one that others are compared with
        found = trial(Session.open(trained_nano), replace(INT8, precision="fp32"), (first,))
        assert [(row.backend, row.failed) for row in found.rows] == [
            ("onnxruntime", ""), ("openvino", "no kernel for .onnx")
        ]  # fmt: skip
        assert found.rows[0].ms > 0


@needs_both
def test_what_takes_longer_is_found_to(trained_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(OnnxRuntimeRunner):
        def infer(self, feeds: Feeds) -> Answers:
            super().infer(feeds)
            super().infer(feeds)
            return super().infer(feeds)

    monkeypatch.setattr(module, "OnnxRuntimeRunner", Slow)
    found = trial(
        Session.open(trained_nano), replace(INT8, precision="fp32"), ("onnxruntime", "openvino")
    )
    assert found.order("fp32") == ("openvino", "onnxruntime")
