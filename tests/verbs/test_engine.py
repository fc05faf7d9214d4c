"""When an engine is built again: each thing that decides it, changed alone."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rest_deploy.cards import load_card
from rest_deploy.contracts import Precision, Profile
from rest_deploy.engine import proof, tensorrt
from rest_deploy.engine.tensorrt import Built, Options
from rest_deploy.errors import VerificationError
from rest_deploy.verbs import engine
from rest_deploy.verbs.engine import Planned, Wishes, cache_key, plan
from rest_deploy.verbs.make import Request

PROFILE = Profile(minimum=(1, 3, 32, 32), optimum=(1, 3, 64, 64), maximum=(2, 3, 64, 64))
OPTIONS = Options(profiles=(PROFILE,), sms=("89",))
PLANNED = Planned("tensorrt-rtx", "1.7.1.116", OPTIONS, "")
REQUEST = Request(precision="int8")


def made(table: str = "t") -> Any:
    return SimpleNamespace(calibration=SimpleNamespace(table_sha256=table))


def with_options(**changes: Any) -> Planned:
    return replace(PLANNED, options=replace(OPTIONS, **changes))


BASE = (PLANNED, "g", made(), REQUEST)
LARGER = Profile(minimum=(1, 3, 32, 32), optimum=(1, 3, 64, 64), maximum=(3, 3, 64, 64))
CHANGED: dict[str, tuple[Planned, str, Any, Request]] = {
    "graph": (PLANNED, "other", made(), REQUEST),
    "calibration table": (PLANNED, "g", made("other"), REQUEST),
    "precision": (PLANNED, "g", made(), replace(REQUEST, precision="fp8")),
    "no gate": (PLANNED, "g", made(), replace(REQUEST, gate=False)),
    "gate images": (PLANNED, "g", made(), replace(REQUEST, gate_images=64)),
    "gate data": (PLANNED, "g", made(), replace(REQUEST, gate_data=Path("photos"))),
    "flavour": (replace(PLANNED, flavour="tensorrt"), "g", made(), REQUEST),
    "version": (replace(PLANNED, version="1.7.2.0"), "g", made(), REQUEST),
    "driver": (replace(PLANNED, driver="13.0"), "g", made(), REQUEST),
    "targets": (with_options(sms=("86", "89")), "g", made(), REQUEST),
    "profiles": (with_options(profiles=(LARGER,)), "g", made(), REQUEST),
    "one profile more": (with_options(profiles=(PROFILE, LARGER)), "g", made(), REQUEST),
    "workspace": (with_options(workspace=1.0), "g", made(), REQUEST),
    "optimization level": (with_options(optimization_level=0), "g", made(), REQUEST),
    "refit": (with_options(refit=True), "g", made(), REQUEST),
    "strip weights": (with_options(strip_weights=True), "g", made(), REQUEST),
    "version compatible": (with_options(version_compatible=True), "g", made(), REQUEST),
    "no TF32": (with_options(no_tf32=True), "g", made(), REQUEST),
    "hardware": (with_options(hardware_compatibility="ampere_plus"), "g", made(), REQUEST),
}


def test_the_same_things_give_the_same_key() -> None:
    assert cache_key(*BASE) == cache_key(replace(PLANNED), "g", made(), replace(REQUEST))


@pytest.mark.parametrize("name", CHANGED)
def test_one_change_gives_another(name: str) -> None:
    assert cache_key(*CHANGED[name]) != cache_key(*BASE)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_float32_is_not_tf32(precision: Precision) -> None:
    """In engines of less precision the float32 islands may be: no error of theirs would be seen."""
    card = load_card("nano").preprocessing
    found = plan("tensorrt-rtx", Wishes(), precision, "fp16", card, lambda _: 0)
    assert found.options.no_tf32 == (precision == "fp32")


def test_a_timing_cache_is_not_in_the_key() -> None:
    """It decides how long the build takes; the engine with other timings is as good."""
    with_cache = with_options(timing_cache=Path("timings"))
    assert cache_key(with_cache, "g", made(), REQUEST) == cache_key(*BASE)


@pytest.mark.parametrize("proven", [True, False])
def test_timings_are_stored_after_the_proof(
    proven: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that fails its proof leaves the file as it was."""
    graph, timings = tmp_path / "graph.onnx", tmp_path / "timings"
    graph.write_bytes(b"graph")
    timings.write_bytes(b"before")

    def enforce(*_: Any) -> None:
        if not proven:
            raise VerificationError("another precision")

    built = Built(b"engine", (), 0, 1.0, "", timings=b"after")
    monkeypatch.setattr(tensorrt, "build", lambda *_: built)
    monkeypatch.setattr(engine, "_asked", lambda *_: {})
    monkeypatch.setattr(proof, "enforce", enforce)
    words = (with_options(timing_cache=timings), graph, made(), REQUEST, tmp_path / "x.engine")
    with nullcontext() if proven else pytest.raises(VerificationError):
        engine.build(*words, "key", lambda *_: None)
    assert timings.read_bytes() == (b"after" if proven else b"before")


def test_words_of_the_wishes() -> None:
    wishes = Wishes(
        expect_histogram=Path("log.csv"), expect_coverage=99.99975, memory=2.0,
        timing_cache=Path("a/timings"), save_engine=Path("x.engine"),
    )  # fmt: skip
    assert wishes.words() == [
        "--expect-histogram", "log.csv", "--expect-coverage", "99.99975", "--memory", "2",
        "--timing-cache", "a/timings", "--save-engine", "x.engine",
    ]  # fmt: skip


def test_another_version_of_this_project(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_key(*BASE)
    monkeypatch.setattr(engine, "__version__", "9.9.9")
    assert cache_key(*BASE) != before
