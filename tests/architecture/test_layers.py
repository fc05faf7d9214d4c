"""The shape of the package, read from its source: imports point one way, heavy libraries wait."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

import rest_deploy

PACKAGE = Path(rest_deploy.__file__).parent

STAGES = (
    *("errors", "stored", "machine", "proofs", "selftest", "architecture", "signature"),
    *("contracts", "layout"),
    *("artifact", "cards"),
    *("preprocess", "photos", "model", "graph", "quant", "cuda_driver", "engine", "runtime"),
    *("verify", "bench", "serve", "embed", "packages", "doctor", "verbs", "report", "api"),
    *("console", "options", "commands", "cli"),
)
"""A module imports its own stage and those before it. A new module gets its place here."""

MODEL_AND_GRAPH = ("model/*.py", "graph/*.py")
GRAPH_AND_QUANT = ("graph/*.py", "quant/*.py")
AT_MODULE_LEVEL = {
    "torch": ("model/*.py", "graph/export.py", "graph/translations.py"),
    "onnx": GRAPH_AND_QUANT,
    "onnx_ir": GRAPH_AND_QUANT,
    "onnxscript": GRAPH_AND_QUANT,
    "onnxruntime": (),
    "tensorrt": (),
    "tensorrt_rtx": (),
    "openvino": (),
    "cuda": (),
    "tritonclient": (),
    "triton_python_backend_utils": (),
    "google": (),
    "pyarrow": (),
    "fsspec": (),
    "ray": (),
    "starlette": ("serve/app.py",),
    "uvicorn": ("serve/server.py", "serve/connection.py"),
    "prometheus_client": (),
    # They bring torch and onnx with them.
    "rest_deploy.model": MODEL_AND_GRAPH,
    "rest_deploy.graph": GRAPH_AND_QUANT,
}
"""Who may import a heavy library when it is imported itself; all others do so in a function."""

TYPING_ONLY = {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
MOST_LINES = 400


@dataclass(frozen=True)
class Import:
    """`name` in full: "rest_deploy.cards.load_card". `early`: run when the module is imported."""

    name: str
    line: int
    early: bool


def imports(source: str) -> list[Import]:
    return list(_imports(ast.parse(source), early=True))


def _imports(node: ast.AST, *, early: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, early) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        yield from (Import(f"{module}.{alias.name}", node.lineno, early) for alias in node.names)
    elif isinstance(node, ast.If) and ast.unparse(node.test) in TYPING_ONLY:
        for statement in node.body:
            yield from _imports(statement, early=False)
        for statement in node.orelse:
            yield from _imports(statement, early=early)
    else:
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, early=early and not later)


def against_the_order(path: str, source: str) -> list[str]:
    """Imports of a later stage, wherever they stand. `path` is relative to the package."""
    own = path.removesuffix(".py").split("/")[0]
    if own not in STAGES:
        return [f"{path}: stage {own!r} has no place in STAGES"]
    problems = []
    for found in imports(source):
        if found.name.startswith("."):
            problems.append(f"{path}:{found.line}: relative import {found.name}")
        elif found.name.startswith("rest_deploy.") and found.name != "rest_deploy.__version__":
            stage = found.name.split(".")[1]
            if stage not in STAGES or STAGES.index(stage) > STAGES.index(own):
                problems.append(f"{path}:{found.line}: {own} imports {stage}")
    return problems


def heavy_imports(path: str, source: str) -> list[str]:
    """Heavy libraries imported at module level where they may not be."""
    return [
        f"{path}:{found.line}: imports {library} at module level"
        for found in imports(source)
        for library, allowed in AT_MODULE_LEVEL.items()
        if found.early
        and f"{found.name}.".startswith(f"{library}.")
        and not any(fnmatch(path, pattern) for pattern in allowed)
    ]


def vague_name(path: str) -> bool:
    return not VAGUE_NAMES.isdisjoint(path.removesuffix(".py").split("/"))


def too_long(source: str) -> bool:
    return len(source.splitlines()) > MOST_LINES


MODULES = {
    path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}


def test_the_modules_are_found() -> None:
    assert {"cli.py", "model/rest.py", "graph/export.py", "engine/onnxruntime.py"} <= set(MODULES)
    assert len(MODULES) > 25


@pytest.mark.parametrize("path", [path for path in MODULES if path != "__init__.py"])
def test_imports_point_one_way(path: str) -> None:
    assert against_the_order(path, MODULES[path]) == []


def test_the_package_itself_imports_nothing_early() -> None:
    early = [found.name for found in imports(MODULES["__init__.py"]) if found.early]
    assert sorted(early) == [
        *("__future__.annotations", "importlib.import_module"),
        *("typing.Any", "typing.TYPE_CHECKING"),
    ]


@pytest.mark.parametrize("path", MODULES)
def test_heavy_libraries_are_imported_late(path: str) -> None:
    assert heavy_imports(path, MODULES[path]) == []


@pytest.mark.parametrize("path", MODULES)
def test_modules_are_named_and_short(path: str) -> None:
    assert not vague_name(path)
    assert not too_long(MODULES[path])


# --- the checks themselves -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cards.py", "from rest_deploy.model.rest import ResT"),
        ("cards.py", "from rest_deploy import verbs"),
        ("cards.py", "import rest_deploy.verbs as v"),
        ("model/rest.py", "from rest_deploy.graph import export"),
        ("model/rest.py", "def f():\n    from rest_deploy.graph import export"),
        ("model/rest.py", "if TYPE_CHECKING:\n    from rest_deploy.graph import export"),
        ("model/rest.py", "from ..graph import export"),
        ("model/rest.py", "from . import cost"),
        ("model/rest.py", "from rest_deploy import Classifier"),
        ("extras.py", "import os"),
    ],
)
def test_order_refuses(path: str, source: str) -> None:
    assert len(against_the_order(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("graph/export.py", "from rest_deploy.model.rest import ResT"),
        ("model/rest.py", "from rest_deploy.model import cost\nimport rest_deploy.cards"),
        ("cli.py", "from rest_deploy import __version__, verbs"),
        ("cards.py", "import rest_deployment.verbs\nfrom verbs import x"),
    ],
)
def test_order_accepts(path: str, source: str) -> None:
    assert against_the_order(path, source) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cards.py", "import torch"),
        ("cards.py", "import numpy, torch.nn as nn"),
        ("graph/passes.py", "from torch import nn"),
        ("model/rest.py", "import onnx"),
        ("model/rest.py", "from onnxscript import opset18"),
        ("engine/onnxruntime.py", "import onnxruntime as ort"),
        ("engine/tensorrt.py", "from cuda.bindings import runtime"),
        ("verbs.py", "try:\n    import openvino\nexcept ImportError:\n    pass"),
        ("verbs.py", "class A:\n    import tensorrt"),
        ("verbs.py", "if not TYPE_CHECKING:\n    import tensorrt"),
        ("verbs.py", "if TYPE_CHECKING:\n    import torch\nelse:\n    import torch"),
        ("verbs.py", "from rest_deploy.model.rest import ResT"),
        ("verbs.py", "from rest_deploy import graph"),
    ],
)
def test_heavy_refuses(path: str, source: str) -> None:
    assert len(heavy_imports(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/rest.py", "import torch"),
        ("graph/export.py", "import torch\nimport onnx\nimport onnx_ir as ir"),
        ("graph/passes.py", "from onnxscript import optimizer"),
        ("cards.py", "def f():\n    import torch"),
        ("cards.py", "class A:\n    async def f(self):\n        import onnxruntime"),
        ("cards.py", "if TYPE_CHECKING:\n    import torch"),
        ("cards.py", "if typing.TYPE_CHECKING:\n    from torch import Tensor"),
        ("cards.py", "import torchvision_free, onnx_lookalike, cudaless"),
    ],
)
def test_heavy_accepts(path: str, source: str) -> None:
    assert heavy_imports(path, source) == []


def test_name_and_length_refuse() -> None:
    assert [vague_name(path) for path in ("utils.py", "model/common.py", "manager/a.py")] == [
        True
    ] * 3
    assert not vague_name("model/shape_ops.py")
    assert [too_long("x\n" * lines) for lines in (400, 401)] == [False, True]


def test_no_script_hides_a_library() -> None:
    """A script's folder comes first on the path: torch found benchmarks/triton.py when it looked
    for the compiler of that name, and could export nothing any more."""
    root = PACKAGE.parent
    scripts = [path for folder in ("benchmarks", "scripts", "examples") for path in
               (root / folder).glob("*.py")]  # fmt: skip
    assert len(scripts) > 10
    libraries = {name.partition(".")[0] for name in AT_MODULE_LEVEL} | {"triton"}
    assert not {path.stem for path in scripts} & libraries
