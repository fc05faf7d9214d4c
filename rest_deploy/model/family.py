"""Architecture -> module of its family."""

from __future__ import annotations

from collections.abc import Callable

from rest_deploy.architecture import Family
from rest_deploy.contracts import Architecture
from rest_deploy.model.backbone import Backbone
from rest_deploy.model.rest import ResT
from rest_deploy.model.rest_v2 import ResTV2

FAMILIES: dict[Family, Callable[[Architecture, int], Backbone]] = {
    "rest": ResT,
    "rest_v2": ResTV2,
}


def build(architecture: Architecture, num_classes: int = 1000) -> Backbone:
    """The reference module with fresh weights; `num_classes` 0: no head."""
    return FAMILIES[architecture.family](architecture, num_classes)
