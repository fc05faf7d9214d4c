"""Every v1 variant in every precision through NVIDIA's builder, from one dynamic ONNX each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from rest_deploy import verbs
from rest_deploy.contracts import Precision
from rest_deploy.engine import tensorrt

pytest.importorskip("tensorrt_rtx_bindings")
LEAST, USUAL = "1x3x64x64", "8x3x224x224"
WIDE = verbs.Wishes((LEAST,), (USUAL,), ("32x3x512x512",))
TIERS = verbs.Wishes((LEAST, LEAST), (USUAL, "2x3x512x512"), ("32x3x224x224", "8x3x512x512"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lite", "small", "base", "large"])
def test_all_precisions(variant: str, tmp_path: Path) -> None:
    """The build itself proves the precision; scratch memory of tiers is a third or less."""
    model = Path(verbs.export(variant, output_dir=tmp_path, opset=22).path)
    for precision in get_args(Precision):
        sms = tensorrt.able(("80", "86", "89", "120"), precision, "fp16")
        scratch = []
        for wishes in (WIDE, TIERS):
            report = verbs.build_engine(
                model,
                verbs.Request(precision, verbs.Images(limit=16), gate=False),
                workspace=tmp_path,
                backend="tensorrt-rtx",
                wishes=replace(wishes, target_sm=sms),
            )
            build = report.build
            assert build.fit is not None
            assert build.fit.sms == sms
            assert len(build.fit.profiles) == len(wishes.max_shapes)
            scratch.append(build.fit.scratch_bytes)
            if precision == "int8":
                eight = [row for row in build.proof if row.requested == "int8"]
                assert {row.role for row in eight} == {
                    "stem", "patch", "qkv", "proj", "mlp", "head",
                }  # fmt: skip
                assert all(row.obtained == ("int8",) for row in eight)
        assert scratch[1] < scratch[0] / 3
