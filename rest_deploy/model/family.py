"""Architecture -> module of its family."""

from __future__ import annotations

from rest_deploy.contracts import Architecture
from rest_deploy.model.backbone import Backbone
from rest_deploy.model.rest import ResT


def build(architecture: Architecture, num_classes: int = 1000) -> Backbone:
    """The reference module with fresh weights; `num_classes` 0: no head."""
    return ResT(architecture, num_classes)
