"""The vocabulary: names of our nodes, and of strangers'."""

from __future__ import annotations

import pytest

from rest_deploy.graph.roles import kind, part


@pytest.mark.parametrize(
    ("name", "operator", "where", "what"),
    [
        ("stem.conv1.Conv", "Conv", "stem", "conv"),
        ("stem.pos.pa_conv.Conv", "Conv", "stem", "conv"),
        ("stem.pos.Mul", "Mul", "stem", "other"),
        ("patch_embed_3.conv.Conv", "Conv", "patch3", "conv"),
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
