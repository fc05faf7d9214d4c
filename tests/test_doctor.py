"""What the doctor finds on this machine, and on machines made up here."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from rest_deploy import cuda_driver, doctor
from rest_deploy.artifact import to_json
from rest_deploy.doctor import Report, Row, examine, render
from rest_deploy.engine.providers import PLUGIN_MODULE
from rest_deploy.packages import CPP_HEADERS, CPP_MEND, CPP_PROGRAMS, PACKAGES, SERVE_NEEDS

ROOT = Path(doctor.__file__).parents[1]
JOBS = [
    *("export", "run on CPU", "run on CUDA", "build TensorRT"),
    *("serve", "embed", "Ray", "Triton", "build cpp/"),
]
XEON = "fpu avx avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16"
EXPORT = {
    "torch": "2.13.0+cpu",
    "onnx": "1.23.2",
    "onnxscript": "0.7.2",
    "onnx-ir": "1.1.0",
    "safetensors": "0.8.0",
    "onnxruntime": "1.32.0",
}


class FakeCuda:
    """libcuda with GPUs of the given compute capabilities; `failing` functions answer 999."""

    def __init__(
        self, *capabilities: tuple[int, int], init: int = 0, failing: tuple[str, ...] = ()
    ) -> None:
        self.capabilities = capabilities
        self.init = init
        self.failing = failing

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self.init

    def _answer(self, function: str, answer: Any, value: int) -> int:
        answer._obj.value = value  # what ctypes.byref points to
        return 999 if function in self.failing else 0

    def cuDriverGetVersion(self, answer: Any) -> int:
        return self._answer("cuDriverGetVersion", answer, 12080)

    def cuDeviceGetCount(self, answer: Any) -> int:
        return self._answer("cuDeviceGetCount", answer, len(self.capabilities))

    def cuDeviceGet(self, answer: Any, ordinal: int) -> int:
        return self._answer("cuDeviceGet", answer, ordinal + 40)

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:
        assert size == 256
        name.value = f"NVIDIA Test {device - 40}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, answer: Any, device: int) -> int:
        assert device >= 40
        return self._answer("cuDeviceTotalMem_v2", answer, 24 * 2**30)

    def cuDeviceGetAttribute(self, answer: Any, attribute: int, device: int) -> int:
        value = self.capabilities[device - 40][{75: 0, 76: 1}[attribute]]
        return self._answer("cuDeviceGetAttribute", answer, value)


class Machine:
    """A machine made up: what the probes of the doctor will find."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch = monkeypatch
        self.folder = folder
        self.cpu(XEON)
        self.memory(16.0)
        self.packages({})
        self.cuda(None)
        self.programs()

    def cpu(self, flags: str, key: str = "flags", model: str = "Test CPU") -> None:
        path = self.folder / "cpuinfo"
        block = f"processor\t: 0\nmodel name\t: {model}\n{key}\t\t: {flags}\n\n"
        path.write_text(block + block.replace(model, "second"), encoding="utf-8")
        self.patch.setattr(doctor, "CPUINFO", path)

    def memory(self, available_gib: float) -> None:
        path = self.folder / "meminfo"
        available = int(available_gib * 2**20)
        path.write_text(
            f"MemTotal:       33554432 kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n",
            encoding="utf-8",
        )
        self.patch.setattr(doctor, "MEMINFO", path)

    def packages(self, versions: dict[str, str], modules: Iterable[str] | None = None) -> None:
        """pip's list, and the modules that can be found (those of the list unless given)."""

        def version(name: str) -> str:
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        here = {package.module for package in PACKAGES if set(package.names) & set(versions)}
        here = here if modules is None else set(modules)
        self.patch.setattr(importlib.metadata, "version", version)
        self.patch.setattr(doctor, "_importable", here.__contains__)
        self.providers("CPUExecutionProvider")

    def providers(self, *names: str) -> None:
        fake = SimpleNamespace(get_available_providers=lambda: list(names))
        self.patch.setitem(sys.modules, "onnxruntime", fake)

    def programs(self, *names: str, headers: Iterable[str] = ()) -> None:
        """What is on the path, and below /usr/include."""
        include = self.folder / "include"
        for header in headers:
            (include / header).parent.mkdir(parents=True, exist_ok=True)
            (include / header).touch()
        self.patch.setattr(doctor, "INCLUDE", (include,))
        here = {name: f"/usr/bin/{name}" for name in names}
        self.patch.setattr("shutil.which", here.get)

    def cuda(self, library: FakeCuda | None) -> None:
        def load() -> Any:
            if library is None:
                raise OSError("libcuda.so.1: cannot open shared object file")
            return library

        self.patch.setattr(cuda_driver, "load_library", load)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def row(report: Report, name: str) -> Row:
    [found] = [row for row in (*report.rows, *report.jobs) if row.name == name]
    return found


