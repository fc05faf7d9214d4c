"""The wheel: what is in it, and that it works where only the wheel and the runtime are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rest_deploy.cards import available

CLONE = Path(__file__).resolve().parents[2]

WITHOUT = """
import sys

class Without:
    '''One of the import system's finders, made blind for some packages.'''

    def __init__(self, finder, names):
        self.finder, self.names = finder, names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.names:
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder, sys.argv[1].split(",")) for finder in sys.meta_path]
"""
"""As if the packages named by the first argument had never been installed."""

TRAINING = "torch,onnx,onnxscript,onnx_ir,safetensors,skimage"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    result = subprocess.run([*command, str(CLONE)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(code: str, *arguments: object, package: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` far from the clone, with the package of that folder."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package)},
    )


def rest_deploy(
    without: str, *arguments: object, package: Path
) -> subprocess.CompletedProcess[str]:
    code = f"{WITHOUT}\ndel sys.argv[1]\nfrom rest_deploy.cli import main\nmain()"
    return python(code, without, *arguments, package=package)


def test_wheel_has_all_of_the_package(names: set[str]) -> None:
    source = {
        path.relative_to(CLONE).as_posix()
        for path in (CLONE / "rest_deploy").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert source - names == set()


def test_wheel_has_the_cards_and_labels(names: set[str]) -> None:
    expected = {
        f"rest_deploy/data/{path.relative_to(CLONE).as_posix()}"
        for path in (CLONE / "models").rglob("*")
        if path.is_file()
    }
    assert {name for name in names if name.startswith("rest_deploy/data/models/")} == expected
    assert "rest_deploy/data/models/rest_lite.toml" in expected
    assert "rest_deploy/data/models/labels/imagenet-1k.txt" in expected


def test_wheel_has_nothing_else(names: set[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in names} == {"rest_deploy"}
    assert {Path(name).suffix for name in names if name.startswith("rest_deploy/")} <= {
        *(".py", ".toml", ".txt", ".typed", ".css", ".js", ".json")
    }
    receipts = "rest_deploy/data/calibration/receipts/"
    assert all(name.startswith(receipts) for name in names if name.endswith(".json"))
    assert f"{receipts}lite.json" in names


def test_wheel_is_typed_as_it_says(wheel: Path, names: set[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        assert "Classifier: Typing :: Typed" in archive.read(metadata).decode()
    assert "rest_deploy/py.typed" in names


def test_cards_of_the_wheel(unpacked: Path) -> None:
    code = "from rest_deploy import cards; print(cards.__file__, *cards.available())"
    result = python(code, package=unpacked)
    assert result.returncode == 0, result.stderr
    file, *variants = result.stdout.split()
    assert Path(file).is_relative_to(unpacked)
    assert variants == list(available())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3))
    Image.fromarray(noise.astype(np.uint8)).save(path)
    return path


def test_predict_without_torch(exported_nano: Path, photo: Path, unpacked: Path) -> None:
    arguments = ("predict", exported_nano, photo, "--json")
    result = rest_deploy(TRAINING, *arguments, package=unpacked)
    assert result.returncode == 0, result.stderr
    (image,) = json.loads(result.stdout)["images"]
    assert (image["image"], len(image["predictions"])) == (str(photo), 5)


def test_variants_without_torch(unpacked: Path) -> None:
    result = rest_deploy(TRAINING, "variants", "--json", package=unpacked)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert {row["parameters_m"] for row in report["rows"]} == {None}
    assert "pip install" in report["note"]


@pytest.mark.parametrize(
    ("without", "arguments", "package", "extra"),
    [
        ("torch", ["export", "--variant", "nano"], "torch", "export"),
        ("onnxscript", ["export", "--variant", "nano"], "onnxscript", "export"),
        ("torch", ["verify", "MODEL"], "torch", "export"),
        ("onnxruntime", ["predict", "MODEL", "PHOTO"], "onnxruntime", "onnxruntime"),
    ],
)
def test_what_is_missing_is_named(
    exported_nano: Path,
    photo: Path,
    unpacked: Path,
    without: str,
    arguments: list[str],
    package: str,
    extra: str,
) -> None:
    """Also the control of `WITHOUT`: it does take the package away."""
    files = {"MODEL": exported_nano, "PHOTO": photo}
    words = [files.get(word, word) for word in arguments]
    result = rest_deploy(without, *words, package=unpacked)
    assert result.returncode == 4, result.stderr
    first, second = result.stderr.splitlines()
    assert first == f"error: this needs the Python package {package!r}, which is not installed"
    assert second.strip().split(", or --backend")[0] == f"pip install 'rest-deploy[{extra}]'"
