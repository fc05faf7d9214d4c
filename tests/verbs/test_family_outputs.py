"""Every variant with every kind of output, from either kind of input."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from rest_deploy import verbs
from rest_deploy.artifact import read_sidecar
from rest_deploy.contracts import Precision
from rest_deploy.engine.tensorrt import Flavour
from rest_deploy.signature import OUTPUT_KINDS, InputKind
from rest_deploy.verbs import Images, Request, Wishes

pytest.importorskip("tensorrt_rtx_bindings")
PUBLISHED = ("lite", "small", "base", "large", "v2-tiny", "v2-small", "v2-base", "v2-large")
SIZES = ((224, 224), (200, 225), (512, 384))
NAMES = ["logits", "probabilities", "embedding", "c2", "c3", "c4", "c5"]
PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
BACKEND: Flavour = "tensorrt-rtx"


@pytest.mark.parametrize(
    ("variant", "input_kind"),
    [
        ("v2-nano", "uint8"),  # nano itself: tests/verbs/test_outputs.py
        *(
            pytest.param(variant, kind, marks=pytest.mark.slow)
            for variant, kind in product(PUBLISHED, ("float", "uint8"))
        ),
    ],
)
def test_all_outputs(variant: str, input_kind: InputKind, tmp_path: Path) -> None:
    """Exported, at parity at three sizes, and proven in FP16 and INT8 by NVIDIA's builder.

    All outputs in one file, so that one graph holds them all; tests/verbs/test_outputs.py takes
    the smallest variant's alone and in pairs, and runs them.
    """
    report = verbs.export(
        variant,
        output_dir=tmp_path,
        outputs=OUTPUT_KINDS,
        unit_length=input_kind == "uint8",
        input_kind=input_kind,
    )
    assert [one.name for one in report.metadata.gives] == NAMES
    model = Path(report.path)
    parity = verbs.verify(model, workspace=tmp_path, sizes=SIZES, batches=(1,))
    seen = {(one.output, one.case.height, one.case.width) for one in parity.results}
    assert seen == {(name, *size) for name in NAMES for size in SIZES}
    assert parity.passed
    for precision in PRECISIONS:
        # Fresh weights have no accuracy that a gate could hold: precision is proven instead.
        built = verbs.build_engine(
            model,
            Request(precision=precision, images=Images(limit=16), gate=False),
            workspace=tmp_path,
            backend=BACKEND,
            wishes=Wishes(max_shapes=("4x3x512x512",), target_sm=("89",)),
        )
        assert built.build.proof
        assert all(row.obtained == (row.requested,) for row in built.build.proof)
        described = read_sidecar(Path(built.path))
        assert described is not None
        assert described.metadata.gives == report.metadata.gives
        assert described.metadata.input_kind == input_kind
