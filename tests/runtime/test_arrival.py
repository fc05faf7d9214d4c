"""An engine that answers otherwise here than where it was built is refused; others are asked
once."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("openvino")

from rest_deploy import machine, verbs
from rest_deploy.artifact import Sidecar, read_sidecar, sha256_file, sidecar_path, to_json
from rest_deploy.contracts import GateResult
from rest_deploy.engine.compile_cache import CompileCache
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.engine.openvino import OpenVinoRunner
from rest_deploy.errors import ArtifactError, OutputError, SelfTestError
from rest_deploy.runtime import arrival, site
from rest_deploy.runtime.arrival import KEPT, Arrival, digest, error
from rest_deploy.runtime.classifier import Classifier
from rest_deploy.runtime.provider import default_cache
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.specialize import NEVER
from rest_deploy.selftest import Site
from rest_deploy.signature import Output
from rest_deploy.verbs import Images, Request

PROBE = (1, 3, 224, 224)
Feeds = Mapping[str, npt.NDArray[np.generic]]

SATURATING = """
schema = 1
name = "eight-bits"
format = "int8"
quantize = ["stem", "patch", "qkv", "proj", "mlp", "head"]
"""
"""Weights of 8 bits: without VNNI their sums saturate."""

VNNI = ("avx2", "fma", "avx512f", "avx512_vnni")


@pytest.fixture(scope="module")
def built(trained_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Engines by name, never opened where they are."""
    folder = tmp_path_factory.mktemp("built")
    model = shutil.copy(trained_nano, folder)
    shutil.copy(sidecar_path(trained_nano), folder)
    recipe = folder / "eight-bits.toml"
    recipe.write_text(SATURATING)

    def build(backend: str, request: Request) -> Path:
        report = verbs.build_engine(Path(model), request, workspace=folder, backend=backend)
        return Path(report.path)

    images = Images(limit=16)
    fp32 = Request(precision="fp32", images=images, gate_images=16)
    int8 = Request(precision="int8", images=images, gate=False, recipe=str(recipe))
    return {
        "export": Path(model),
        "openvino": build("openvino", fp32),
        "onnxruntime": build("onnxruntime", fp32),
        "int8": build("openvino", int8),
    }


@pytest.fixture
def engine(built: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def copy(name: str) -> Path:
        shutil.copy(sidecar_path(built[name]), tmp_path)
        return Path(shutil.copy(built[name], tmp_path))

    return copy


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Backend of every call with one image of a probe's size."""
    calls: list[str] = []
    for runner in (OpenVinoRunner, OnnxRuntimeRunner):
        infer = runner.infer

        def counted(self: Any, feeds: Feeds, infer: Any = infer) -> Any:
            if next(iter(feeds.values())).shape == PROBE:
                calls.append(self.backend)
            return infer(self, feeds)

        monkeypatch.setattr(runner, "infer", counted)
    return calls


def opened(path: Path, **options: Any) -> None:
    Session.open(path, specialize=NEVER, **options).close()


def memory(path: Path) -> list[Path]:
    return sorted(default_cache(path).glob("selftest-*.json"))


def rewritten(path: Path, **changes: Any) -> None:
    """Another sidecar; changes: of its build."""
    sidecar = described(path)
    assert sidecar.build is not None
    build = msgspec.structs.replace(sidecar.build, **changes)
    changed = msgspec.structs.replace(
        sidecar, build=build, sha256=sha256_file(path), size_bytes=path.stat().st_size
    )
    sidecar_path(path).write_text(to_json(changed))


def described(path: Path) -> Sidecar:
    sidecar = read_sidecar(path, check_hash=False)
    assert sidecar is not None
    return sidecar


def elsewhere(path: Path, **changes: Any) -> Site:
    build = described(path).build
    assert build is not None
    assert build.site is not None
    return msgspec.structs.replace(build.site, **changes)


# --- asked once -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_two_calls_on_a_new_machine_and_none_after(
    engine: Callable[[str], Path], probed: list[str], name: str
) -> None:
    path = engine(name)
    opened(path)
    assert probed == [f"{name}/cpu"] * 2
    opened(path)
    opened(path, threads=None)
    assert len(probed) == 2


