"""The vocabulary: names of our nodes, and of strangers'."""

from __future__ import annotations

import pytest

from rest_deploy.graph.roles import Place, kind, part, place


@pytest.mark.parametrize(
    ("name", "operator", "where", "what"),
    [
        ("stem.conv1.Conv", "Conv", "stem", "conv"),
        ("stem.pos.pa_conv.Conv", "Conv", "stem", "conv"),
        ("stem.pos.Mul", "Mul", "stem", "other"),
        ("patch_embed_3.conv.Conv", "Conv", "patch3", "conv"),
        ("patch_3.proj.Conv", "Conv", "patch3", "conv"),
        ("patch_3.norm.LayerNormalization", "LayerNormalization", "patch3", "norm"),
        ("stem.norm.LayerNormalization", "LayerNormalization", "stem", "norm"),
        ("stage1.0.attn.up.Conv", "Conv", "stage1.0", "conv"),
        ("stage1.0.attn.up_norm.LayerNormalization", "LayerNormalization", "stage1.0", "norm"),
        ("stage1.0.attn.DepthToSpace", "DepthToSpace", "stage1.0", "other"),
        ("stage1.0.attn.sr.Conv", "Conv", "stage1.0", "conv"),
        ("stage3.17.attn.q.MatMul", "MatMul", "stage3.17", "gemm"),
        ("stage3.1.attn.q.Add", "Add", "stage3.1", "other"),
        ("stage2.0.attn.scores.MatMul", "MatMul", "stage2.0", "attention"),
        ("stage2.0.attn.transform_conv.Conv", "Conv", "stage2.0", "attention"),
        ("stage2.0.attn.Softmax", "Softmax", "stage2.0", "attention"),
        ("stage2.0.attn.norm.ReduceMean_1", "ReduceMean", "stage2.0", "attention"),
        ("stage2.0.attn.level.Sqrt", "Sqrt", "stage2.0", "attention"),
        ("stage2.0.attn.norm.Sub.out.QuantizeLinear", "QuantizeLinear", "stage2.0", "other"),
        ("stage2.0.attn.sr_norm.LayerNormalization", "LayerNormalization", "stage2.0", "norm"),
        ("norm.LayerNormalization", "LayerNormalization", "head", "norm"),
        ("head.Gemm", "Gemm", "head", "gemm"),
        ("stage1.Transpose", "Transpose", None, "other"),
        ("ReduceMean", "ReduceMean", None, "other"),
        ("normal.Add", "Add", None, "other"),
        ("MVN_437", "MVN", None, "norm"),
        ("/stages.0/attn/MatMul", "MatMul", None, "gemm"),
    ],
)
def test_part_and_kind(name: str, operator: str, where: str | None, what: str) -> None:
    assert (part(name), kind(name, operator)) == (where, what)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stem.conv3.Conv", Place("stem.conv3", "stem")),
        ("patch_embed_4.conv.Conv", Place("patch_embed_4", "patch")),
        ("patch_4.proj.Conv", Place("patch_4", "patch")),
        ("patch_4.pos.pa_conv.Conv", Place("patch_4", "pa")),
        ("stage3.12.attn.up.Conv", Place("stage3.12", "up")),
        ("stage3.12.attn.proj.MatMul", Place("stage3.12", "proj")),
        ("stage3.12.attn.up_norm.LayerNormalization", None),
        ("patch_4.norm.LayerNormalization", None),
        ("stage3.12.attn.DepthToSpace", None),
    ],
)
def test_place(name: str, expected: Place | None) -> None:
    assert place(name) == expected
