"""The CPU as kernels see it: flags, caps, and what they mean for 8-bit sums."""

from __future__ import annotations

from pathlib import Path

import pytest

from rest_deploy.machine import Cpu, adds_bytes_exactly, cpu, features_for, instruction_set

EVERYTHING = Cpu(
    name="all",
    features=("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
)


def test_name_and_features_are_linux(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        "processor : 0\ncpu family : 25\nmodel : 1\nmodel name : EPYC\nstepping : 1\n"
        "flags : fpu avx2 fma sha_ni\n"
    )
    assert cpu(tmp_path) == Cpu(name="EPYC (25/1/1)", features=("avx2", "fma"))


def test_a_system_that_does_not_tell_has_no_features(tmp_path: Path) -> None:
    assert cpu(tmp_path).features == ()
    assert not adds_bytes_exactly(())


@pytest.mark.parametrize(
    ("cap", "exact", "words"),
    [
        ("", True, "AVX-512 with VNNI"),
        ("ALL", True, "AVX-512 with VNNI"),
        ("avx512_core_vnni", True, "AVX-512 with VNNI"),
        ("AVX512_CORE", False, "AVX-512 without VNNI"),
        ("AVX2", False, "AVX2 without VNNI"),
        ("SSE41", False, "SSE without VNNI"),
    ],
)
def test_a_cap_holds_openvino_and_nothing_else(cap: str, exact: bool, words: str) -> None:
    environ = {"DNNL_MAX_CPU_ISA": cap}
    found = features_for("openvino", EVERYTHING, environ)
    assert adds_bytes_exactly(found) == exact
    assert instruction_set(found) == words
    assert features_for("onnxruntime", EVERYTHING, environ) == EVERYTHING.features


def test_the_first_variable_counts() -> None:
    environ = {"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "ALL"}
    assert features_for("openvino", EVERYTHING, environ) == ("avx2", "fma")


def test_a_cap_gives_nothing_that_is_not_there() -> None:
    old = Cpu(name="old", features=("avx2",))
    assert features_for("openvino", old, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}) == ("avx2",)


def test_arm_has_dot_products_of_its_own() -> None:
    assert instruction_set(("asimddp",)) == "Arm with dot products"
