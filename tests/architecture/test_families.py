"""Nothing below the model knows families: a new one is a module, its rewrites, cards and names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.architecture.test_layers import MODULES

MAY = ("model/", "architecture.py", "cards.py", "graph/roles.py")
"""The module and its rewrites, what validates a card, how cards are ordered, names of nodes."""

FAMILY = re.compile(r"(?i)\brest_?v2|\bv2-(nano|tiny|small|base|large)\b|\bpatch_?(embed|\\d|\d)")
MODULE = re.compile(r"ResT(V2)?")


def knows(path: str, source: str) -> list[str]:
    """Where code (not a docstring) names a family or asks for one."""
    tree = ast.parse(source)
    words = {id(node) for node in _docstrings(tree)}
    found = []
    for node in ast.walk(tree):
        told = ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in words:
            told = node.value if FAMILY.search(node.value) else ""
        elif isinstance(node, ast.Name | ast.alias):
            name = node.id if isinstance(node, ast.Name) else node.name
            told = name if MODULE.fullmatch(name) else ""
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            told = module if module.rpartition(".")[2] in {"rest", "rest_v2"} else ""
        elif isinstance(node, ast.Attribute) and node.attr == "family":
            told = ast.unparse(node) if "architecture" in ast.unparse(node.value) else ""
        if told:
            found.append(f"{path}:{getattr(node, 'lineno', 0)}: {told}")
    return found


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Of modules, classes and functions, and the strings under constants."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                yield statement.value


@pytest.mark.parametrize("path", [path for path in MODULES if not path.startswith(MAY)])
def test_no_stage_below_the_model_knows_a_family(path: str) -> None:
    assert knows(path, MODULES[path]) == []


@pytest.mark.parametrize(
    "source",
    [
        "from rest_deploy.model.rest_v2 import layer_norm",
        "from rest_deploy.model.rest import Stem",
        "from rest_deploy.model.family import ResTV2",
        'if card.architecture.family == "x": pass',
        'if name.startswith("patch_2"): pass',
        'if "rest_v2" in name: pass',
        'pattern = "patch_embed_[0-9]"',
        'default = "v2-tiny"',
        "module = ResT(architecture)",
    ],
)
def test_it_refuses(source: str) -> None:
    assert knows("stage.py", source)


@pytest.mark.parametrize(
    "source",
    [
        '"""A branch beside the attention (ResT v2, rest_v2)."""',
        'def f():\n    """As rest_v2 does."""',
        'ROUTE = "/v2/models"',
        "sock = socket(found.family)",
        'name.startswith("patch")',
    ],
)
def test_it_accepts(source: str) -> None:
    assert knows("stage.py", source) == []
