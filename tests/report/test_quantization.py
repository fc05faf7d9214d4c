"""The heat map of a sensitivity reads from the stem to the head."""

from __future__ import annotations

import random

import pytest

from rest_deploy.report.quantization import _depth

V1 = ["stem.conv1", "stem.conv3", "stage1.0", "stage1.1", "patch_embed_2", "stage2.0",
      "patch_embed_3", "stage3.2", "stage3.10", "patch_embed_4", "stage4.1", "head"]  # fmt: skip


@pytest.mark.parametrize("second", [False, True], ids=["v1", "v2"])
def test_order(second: bool) -> None:
    blocks = [block.replace("patch_embed_", "patch_") if second else block for block in V1]
    assert sorted(random.Random(0).sample(blocks, len(blocks)), key=_depth) == blocks
