"""The CPU as the runtimes' kernels see it: what decides whether 8-bit sums are exact here.

x86 CPUs without VNNI multiply unsigned by signed bytes and add two neighbouring products in 16 bits
(vpmaddubsw), where 255 * 127 * 2 does not fit: the sum stays at 32767. VNNI, AMX and the Arm dot
products add four of them in 32 bits.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

from rest_deploy.stored import Struct

ROOT = Path("/")

FEATURES = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16", "sve"),
)
"""CPU flags by which runtimes choose other kernels, as Linux names them; the last are Arm's."""

INTEGER_UNITS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""With any of these, INT8 products are exact, and faster than float32."""

BF16_UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables that hold oneDNN, and so OpenVINO, below what the CPU has; the first one counts."""

_VECTOR = frozenset({"avx2", "fma"})
_WIDE = _VECTOR | {"avx512f"}
_BYTES = _WIDE | {"avx512_vnni", "avx_vnni"}
_HALVES = _BYTES | {"avx512_bf16"}
_HELD: dict[str, frozenset[str]] = {
    "SSE41": frozenset(),
    "AVX": frozenset(),
    "AVX2": _VECTOR,
    "AVX2_VNNI": _VECTOR | {"avx_vnni"},
    "AVX2_VNNI_2": _VECTOR | {"avx_vnni"},
    "AVX512_CORE": _WIDE,
    "AVX512_CORE_VNNI": _BYTES,
    "AVX512_CORE_BF16": _HALVES,
    "AVX10_1_512": _HALVES | {"avx512_fp16"},
    "AVX512_CORE_FP16": _HALVES | {"avx512_fp16"},
}
"""What each cap leaves, by oneDNN's names; one that is not here leaves everything."""


class Cpu(Struct, frozen=True):
    """name: the model, with family and stepping; features: those of `FEATURES` it has."""

    name: str
    features: tuple[str, ...]


def cpu(root: Path = ROOT) -> Cpu:
    """This machine's. root: of the file system, for tests."""
    info = _text(root / "proc/cpuinfo")
    flags = set((_field(info, "flags") or _field(info, "Features")).split())
    name = _field(info, "model name") or platform.processor() or platform.machine()
    numbers = [_field(info, key) for key in ("cpu family", "model", "stepping")]
    return Cpu(
        name=f"{name} ({'/'.join(numbers)})" if all(numbers) else name,
        features=tuple(feature for feature in FEATURES if feature in flags),
    )


def cores() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cap(environ: Mapping[str, str] = os.environ) -> str:
    """The variable of `CAPS` that counts, "NAME=VALUE", "" where none is set."""
    return next((f"{name}={environ[name]}" for name in CAPS if environ.get(name)), "")


def features_for(
    backend: str, of: Cpu | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """What a backend ("openvino", "onnxruntime") may use of the CPU: all, or what the caps leave.
    ONNX Runtime has no such variable."""
    features = (of or cpu()).features
    if backend != "openvino":
        return features
    left = _HELD.get(cap(environ).partition("=")[2].upper())
    return features if left is None else tuple(name for name in features if name in left)


def adds_bytes_exactly(features: Iterable[str]) -> bool:
    """Whether sums of 8-bit products are exact with these features. None at all: not known, and
    taken as inexact."""
    return not INTEGER_UNITS.isdisjoint(features)


def instruction_set(features: Iterable[str]) -> str:
    """In words, for reports: "AVX2 without VNNI", "AVX-512 with VNNI"."""
    found = set(features)
    if found & {"asimddp", "i8mm", "sve"}:
        return "Arm with dot products" if found & INTEGER_UNITS else "Arm without dot products"
    widest = "AVX-512" if "avx512f" in found else "AVX2" if "avx2" in found else "SSE"
    return f"{widest} {'with' if found & INTEGER_UNITS else 'without'} VNNI"


def _field(text: str, key: str) -> str:
    """Of `key : value` lines the first with that key; "" without."""
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == key:
            return value.strip()
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
