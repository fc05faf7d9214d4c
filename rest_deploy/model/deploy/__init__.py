"""Exact rewrites: the reference module -> a module with the same function and less to do.

Each rewrite is an identity of real arithmetic, proven in float64 by tests/model/deploy. Weights are
folded in float64 and rounded once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from rest_deploy.contracts import InstanceNormForm
from rest_deploy.errors import InvariantError
from rest_deploy.model.backbone import Backbone
from rest_deploy.model.deploy import rest, rest_v2
from rest_deploy.model.deploy.split import Rewrite, blocks
from rest_deploy.model.rest import ResT
from rest_deploy.model.rest_v2 import ResTV2

REWRITES: dict[type[Backbone], Callable[[InstanceNormForm], tuple[Rewrite, ...]]] = {
    ResT: rest.rewrites,
    ResTV2: rest_v2.rewrites,
}


def to_deploy(
    model: Backbone, form: InstanceNormForm = "folded"
) -> tuple[Backbone, dict[str, int]]:
    """A rewritten copy in the dtype of `model`, and how often each rewrite fired.

    Raises `InvariantError` when a rewrite fired on fewer places than the module has.
    """
    dtype = next(model.parameters()).dtype
    deployed = copy.deepcopy(model).eval().requires_grad_(False).double()
    rewrites = next(found for family, found in REWRITES.items() if isinstance(model, family))
    fired = {rewrite.__name__: rewrite(deployed) for rewrite in rewrites(form)}
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    expected = {"fold_batch_norm": norms, "split_key_value": len(blocks(model))}
    for name, count in expected.items():
        if fired[name] != count:
            raise InvariantError(f"rewrite {name} fired {fired[name]} times, expected {count}")
    return deployed.requires_grad_(False).to(dtype), fired