def test_every_way_to_open_it(engine: Callable[[str], Path], probed: list[str]) -> None:
    path = engine("onnxruntime")
    Classifier.open(path, selftest=False)
    assert (probed, memory(path)) == ([], [])
    Classifier.open(path)
    assert len(probed) == 2


def test_another_backend_is_another_place(engine: Callable[[str], Path], probed: list[str]) -> None:
    path = engine("onnxruntime")
    opened(path)
    opened(path, backend="openvino")
    assert probed == ["onnxruntime/cpu"] * 2 + ["openvino/cpu"] * 2


def test_one_thread_is_another_place_than_several(
    engine: Callable[[str], Path], probed: list[str]
) -> None:
    path = engine("onnxruntime")
    opened(path)
    opened(path, threads=1)
    assert len(probed) == (4 if machine.cores() > 1 else 2)
    opened(path, threads=3)  # several, as all cores are
    assert len(probed) == (4 if machine.cores() > 1 else 6)


@pytest.mark.parametrize("change", ["version", "features", "cpu"])
def test_a_pass_of_another_machine_does_not_count(
    engine: Callable[[str], Path],
    probed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    path = engine("onnxruntime")
    opened(path)
    here = elsewhere(path)
    other = {"version": "1.0.0", "features": VNNI, "cpu": "another"}[change]
    changed = msgspec.structs.replace(here, **{change: other})
    monkeypatch.setattr(arrival, "site", lambda *_: changed)
    opened(path)
    assert len(probed) == 4
    assert len(memory(path)) == 2  # and it is remembered for itself


def test_only_what_the_whole_key_says_counts(
    engine: Callable[[str], Path], probed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = engine("onnxruntime")
    opened(path)
    (told,) = memory(path)
    content = json.loads(told.read_text())
    told.write_text(json.dumps({**content, "key": content["key"][:16] + "0" * 48}))
    opened(path)
    assert len(probed) == 4
    told.write_text("{}")
    opened(path)
    assert len(probed) == 6
    assert "is not read" in caplog.text
    opened(path)
    assert len(probed) == 6


def test_a_folder_that_cannot_be_written(
    engine: Callable[[str], Path],
    probed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = engine("onnxruntime")

    def refused(*_: object) -> None:
        raise OutputError("no place")

    monkeypatch.setattr(arrival, "write_text", refused)
    with caplog.at_level(logging.WARNING):
        opened(path)
        opened(path)
    assert len(probed) == 4
    assert "the self-test is run again at every start: no place" in caplog.text


def test_old_passes_go(engine: Callable[[str], Path]) -> None:
    path = engine("onnxruntime")
    default_cache(path).mkdir()
    for index in range(KEPT + 5):
        old = default_cache(path) / f"selftest-{index:016x}.json"
        old.write_text("{}")
        os.utime(old, ns=(index, index))
    opened(path)
    assert len(memory(path)) == KEPT
    assert not (default_cache(path) / f"selftest-{0:016x}.json").exists()


def test_a_file_without_one_opens_as_before(
    engine: Callable[[str], Path], probed: list[str]
) -> None:
    path = engine("export")
    opened(path)
    assert (probed, default_cache(path).exists()) == ([], False)
    older = engine("onnxruntime")
    rewritten(older, site=None, selftest=None)
    opened(older)
    assert (probed, default_cache(older).exists()) == ([], False)


@pytest.mark.parametrize(
    ("precision", "features", "told"),
    [
        ("int8", ("avx2",), True),
        ("int8", ("avx512f", "avx512_vnni"), False),
        ("fp32", ("avx2",), False),
    ],
)
def test_of_an_int8_engine_without_one_the_cpu_is_doubted(
    engine: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    features: tuple[str, ...],
    told: bool,
) -> None:
    older = engine("onnxruntime")
    rewritten(older, site=None, selftest=None, precision=precision)
    monkeypatch.setattr(machine, "features_for", lambda *_a, **_k: features)
    opened(older)
    assert ("carries no self-test: this CPU (" in caplog.text) == told


CHILD = """
import sys
from pathlib import Path
from rest_deploy.engine.openvino import OpenVinoRunner
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.specialize import NEVER
infer, calls = OpenVinoRunner.infer, []
def counted(self, feeds):
    calls.append(next(iter(feeds.values())).shape)
    return infer(self, feeds)
OpenVinoRunner.infer = counted
Session.open(Path(sys.argv[1]), specialize=NEVER).close()
print(calls.count((1, 3, 224, 224)))
"""


@pytest.mark.parametrize("cap", ["AVX2", "AVX", "AVX512_CORE"])
def test_a_cap_of_the_instruction_set(engine: Callable[[str], Path], cap: str) -> None:
    """Asked again exactly where the cap takes something from this CPU."""
    path = engine("openvino")
    opened(path)
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": cap}
    left = machine.features_for("openvino", environ=environment)
    again = 0 if left == machine.features_for("openvino", environ={}) else 2

    def calls() -> int:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(path)],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return int(done.stdout.split()[-1])

    assert [calls(), calls()] == [again, 0]


# --- refused --------------------------------------------------------------------------------------


def test_a_changed_weight_with_a_sidecar_made_to_fit(engine: Callable[[str], Path]) -> None:
    path = engine("onnxruntime")
    opened(path)
    model = onnx.load(path)
    (head,) = (one for one in model.graph.initializer if one.name.startswith("head.weight"))
    weights = numpy_helper.to_array(head).copy()
    weights.flat[7] *= 2
    head.CopyFrom(numpy_helper.from_array(weights, head.name))
    onnx.save(model, path)
    rewritten(path)
    with pytest.raises(SelfTestError, match="it is damaged") as raised:
        opened(path)
    assert raised.value.exit_code == 1
    assert "logits against PyTorch float64: error " in raised.value.message
    assert "bound 1e-05" in raised.value.message
    assert "build it on this machine: rest-deploy build-engine" in str(raised.value.hint)
    assert "--no-selftest" in str(raised.value.hint)
    opened(path, selftest=False)


def resealed(path: Path, weight: str, place: int = 7) -> None:
    """One byte of a weight in the compiled form, whose digest is made to fit again: of a float its
    exponent, of an 8-bit integer its upper half."""
    with Session.open(path, specialize=NEVER, selftest=False) as session:
        assert isinstance(session.runner, OpenVinoRunner)
        cache = session.runner._cache
    assert isinstance(cache, CompileCache)
    payload = cache.load("dynamic")
    assert payload is not None
    (stored,) = (one for one in onnx.load(path).graph.initializer if one.name == weight)
    values = numpy_helper.to_array(stored)
    start = payload.find(values.tobytes())
    assert start > 0
    changed = bytearray(payload)
    at = start + place * values.itemsize + values.itemsize - 1
    changed[at] ^= 1 if values.itemsize > 1 else 0x20
    cache.save("dynamic", bytes(changed))


@pytest.mark.parametrize("tested_before", [True, False])
def test_a_compiled_form_that_was_changed_and_sealed_again(
    engine: Callable[[str], Path], probed: list[str], *, tested_before: bool
) -> None:
    path = engine("openvino")
    opened(path, selftest=tested_before)
    opened(path, selftest=tested_before)
    resealed(path, "stem.conv2.weight")
    cause = "was changed" if tested_before else "may be damaged"
    with pytest.raises(SelfTestError, match=f"its compiled form in .* {cause}") as raised:
        opened(path)
    assert f"delete {default_cache(path)}" in str(raised.value.hint)
    shutil.rmtree(default_cache(path))
    opened(path)


def test_a_changed_byte_that_no_bound_of_int8_would_see(engine: Callable[[str], Path]) -> None:
    path = engine("int8")
    opened(path)
    with Session.open(path, specialize=NEVER) as session:
        whole = Arrival.of(path, session.sidecar, session.runner, None)
        assert whole is not None
        before = whole.run()["logits"]
    resealed(path, "stem.conv2.weight.int8", 0)
    with Session.open(path, specialize=NEVER, selftest=False) as session:
        changed = Arrival.of(path, session.sidecar, session.runner, None)
        assert changed is not None
        after = changed.run()["logits"]
        checks = changed.checks({"logits": after})
    assert arrival.SAME < error(before, after) < 0.01
    assert [check.passed for check in checks] == [True, False]
    with pytest.raises(SelfTestError, match=f"was changed: logits against {arrival.COMPILED}"):
        opened(path)


def test_expected_values_that_were_changed(engine: Callable[[str], Path]) -> None:
    path = engine("onnxruntime")
    opened(path)
    build = described(path).build
    assert build is not None
    assert build.selftest is not None
    (logits,) = build.selftest.expected
    values = arrival.values_of(logits.values, logits.channels).copy()
    values[1, 3] += 0.01
    for changed, refusal, why in (
        (arrival.text_of(values), SelfTestError, "error [0-9.e-]+, bound 1e-05"),
        (logits.values[:-9], ArtifactError, "the self-test in the sidecar of .* is damaged"),
        (arrival.text_of(values[:1]), SelfTestError, "error inf"),
    ):
        one = msgspec.structs.replace(logits, values=changed)
        rewritten(path, selftest=msgspec.structs.replace(build.selftest, expected=(one,)))
        with pytest.raises(refusal, match=why):
            opened(path)


@pytest.mark.parametrize("damage", [lambda png: png[:-40], lambda png: "!" + png[1:]])
def test_a_probe_that_is_damaged(
    engine: Callable[[str], Path], damage: Callable[[str], str]
) -> None:
    path = engine("onnxruntime")
    build = described(path).build
    assert build is not None
    assert build.selftest is not None
    probes = (damage(build.selftest.probes[0]), build.selftest.probes[1])
    rewritten(path, selftest=msgspec.structs.replace(build.selftest, probes=probes))
    with pytest.raises(ArtifactError, match=r"the self-test in the sidecar of .* is damaged"):
        opened(path)


def test_built_where_sums_are_exact_and_copied_here(engine: Callable[[str], Path]) -> None:
    """As it comes from a machine with VNNI, where the gate saw nothing of what happens here."""
    if machine.adds_bytes_exactly(machine.features_for("openvino")):
        pytest.skip("this CPU adds 8-bit products exactly, as the other one would")
    path = engine("int8")
    gate = passed_gate(engine("openvino"))
    rewritten(path, site=elsewhere(path, cpu="Xeon", features=VNNI), gate=gate)
    here = machine.instruction_set(machine.features_for("openvino"))
    with pytest.raises(
        SelfTestError,
        match=f"built on AVX-512 with VNNI; this CPU has {here}, where 8-bit sums saturate: logits "
        "against the float export: error 0.0[0-9]+, bound 0.03",
    ):
        opened(path)
    assert not memory(path)
    opened(path, selftest=False)
    assert not memory(path)
    # The control: here, and without a gate that said otherwise, its builder knows it.
    opened(engine("int8"))


def test_without_a_gate_it_opens_where_it_was_built_alone(engine: Callable[[str], Path]) -> None:
    path = engine("int8")
    build = described(path).build
    assert build is not None
    assert build.selftest is not None
    (logits,) = build.selftest.expected
    assert logits.built is not None
    assert logits.bound == 0.03  # nothing is widened
    strict = msgspec.structs.replace(logits, bound=logits.built / 2)  # also where sums are exact
    selftest = msgspec.structs.replace(build.selftest, expected=(strict,))
    rewritten(path, selftest=selftest)
    opened(path)
    opened(path, threads=1)
    for changes, cause in (
        ({"cpu": "another"}, "built without the accuracy gate; this is "),
        ({"features": VNNI}, "built on AVX-512 with VNNI without the accuracy gate; this CPU has"),
        ({"version": "2025.1"}, "built with openvino 2025.1 without the accuracy gate; here is "),
    ):
        rewritten(path, selftest=selftest, site=elsewhere(engine("int8"), **changes))
        with pytest.raises(SelfTestError, match=cause):
            opened(path)
    worse = msgspec.structs.replace(strict, built=logits.built / 2)
    rewritten(engine("int8"), selftest=msgspec.structs.replace(selftest, expected=(worse,)))
    with pytest.raises(SelfTestError, match="built without the accuracy gate"):
        opened(path)


def test_another_version_of_the_runtime_is_named(
    engine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that answers otherwise: its results are made wrong here."""
    path = engine("openvino")
    infer = OpenVinoRunner.infer

    def newer(self: OpenVinoRunner, feeds: Feeds) -> dict[str, npt.NDArray[np.generic]]:
        answers = infer(self, feeds)
        return {name: np.multiply(answer, 1.0001) for name, answer in answers.items()}

    opened(path)
    monkeypatch.setattr(OpenVinoRunner, "infer", newer)
    opened(path)  # the same version was asked
    monkeypatch.setattr(
        arrival, "site", lambda *given: msgspec.structs.replace(site.site(*given), version="2027.1")
    )
    with pytest.raises(SelfTestError, match=r"built with openvino 2026.*; here is openvino 2027"):
        opened(path)


def rounded(path: Path, bits: int, target: Path) -> None:
    """What a runtime that computes with so many bits behind the point does to weights, which is
    half of what it does."""
    model, drop = onnx.load(path), 23 - bits
    for one in model.graph.initializer:
        if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) > 1:
            words = numpy_helper.to_array(one).view(np.uint32) + np.uint32(1 << (drop - 1))
            kept = (words >> np.uint32(drop) << np.uint32(drop)).view(np.float32)
            one.CopyFrom(numpy_helper.from_array(kept, one.name))
    onnx.save(model, target)


@pytest.mark.parametrize("bits", [pytest.param(7, id="bf16"), pytest.param(10, id="TF32")])
def test_a_runtime_that_takes_fewer_bits(
    engine: Callable[[str], Path], tmp_path: Path, bits: int
) -> None:
    path = engine("onnxruntime")
    rounded(path, bits, tmp_path / "fallen.onnx")
    with Session.open(path) as session:
        for runner, passes in (
            (session.runner, True),
            (OnnxRuntimeRunner(tmp_path / "fallen.onnx"), False),
        ):
            found = Arrival.of(path, session.sidecar, runner, None)
            assert found is not None
            (check,) = found.checks(found.run())
            assert check.passed == passes, check


def test_not_a_number(engine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = engine("onnxruntime")
    infer = OnnxRuntimeRunner.infer

    def broken(self: OnnxRuntimeRunner, feeds: Feeds) -> dict[str, npt.NDArray[np.generic]]:
        return {name: np.full_like(answer, np.nan) for name, answer in infer(self, feeds).items()}

    monkeypatch.setattr(OnnxRuntimeRunner, "infer", broken)
    with pytest.raises(SelfTestError, match="error inf"):
        opened(path)


def test_digests() -> None:
    vector = np.arange(6, dtype=np.float16).reshape(2, 3)
    found = digest(Output("logits", "logits", 3), vector)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vector)
    cells = np.arange(16, dtype=np.float32).reshape(1, 2, 2, 4)
    np.testing.assert_array_equal(digest(Output("c2", "features", 2, 4), cells), [[3.5, 11.5]])


def passed_gate(path: Path) -> GateResult:
    build = described(path).build
    assert build is not None
    assert build.gate is not None
    return build.gate
