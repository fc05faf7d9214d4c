"""What this machine can do, and for what it cannot: why, and the command that mends it.

Nothing here raises: a probe that fails is itself a finding and becomes a row. Packages are looked
up, not imported; only ONNX Runtime is, because nothing else knows its execution providers.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rest_deploy import cuda_driver
from rest_deploy.contracts import Struct
from rest_deploy.engine.providers import GPU_PACKAGE, PROVIDERS, Provider
from rest_deploy.errors import MissingDependencyError
from rest_deploy.machine import INTEGER_UNITS
from rest_deploy.packages import (
    CPP_HEADERS,
    CPP_MEND,
    CPP_PROGRAMS,
    EXPORT_NEEDS,
    OPENVINO,
    ORT,
    PACKAGES,
    SERVE_NEEDS,
    TRITON_NEEDS,
    Package,
)

Area = Literal["python", "cpu", "memory", "package", "program", "gpu", "job"]
State = Literal["usable", "limited", "missing"]

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
INCLUDE = (Path("/usr/local/include"), Path("/usr/include"))
CPP = "C++ build"
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
# Rule of thumb: torch, the exporter and a runtime in one process need about this much.
LOW_MEMORY_GIB = 2.0

# Compute capability (Turing) from which TensorRT and TensorRT-RTX run.
OLDEST_GPU = (7, 5)
# Majors that TensorRT-RTX's support matrix leaves out.
NOT_RTX = {9: "Hopper", 10: "data-centre Blackwell", 11: "Thor"}

GPU_ORT = GPU_PACKAGE
PROVIDER_ROWS = {"cuda": "cuda provider", "tensorrt": "trt provider",
                 "nv-tensorrt-rtx": "rtx provider"}  # fmt: skip


class Row(Struct, frozen=True, kw_only=False):
    """One finding. `mend` is the command or action, empty where there is nothing to mend."""

    area: Area
    name: str
    state: State
    detail: str
    mend: str = ""


class Report(Struct, frozen=True):
    """Everything found, and what it means for the jobs of this toolkit."""

    schema: Literal[1]
    rows: tuple[Row, ...]
    jobs: tuple[Row, ...]


def examine() -> Report:
    """Probe this machine. Takes about as long as importing ONNX Runtime; raises nothing."""
    rows = _probe("python", "python", _python)
    rows += _probe("cpu", "cpu", _cpu)
    rows += _probe("memory", "memory", _memory)
    for package in PACKAGES:
        rows += _probe("package", package.names[0], partial(_package, package))
    if any(row.name == "onnxruntime" and row.state != "missing" for row in rows):
        rows += _probe("package", "providers", _providers, f"pip install --force-reinstall {ORT}")
    rows += _probe("program", CPP, _cpp, CPP_MEND)
    rows += _probe("gpu", "nvidia driver", _gpus)
    return Report(schema=1, rows=tuple(rows), jobs=tuple(_jobs(rows)))


def render(report: Report) -> str:
    """The report as plain text, at most 100 columns, the jobs last."""
    lines: list[str] = []
    wrap = partial(textwrap.wrap, width=100, break_on_hyphens=False)
    for row in (*report.rows, *report.jobs):
        if row.area not in lines:
            lines.append(row.area)
        lead = f"  {row.name:<15} {row.state:<7} "
        lines += wrap(row.detail or "-", initial_indent=lead, subsequent_indent=" " * 26)
        # Far to the left, so that a command stays on one line.
        lines += wrap(row.mend, initial_indent=" " * 6 + "-> ", subsequent_indent=" " * 9)
    return "\n".join(lines)


def _probe(area: Area, name: str, find: Callable[[], Iterable[Row]], mend: str = "") -> list[Row]:
    """The rows of one probe; where it fails, one row that says so."""
    try:
        return list(find())
    except MissingDependencyError as error:
        return [Row(area, name, "missing", error.message, error.hint or mend)]
    except Exception as error:  # noqa: BLE001  # on a broken machine anything may be raised
        detail = " ".join(f"could not be probed: {type(error).__name__}: {error}".split())
        return [Row(area, name, "missing", detail, mend)]


def _either(
    area: Area, name: str, good: str, state: State, bad: str, mend: str, *, fits: bool
) -> Row:
    """The usable row where it `fits`, the other one where it does not."""
    return Row(area, name, "usable", good) if fits else Row(area, name, state, bad, mend)


def _python() -> Iterable[Row]:
    version = platform.python_version()
    detail = f"{version} on {platform.system()} {platform.machine()}; supported: 3.11 and later"
    mend = "make the environment anew with Python 3.11 or later"
    fits = _release(version) >= (3, 11)
    yield _either("python", "python", detail, "missing", detail, mend, fits=fits)


def _cpu() -> Iterable[Row]:
    info = _fields(CPUINFO)
    model = info.get("model name") or platform.processor() or platform.machine()
    cores = os.cpu_count() or 1
    # Containers and taskset hand out fewer cores than there are; threads beyond them only wait.
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    yield Row("cpu", "cpu", "usable", f"{model}, {ours} of {cores} cores")
    flags = set((info.get("flags") or info.get("Features") or "").split())
    if not flags:
        yield Row("cpu", "features", "limited", f"unknown: {CPUINFO} does not tell")
        return
    good = " ".join(name for name in CPU_FEATURES if name in flags) or "asimd"
    bad = "no AVX2: every model runs several times slower than on a CPU that has it"
    fits = bool(flags & {"avx2", "asimd"})
    yield _either("cpu", "features", good, "limited", bad, "", fits=fits)
    dot = sorted(flags & INTEGER_UNITS)
    good = f"in hardware ({', '.join(dot)})"
    bad = "no VNNI: INT8 models are smaller here, not faster, and 8-bit sums may saturate"
    yield _either("cpu", "int8", good, "limited", bad, "use the float32 model here", fits=bool(dot))
    if flags & {"avx512_bf16", "amx_bf16"}:
        detail = "in hardware; OpenVINO then computes float32 models in bf16 unless told f32"
        yield Row("cpu", "bf16", "usable", detail)


def _memory() -> Iterable[Row]:
    info = _fields(MEMINFO)
    if not info:
        yield Row("memory", "memory", "limited", f"unknown: this system has no {MEMINFO}")
        return
    total, free = (int(info[key].split()[0]) / 2**20 for key in ("MemTotal", "MemAvailable"))
    good = f"{free:.1f} GiB available of {total:.1f} GiB"
    bad = f"{good}; the system may kill an export"
    fits = free >= LOW_MEMORY_GIB
    yield _either("memory", "memory", good, "limited", bad, "close other programs", fits=fits)


def _package(package: Package) -> Iterable[Row]:
    """Look a package up by its metadata and its module, without importing it."""
    found: dict[str, str] = {}
    for name in package.names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    row = partial(Row, "package", package.names[0])
    label, version = next(iter(found.items()), (package.names[0], "of unknown version"))
    install = f"pip install {package.install}"
    here = _importable(package.module) or (
        package.other_module != "" and _importable(package.other_module)
    )
    if not found and not here:
        yield row("missing", f"not installed ({package.purpose})", install)
    elif not here:
        detail = f"pip lists {label} {version}, but there is no module {package.module}"
        yield row("missing", detail, f"pip install --force-reinstall {package.install}")
    elif package.module == "onnxruntime" and len(found) > 1:
        detail = f"{' and '.join(found)} are both installed and overwrite each other's files"
        yield row("limited", detail, f"pip uninstall -y {' '.join(found)} && {install}")
    elif found and _release(version) < _release(package.minimum):
        yield row("limited", f"{version} is too old; expected {package.minimum} or later", install)
    else:
        yield row("usable", version if label == package.names[0] else f"{label} {version}")


def _providers() -> Iterable[Row]:
    import onnxruntime

    names: list[str] = onnxruntime.get_available_providers()
    yield Row("package", "providers", "usable", f"onnxruntime offers {', '.join(names)}")
    for name, row in PROVIDER_ROWS.items():
        yield _provider(row, PROVIDERS[name], names)


def _provider(name: str, provider: Provider, names: list[str]) -> Row:
    """Looked up, not loaded: a session says what else it lacks."""
    option = f"--provider {provider.name}:"
    needs = "a driver and a GPU (below)"
    if provider.plugin:
        here, lacking = "its plugin is installed", "its plugin is not installed"
        fits = _importable(provider.plugin)
    else:
        here, lacking = "compiled in", "this onnxruntime is built without it"
        fits = provider.ort_name in names
    if provider.name == "tensorrt":
        needs = "a driver, a GPU (below) and the libraries of TensorRT"
    good = f"{option} {here}, which is only real with {needs}"
    bad = f"{option} {lacking} (fine where there is no NVIDIA GPU)"
    return _either("package", name, good, "missing", bad, provider.install, fits=fits)


def _cpp() -> Iterable[Row]:
    """Looked for where a compiler looks without being told; CMake may be told of other places."""
    programs = {name: shutil.which(name) for name in CPP_PROGRAMS}
    lacking = [name for name, path in programs.items() if path is None]
    lacking += [name for name in CPP_HEADERS if not any((i / name).is_file() for i in INCLUDE)]
    good = f"{', '.join(CPP_PROGRAMS)} and the headers that cpp/ needs"
    bad = f"not here: {', '.join(lacking)} (for the C++ runtime alone)"
    yield _either("program", CPP, good, "missing", bad, CPP_MEND, fits=not lacking)


def _gpus() -> Iterable[Row]:
    driver = cuda_driver.Driver()
    major, minor = driver.cuda_version()
    detail = f"runs programs made for CUDA {major}.{minor} and older"
    yield Row("gpu", "nvidia driver", "usable", detail)
    for ordinal in range(driver.count()):
        yield from _probe("gpu", f"gpu {ordinal}", partial(_gpu, driver, ordinal))


def _gpu(driver: cuda_driver.Driver, ordinal: int) -> Iterable[Row]:
    name, gpu = f"gpu {ordinal}", driver.gpu(ordinal)
    major, minor = gpu.compute_capability
    good = f"{gpu.name}, {gpu.memory / 2**30:.1f} GiB, compute capability {major}.{minor}"
    bad = f"{good}; TensorRT needs 7.5 or later"
    fits = gpu.compute_capability >= OLDEST_GPU
    yield _either("gpu", name, good, "limited", bad, "use a newer GPU", fits=fits)
    good = f"TensorRT-RTX runs on {name}"
    bad = f"TensorRT-RTX does not run on {name}: {NOT_RTX.get(major, 'too old')}, {major}.{minor}"
    fits = fits and major not in NOT_RTX
    yield _either("gpu", "rtx", good, "missing", bad, "use TensorRT there", fits=fits)


def _jobs(rows: list[Row]) -> Iterable[Row]:
    """What the findings mean for the jobs of this toolkit."""
    ready = {row.name for row in rows if row.state == "usable"}
    if "providers" not in ready:
        ready.discard("onnxruntime")  # installed, but it cannot be imported
    if gpu := any(name.startswith("gpu ") for name in ready):
        ready.add("gpu")
    if ready & {"cuda-python", "pycuda"}:
        ready.add("buffers")

    def job(name: str, ways: dict[str, set[str]], lacking: str, mend: str) -> Row:
        able = " or ".join(way for way, needs in ways.items() if needs <= ready)
        return _either("job", name, f"with {able}", "missing", lacking, mend, fits=bool(able))

    lacking = ", ".join(name for name in EXPORT_NEEDS if name not in ready)
    mend = "pip install 'rest-deploy[export,onnxruntime]'"
    yield job("export", {"PyTorch": set(EXPORT_NEEDS)}, f"needs {lacking}", mend)

    ways = {"onnxruntime": {"onnxruntime"}, "openvino": {"openvino"}}
    yield job("run on CPU", ways, "needs onnxruntime or openvino", f"pip install {ORT}")

    ways = {
        "onnxruntime": {"gpu", "onnxruntime", "cuda provider"},
        "tensorrt": {"gpu", "tensorrt", "buffers"},
        "tensorrt-rtx": {"rtx", "tensorrt-rtx", "buffers"},
    }
    packages = "needs onnxruntime-gpu, or tensorrt with cuda-python"
    lacking = packages if gpu else "needs an NVIDIA GPU with its driver"
    yield job("run on CUDA", ways, lacking, GPU_ORT if gpu else cuda_driver.MEND)

    elsewhere = "" if "rtx" in ready else " (its engines run on RTX GPUs elsewhere)"
    ways = {"tensorrt": {"gpu", "tensorrt"}, f"tensorrt-rtx{elsewhere}": {"tensorrt-rtx"}}
    lacking = "needs tensorrt and the GPU it builds for, or tensorrt-rtx, which needs no GPU"
    mend = f"pip install 'rest-deploy[{'tensorrt' if gpu else 'tensorrt-rtx'}]'"
    yield job("build TensorRT", ways, lacking, mend)

    runtime = "" if ready & {"onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"} else "a runtime"
    for name, needs, extra in (
        ("serve", SERVE_NEEDS, "serve"),
        ("embed", ("pyarrow",), "embed"),
        ("Ray", ("ray", "pyarrow", *SERVE_NEEDS), "ray"),
    ):
        absent = [need for need in needs if need not in ready] + [runtime] * bool(runtime)
        mend = f"pip install 'rest-deploy[{extra}{',onnxruntime' if runtime else ''}]'"
        words = f"needs {', '.join(absent)}"
        yield _either("job", name, "with an engine", "missing", words, mend, fits=not absent)

    absent = [need for need in TRITON_NEEDS if need not in ready]
    good, mend = "checked by NVIDIA's schema", "pip install 'rest-deploy[triton]'"
    bad = f"written, but not checked by NVIDIA's schema without {', '.join(absent)}"
    yield _either("job", "Triton", good, "limited", bad, mend, fits=not absent)

    absent = [need for need in (CPP, "openvino") if need not in ready]
    mend = CPP_MEND if CPP in absent else f"pip install {OPENVINO}"
    words = f"needs {' and '.join(absent)}"
    yield _either("job", "build cpp/", "with OpenVINO", "missing", words, mend, fits=not absent)


def _fields(path: Path) -> dict[str, str]:
    """`key : value` lines, of repeated keys (one block a core) the first; {} without the file."""
    fields: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    return fields


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13, 0) of "2.13.0+cpu"."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _importable(module: str) -> bool:
    """Whether `module` is there. A mere folder of that name in the working directory is not it."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # the parent of a dotted name is missing or half imported
        return False
    return spec is not None and spec.origin is not None
