"""The Python API: every name documented, every example run, every default that of the command."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy
import pytest

import rest_deploy
from rest_deploy import api, photos
from rest_deploy.cli import main
from tests.conftest import TRAINED_WEIGHTS

CLONE = Path(__file__).resolve().parents[1]
NAMES = [name for name in rest_deploy.__all__ if name != "__version__"]

COMMANDS = {
    "export": "export",
    "verify_model": "verify",
    "calibrate": "calibrate",
    "quantize": "quantize",
    "build_engine": "build-engine",
    "benchmark": "bench",
    "deploy": "deploy",
}

RENAMED = {"data": "calib_data", "sizes": "calib_sizes"}
"""Options of calibration, where a command has them."""

IN_ORDER = (
    *("load_model", "export", "verify_model", "calibrate", "quantize", "build_engine"),
    *("Session", "Classifier", "benchmark", "deploy"),
)
"""Each finds what those before it wrote."""


def undocumented(value: object) -> bool:
    """Without a docstring of its own; a dataclass without one gets its signature."""
    own = inspect.getdoc(value) or ""
    return not own or own.startswith(f"{getattr(value, '__name__', '')}(")


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(rest_deploy, name)
    assert not undocumented(value)
    if inspect.isclass(value):
        methods = [method for key, method in vars(value).items()
                   if not key.startswith("_") and inspect.isroutine(method)]  # fmt: skip
        assert [method for method in methods if undocumented(method)] == []


def test_a_missing_docstring_is_seen() -> None:
    import dataclasses

    @dataclasses.dataclass
    class Bare:
        side: int

    def bare() -> None:
        pass

    assert undocumented(Bare)
    assert undocumented(bare)


def test_no_public_name_is_a_module() -> None:
    """Importing the module would put it in the place of the name."""
    modules = {module.name for module in pkgutil.iter_modules(rest_deploy.__path__)}
    assert not modules & set(rest_deploy.__all__)
    assert "verify" in modules


def test_all_names_are_found_by_dir() -> None:
    assert set(rest_deploy.__all__) <= set(dir(rest_deploy))
    assert set(api.__all__) < set(rest_deploy.__all__)
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        rest_deploy.exprot  # noqa: B018


def test_looking_at_the_functions_imports_nothing_heavy() -> None:
    code = (
        "import sys, rest_deploy; dir(rest_deploy); rest_deploy.export; rest_deploy.benchmark; "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- the same defaults ---------------------------------------------------------------------------


def unlike(function: Callable[..., Any], command: click.Command) -> list[str]:
    """Parameters that the command has too, with another default."""
    calibrates = any(option.name == "data" for option in command.params)
    options: dict[str, object] = {}
    for option in command.params:
        name = str(option.name)
        default = option.to_info_dict()["default"]
        if name == "precision":  # flags that exclude each other: the help says which is the default
            if not str(getattr(option, "help", "")).endswith("[default]"):
                continue
            default = getattr(option, "flag_value", None)
        options[RENAMED.get(name, name) if calibrates else name] = default
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in options:
            continue
        ours, theirs = parameter.default, options[name]
        if (ours or None) != (theirs or None):
            found.append(f"{name}: {ours!r}, the command has {theirs!r}")
    return found


@pytest.mark.parametrize(("function", "command"), COMMANDS.items())
def test_the_defaults_are_the_commands(function: str, command: str) -> None:
    found = main.get_command(click.Context(main), command)
    assert found is not None
    assert unlike(getattr(rest_deploy, function), found) == []
    shared = {str(option.name) for option in found.params} & set(
        inspect.signature(getattr(rest_deploy, function)).parameters
    )
    assert len(shared) >= 4


def test_another_default_is_seen() -> None:
    def bench(*, seconds: float = 3.0, noise: float = 0.01) -> None:
        """As if."""

    command = main.get_command(click.Context(main), "bench")
    assert command is not None
    assert unlike(bench, command) == ["seconds: 3.0, the command has 5.0"]


# --- the examples --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, photos to calibrate on, and one to classify."""
    pytest.importorskip("torch")
    if not photos.available():
        pytest.skip("scikit-image's photos are not installed")
    shutil.copy(TRAINED_WEIGHTS, tmp_path / "finetuned.safetensors")
    (tmp_path / "photos").mkdir()
    for index, crop in enumerate(photos.crops("train", 64, seed=3)):
        photos.load(crop).save(tmp_path / "photos" / f"{index}.png")
    crops = photos.crops("test", 10 * len(photos.LABELS), seed=1)
    astronaut = next(one for one in crops if photos.LABELS[one.photo] == "astronaut")
    photos.load(astronaut).save(tmp_path / "astronaut.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REST_DEPLOY_WORKSPACE", raising=False)
    return tmp_path


def run_examples(name: str, value: object) -> tuple[int, list[str]]:
    """Examples tried, and what went wrong."""
    found = doctest.DocTestFinder().find(
        value, name, module=False, globs={"rest_deploy": rest_deploy, "numpy": numpy}
    )
    runner = doctest.DocTestRunner(verbose=False)
    wrong: list[str] = []
    for one in found:
        runner.run(one, out=wrong.append)
    return runner.tries, wrong


@pytest.mark.slow
def test_the_examples_run(folder: Path) -> None:
    for name in IN_ORDER:
        tried, wrong = run_examples(name, getattr(rest_deploy, name))
        assert wrong == []
        assert tried, name
    tried, wrong = run_examples("rest_deploy", importlib.import_module("rest_deploy"))
    assert (tried, wrong) == (4, [])


def test_every_function_has_an_example() -> None:
    for name in NAMES:
        if inspect.isfunction(getattr(rest_deploy, name)) and name != "load_card":
            assert name in IN_ORDER


def test_a_wrong_example_is_seen() -> None:
    def example() -> None:
        """
        >>> 1 + 1
        3
        """

    tried, wrong = run_examples("example", example)
    assert tried == 1
    assert "Expected:\n    3" in "".join(wrong)


def test_the_reference_pages(tmp_path: Path) -> None:
    """`make docs`: every name has its place on the page, the functions come first."""
    pytest.importorskip("pdoc")
    script = CLONE / "scripts" / "api_docs.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "api"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(CLONE)}, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "api" / "rest_deploy.html").read_text(encoding="utf-8")
    places = {name: page.find(f'<section id="{name}">') for name in NAMES}
    assert [name for name, place in places.items() if place < 0] == []
    assert places["load_model"] < places["export"] < places["Session"] < places["BuildReport"]
    assert (tmp_path / "api" / "rest_deploy" / "errors.html").is_file()