def states(report: Report) -> dict[str, str]:
    return {job.name: job.state for job in report.jobs}


class TestThisMachine:
    def test_every_area_and_job_is_there(self) -> None:
        report = examine()
        assert {row.area for row in report.rows} == {
            *("python", "cpu", "memory", "package", "program", "gpu")
        }
        assert [job.name for job in report.jobs] == JOBS
        assert {package.names[0] for package in PACKAGES} <= {row.name for row in report.rows}

    def test_what_is_found_is_true(self) -> None:
        report = examine()
        assert row(report, "python").state == "usable"
        assert platform.python_version() in row(report, "python").detail
        assert row(report, "torch").detail == importlib.metadata.version("torch")
        assert f"{len(os.sched_getaffinity(0))} of" in row(report, "cpu").detail
        assert states(report)["run on CPU"] == "usable"

    def test_what_cannot_be_done_says_how_to_mend_it(self) -> None:
        report = examine()
        lacking = [row for row in (*report.rows, *report.jobs) if row.state == "missing"]
        assert [row.name for row in lacking if not row.mend] == []

    def test_json_reads_back_equal(self) -> None:
        report = examine()
        assert msgspec.json.decode(to_json(report), type=Report) == report
        assert json.loads(to_json(report))["schema"] == 1

    def test_nothing_heavy_is_imported(self) -> None:
        code = "import sys; from rest_deploy.doctor import examine; examine(); print(*sys.modules)"
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        imported = set(ran.stdout.split())
        assert "rest_deploy.doctor" in imported
        assert imported & {"torch", "onnx", "onnxscript", "onnx_ir", "skimage", "openvino"} == set()


class TestFailures:
    @pytest.mark.parametrize(
        ("function", "name"),
        [
            ("_python", "python"),
            ("_cpu", "cpu"),
            ("_memory", "memory"),
            ("_importable", "torch"),
            ("_gpus", "nvidia driver"),
        ],
    )
    def test_a_probe_that_raises_becomes_a_row(
        self, monkeypatch: pytest.MonkeyPatch, function: str, name: str
    ) -> None:
        def fail(*arguments: object) -> None:
            raise RuntimeError("two\nlines")

        monkeypatch.setattr(doctor, function, fail)
        found = row(examine(), name)
        assert found.state == "missing"
        assert found.detail == "could not be probed: RuntimeError: two lines"

    @pytest.mark.usefixtures("machine")
    def test_an_unreadable_cpuinfo_becomes_a_row(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*arguments: object, **options: object) -> str:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "read_text", refuse)
        assert "Permission denied" in row(examine(), "cpu").detail

    def test_a_meminfo_of_another_kind_becomes_a_row(self, machine: Machine) -> None:
        (machine.folder / "meminfo").write_text("Total memory: much\n", encoding="utf-8")
        assert "could not be probed: KeyError" in row(examine(), "memory").detail

    def test_onnxruntime_that_cannot_be_imported(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine.packages(EXPORT)
        assert states(examine())["run on CPU"] == "usable"
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        report = examine()
        assert row(report, "providers").state == "missing"
        assert "ModuleNotFoundError" in row(report, "providers").detail
        assert "--force-reinstall" in row(report, "providers").mend
        assert states(report)["run on CPU"] == states(report)["export"] == "missing"


class TestPython:
    @pytest.mark.parametrize(
        ("version", "state"),
        [("3.10.14", "missing"), ("3.11.0", "usable"), ("3.14.0rc1", "usable"), ("4.0", "usable")],
    )
    def test_version(self, monkeypatch: pytest.MonkeyPatch, version: str, state: str) -> None:
        monkeypatch.setattr(platform, "python_version", lambda: version)
        found = row(examine(), "python")
        assert found.state == state
        assert bool(found.mend) == (state == "missing")


class TestCpu:
    @pytest.mark.usefixtures("machine")
    def test_first_model_and_the_features_that_matter(self) -> None:
        report = examine()
        assert row(report, "cpu").detail.startswith("Test CPU, ")
        assert row(report, "features").detail == (
            "avx2 avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16"
        )

    @pytest.mark.parametrize(
        ("flags", "features", "int8"),
        [
            (XEON, "usable", "usable"),
            ("avx2 avx_vnni", "usable", "usable"),
            ("avx2 avx512f", "usable", "limited"),
            ("avx sse4_2", "limited", "limited"),
        ],
    )
    def test_what_the_features_mean(
        self, machine: Machine, flags: str, features: str, int8: str
    ) -> None:
        machine.cpu(flags)
        report = examine()
        assert (row(report, "features").state, row(report, "int8").state) == (features, int8)
        assert ("not faster" in row(report, "int8").detail) == (int8 == "limited")

    def test_arm(self, machine: Machine) -> None:
        machine.cpu("fp asimd asimddp", key="Features")
        report = examine()
        assert (row(report, "features").state, row(report, "int8").state) == ("usable", "usable")

    def test_system_without_cpuinfo(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doctor, "CPUINFO", machine.folder / "gone")
        assert row(examine(), "features").state == "limited"

    @pytest.mark.usefixtures("machine")
    def test_cores_are_those_this_process_may_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3})
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        assert row(examine(), "cpu").detail == "Test CPU, 1 of 64 cores"


class TestMemory:
    @pytest.mark.parametrize(("available", "state"), [(16.0, "usable"), (1.5, "limited")])
    def test_available(self, machine: Machine, available: float, state: str) -> None:
        machine.memory(available)
        found = row(examine(), "memory")
        assert found.state == state
        assert found.detail.startswith(f"{available} GiB available of 32.0 GiB")

    def test_system_without_meminfo(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doctor, "MEMINFO", machine.folder / "gone")
        assert row(examine(), "memory").state == "limited"


class TestPackages:
    @pytest.mark.usefixtures("machine")
    def test_missing_ones_name_the_extra_that_brings_them(self) -> None:
        report = examine()
        assert row(report, "torch").mend == "pip install 'rest-deploy[export]'"
        assert row(report, "scikit-image").mend == "pip install 'rest-deploy[demo]'"
        assert row(report, "openvino").mend == "pip install 'rest-deploy[openvino]'"
        assert not [found for found in report.rows if found.name == "providers"]

    def test_extras_and_bounds_are_those_of_pyproject(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras: dict[str, list[str]] = project["optional-dependencies"]
        checked = 0
        for package in PACKAGES:
            if match := re.fullmatch(r"'rest-deploy\[(.+)\]'", package.install):
                # Of TensorRT-RTX the extra has the wheels; its metapackage has to be built.
                name = package.names[-1 if package.other_module else 0]
                bare = [re.sub(r"\[.*\]", "", requirement) for requirement in extras[match[1]]]
                assert f"{name}>={package.minimum}" in bare
                checked += 1
        assert checked == 19
        for mend in (doctor.GPU_ORT, *(job.mend for job in examine().jobs)):
            for names in re.findall(r"rest-deploy\[(.+?)\]", mend):
                assert set(names.split(",")) <= set(extras)

    @pytest.mark.parametrize(
        ("version", "state"), [("2.8.1", "limited"), ("2.9.0", "usable"), ("2.10.0", "usable")]
    )
    def test_too_old(self, machine: Machine, version: str, state: str) -> None:
        machine.packages(EXPORT | {"torch": version})
        report = examine()
        assert row(report, "torch").state == state
        assert states(report)["export"] == ("usable" if state == "usable" else "missing")

    def test_listed_by_pip_but_not_there(self, machine: Machine) -> None:
        machine.packages(EXPORT, modules={"onnx", "onnxruntime"})
        found = row(examine(), "torch")
        assert found.state == "missing"
        assert "there is no module torch" in found.detail
        assert found.mend == "pip install --force-reinstall 'rest-deploy[export]'"

    def test_there_but_unknown_to_pip(self, machine: Machine) -> None:
        machine.packages({}, modules={"tensorrt"})
        assert row(examine(), "tensorrt").state == "usable"
        assert "unknown version" in row(examine(), "tensorrt").detail

    def test_two_packages_of_one_module(self, machine: Machine) -> None:
        machine.packages({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.0"})
        found = row(examine(), "onnxruntime")
        assert found.state == "limited"
        assert "overwrite each other" in found.detail
        assert found.mend.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install ")

    def test_another_distribution_is_named(self, machine: Machine) -> None:
        machine.packages({"tensorrt-cu12": "10.13.0", "onnxruntime-gpu": "1.31.0"})
        report = examine()
        assert row(report, "tensorrt").detail == "tensorrt-cu12 10.13.0"
        assert row(report, "onnxruntime").detail == "onnxruntime-gpu 1.31.0"

    def test_a_folder_of_that_name_is_not_the_package(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "made_up_package").mkdir()
        monkeypatch.syspath_prepend(tmp_path)
        assert not doctor._importable("made_up_package")
        (tmp_path / "made_up_package" / "__init__.py").touch()
        assert doctor._importable("made_up_package")

    def test_dotted_module_without_its_parent(self) -> None:
        assert not doctor._importable("no_such_parent.bindings")
        assert doctor._importable("importlib.metadata")


class TestGpu:
    @pytest.mark.usefixtures("machine")
    def test_no_driver(self) -> None:
        report = examine()
        found = row(report, "nvidia driver")
        assert found.state == "missing"
        assert "libcuda.so.1: cannot open shared object file" in found.detail
        assert "--gpus all" in found.mend
        assert states(report)["run on CUDA"] == "missing"

    @pytest.mark.parametrize(
        ("code", "meaning"),
        [
            (100, "no GPU is visible"),
            (803, "reboot after a driver update"),
            (34, "stub"),
            (12345, "CUresult"),
        ],
    )
    def test_driver_that_does_not_start(self, machine: Machine, code: int, meaning: str) -> None:
        machine.cuda(FakeCuda((8, 9), init=code))
        found = row(examine(), "nvidia driver")
        assert found.state == "missing"
        assert found.detail.startswith(f"cuInit answers {code}: ")
        assert meaning in found.detail

    def test_gpu_is_named_and_measured(self, machine: Machine) -> None:
        machine.cuda(FakeCuda((8, 9)))
        report = examine()
        assert row(report, "nvidia driver").detail == "runs programs made for CUDA 12.8 and older"
        assert row(report, "gpu 0").detail == "NVIDIA Test 0, 24.0 GiB, compute capability 8.9"
        assert row(report, "rtx").state == "usable"

    def test_hopper_does_not_run_tensorrt_rtx(self, machine: Machine) -> None:
        machine.cuda(FakeCuda((9, 0)))
        report = examine()
        assert row(report, "gpu 0").state == "usable"
        found = row(report, "rtx")
        assert found.state == "missing"
        assert found.detail == "TensorRT-RTX does not run on gpu 0: Hopper, 9.0"

    def test_gpu_too_old_for_tensorrt(self, machine: Machine) -> None:
        machine.cuda(FakeCuda((6, 1)))
        report = examine()
        assert row(report, "gpu 0").state == "limited"
        assert row(report, "rtx").state == "missing"
        assert states(report)["build TensorRT"] == "missing"

    def test_a_failing_gpu_does_not_hide_the_others(self, machine: Machine) -> None:
        class SecondFails(FakeCuda):
            def cuDeviceTotalMem_v2(self, answer: Any, device: int) -> int:
                return 999 if device == 41 else super().cuDeviceTotalMem_v2(answer, device)

        machine.cuda(SecondFails((8, 9), (8, 9), (8, 6)))
        report = examine()
        assert row(report, "gpu 1").detail.startswith("cuDeviceTotalMem answers 999")
        assert [row(report, f"gpu {i}").state for i in range(3)] == ["usable", "missing", "usable"]

    @pytest.mark.parametrize("function", ["cuDriverGetVersion", "cuDeviceGetCount"])
    def test_driver_that_fails_later(self, machine: Machine, function: str) -> None:
        machine.cuda(FakeCuda((8, 9), failing=(function,)))
        assert row(examine(), "nvidia driver").detail.startswith(f"{function} answers 999")


class TestJobs:
    @pytest.mark.usefixtures("machine")
    def test_bare_machine(self) -> None:
        report = examine()
        assert set(states(report).values()) - {"limited"} == {"missing"}
        assert states(report)["Triton"] == "limited", "a repository is written without a package"
        assert row(report, "export").detail == f"needs {', '.join(EXPORT)}"

    @pytest.mark.parametrize("lacking", EXPORT)
    def test_export_needs_each_of_its_packages(self, machine: Machine, lacking: str) -> None:
        machine.packages(EXPORT)
        assert row(examine(), "export").state == "usable"
        machine.packages({name: version for name, version in EXPORT.items() if name != lacking})
        found = row(examine(), "export")
        assert (found.state, found.detail) == ("missing", f"needs {lacking}")

    @pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
    def test_cpu_needs_one_runtime(self, machine: Machine, package: str) -> None:
        machine.packages({package: "2026.1"})
        found = row(examine(), "run on CPU")
        assert (found.state, found.detail) == ("usable", f"with {package}")

    def test_cuda_provider_without_a_gpu_is_not_enough(self, machine: Machine) -> None:
        machine.packages({"onnxruntime-gpu": "1.31.0"})
        machine.providers("CUDAExecutionProvider", "CPUExecutionProvider")
        report = examine()
        assert "only real with a driver" in row(report, "cuda provider").detail
        assert states(report)["run on CUDA"] == "missing"
        machine.cuda(FakeCuda((8, 9)))
        assert states(examine())["run on CUDA"] == "usable"

    def test_each_provider_has_its_row_and_reason(self, machine: Machine) -> None:
        machine.packages({"onnxruntime": "1.32.0"})
        report = examine()
        for name, option, mend in (
            ("cuda provider", "cuda", "rest-deploy[onnxruntime-gpu]"),
            ("trt provider", "tensorrt", "rest-deploy[onnxruntime-gpu]"),
            ("rtx provider", "nv-tensorrt-rtx", "rest-deploy[onnxruntime-rtx]"),
        ):
            found = row(report, name)
            assert found.state == "missing"
            assert found.detail.startswith(f"--provider {option}: ")
            assert mend in found.mend
        machine.packages({"onnxruntime-gpu": "1.31.1"}, {"onnxruntime", PLUGIN_MODULE})
        machine.providers("TensorrtExecutionProvider", "CUDAExecutionProvider")
        report = examine()
        assert row(report, "trt provider").state == row(report, "rtx provider").state == "usable"
        assert "libraries of TensorRT" in row(report, "trt provider").detail
        assert "plugin is installed" in row(report, "rtx provider").detail
        assert states(report)["run on CUDA"] == "missing", "a provider is no GPU"

    def test_gpu_without_the_cuda_provider_is_not_enough(self, machine: Machine) -> None:
        machine.packages({"onnxruntime": "1.32.0"})
        machine.cuda(FakeCuda((8, 9)))
        found = row(examine(), "run on CUDA")
        assert found.state == "missing"
        assert "onnxruntime-gpu" in found.mend

    @pytest.mark.parametrize("buffers", ["cuda-python", "pycuda"])
    def test_tensorrt(self, machine: Machine, buffers: str) -> None:
        machine.cuda(FakeCuda((9, 0)))
        machine.packages({"tensorrt": "11.4.0.106"})
        assert states(examine())["build TensorRT"] == "usable"
        assert states(examine())["run on CUDA"] == "missing"
        machine.packages({"tensorrt": "11.4.0.106", buffers: "13.0"})
        assert row(examine(), "run on CUDA").detail == "with tensorrt"

    def test_tensorrt_needs_the_gpu_it_builds_for(self, machine: Machine) -> None:
        machine.packages({"tensorrt": "11.4.0.106", "cuda-python": "13.0"})
        assert states(examine())["build TensorRT"] == "missing"

    @pytest.mark.parametrize(
        ("capability", "runs"), [((8, 9), "usable"), ((9, 0), "missing"), (None, "missing")]
    )
    def test_tensorrt_rtx_builds_anywhere_and_runs_on_rtx(
        self, machine: Machine, capability: tuple[int, int] | None, runs: str
    ) -> None:
        machine.packages({"tensorrt-rtx": "1.7.1.116", "cuda-python": "13.0"})
        machine.cuda(FakeCuda(capability) if capability else None)
        report = examine()
        assert states(report)["build TensorRT"] == "usable"
        assert ("elsewhere" in row(report, "build TensorRT").detail) == (runs == "missing")
        assert states(report)["run on CUDA"] == runs

    @pytest.mark.parametrize("lacking", [*SERVE_NEEDS, "onnxruntime"])
    def test_serve_needs_each_of_its_packages(self, machine: Machine, lacking: str) -> None:
        whole = dict.fromkeys((*SERVE_NEEDS, "onnxruntime"), "99.0")
        machine.packages(whole)
        assert states(examine())["serve"] == "usable"
        machine.packages({name: version for name, version in whole.items() if name != lacking})
        found = row(examine(), "serve")
        assert found.state == "missing"
        assert found.detail == f"needs {'a runtime' if lacking == 'onnxruntime' else lacking}"
        extras = "serve,onnxruntime" if lacking == "onnxruntime" else "serve"
        assert found.mend == f"pip install 'rest-deploy[{extras}]'"

    @pytest.mark.parametrize(("package", "job"), [("pyarrow", "embed"), ("ray", "Ray")])
    def test_bulk(self, machine: Machine, package: str, job: str) -> None:
        whole = dict.fromkeys((*SERVE_NEEDS, "openvino", "pyarrow", "ray"), "9999.0")
        machine.packages(whole)
        assert states(examine())[job] == "usable"
        del whole[package]
        machine.packages(whole)
        found = row(examine(), job)
        assert (found.state, found.detail) == ("missing", f"needs {package}")
        assert row(examine(), package).mend == found.mend

    def test_triton_writes_without_packages_and_checks_with_them(self, machine: Machine) -> None:
        assert states(examine())["Triton"] == "limited"
        machine.packages({"tritonclient": "2.69.0", "protobuf": "6.0"})
        assert states(examine())["Triton"] == "usable"

    @pytest.mark.parametrize("lacking", [*CPP_PROGRAMS, *CPP_HEADERS])
    def test_cpp_needs_programs_headers_and_openvino(self, machine: Machine, lacking: str) -> None:
        machine.programs(
            *(name for name in CPP_PROGRAMS if name != lacking),
            headers=(name for name in CPP_HEADERS if name != lacking),
        )
        machine.packages({"openvino": "2026.4"})
        report = examine()
        assert row(report, "C++ build").detail == f"not here: {lacking} (for the C++ runtime alone)"
        assert row(report, "C++ build").mend == CPP_MEND
        assert states(report)["build cpp/"] == "missing"
        machine.programs(*CPP_PROGRAMS, headers=CPP_HEADERS)
        assert states(examine())["build cpp/"] == "usable"
        machine.packages({})
        assert row(examine(), "build cpp/").mend == "pip install 'rest-deploy[openvino]'"

    def test_the_script_installs_what_is_looked_for(self) -> None:
        script = (ROOT / CPP_MEND).read_text(encoding="utf-8")
        listed = re.search(r"packages=\((.+?)\n\)", script, re.DOTALL)
        assert listed is not None
        names = re.sub(r"#.*", "", listed[1])
        for name in (*CPP_PROGRAMS, "jpeg", "png", "nlohmann-json", "httplib"):
            assert name in names


class TestRender:
    def test_at_most_100_columns(self, machine: Machine) -> None:
        machine.cpu(XEON, model="A processor with a name of its own " * 6 + "x" * 150)
        machine.cuda(FakeCuda((9, 0), (6, 1)))
        for report in (
            examine(),
            Report(schema=1, rows=(Row("gpu", "x", "missing", "", ""),), jobs=()),
        ):
            lines = render(report).split("\n")
            assert max(map(len, lines)) <= 100
            assert [line for line in lines if not line.strip()] == []

    @pytest.mark.usefixtures("machine")
    def test_every_row_is_shown_with_its_state_and_what_mends_it(self) -> None:
        report = examine()
        text = render(report)
        for found in (*report.rows, *report.jobs):
            assert re.search(rf"^  {re.escape(found.name)} +{found.state} ", text, re.MULTILINE)
            assert found.mend in text

    def test_commands_stay_on_one_line(self, machine: Machine) -> None:
        machine.packages({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.0"})
        machine.cuda(FakeCuda((8, 9)))
        lines = {line.strip() for line in render(examine()).split("\n")}
        commands = {found.mend for found in examine().rows if found.mend.startswith("pip ")}
        assert len(commands) > 5
        assert {f"-> {command}" for command in commands} <= lines

    @pytest.mark.usefixtures("machine")
    def test_jobs_come_last(self) -> None:
        lines = render(examine()).split("\n")
        after = lines[lines.index("job") + 1 :]
        names = [line[2:17].strip() for line in after if re.match(r"  \S", line)]
        assert names == JOBS
