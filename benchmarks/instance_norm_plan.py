"""The InstanceNorm's forms in NVIDIA's FP16 plan of rest_lite: kernels and float32 maps.

    python benchmarks/instance_norm_plan.py --output benchmarks/results/instance_norm_plan.json

Fresh weights, one profile tuned for 8x3x224x224. "float32 maps": results of kernels of type Float
and the shape of an attention map (batch, heads, N, M): what the norm costs in memory traffic.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import get_args

import click
import onnx_ir as ir

from rest_deploy import verbs
from rest_deploy.artifact import to_json, write_text
from rest_deploy.contracts import InstanceNormForm, Profile
from rest_deploy.engine import tensorrt
from rest_deploy.graph.precision import to_sixteen_bit

PROFILE = Profile(minimum=(1, 3, 64, 64), optimum=(8, 3, 224, 224), maximum=(32, 3, 224, 224))
NORM = re.compile(r".*\.attn\.(Softmax|norm\..*)")
RESULT = re.compile(r"Dimensions: \[-1,\d+,-1,-1\][^}]*?Datatype: Float")
"""In the record of a kernel: batch, N and M are dynamic, the heads are not."""


@click.command()
@click.option("--variant", default="lite", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(variant: str, output: Path) -> None:
    rows = []
    for form in get_args(InstanceNormForm):
        with tempfile.TemporaryDirectory() as folder:
            path = verbs.export(variant, output_dir=Path(folder), instance_norm=form).path
            graph = ir.load(path)
        to_sixteen_bit(graph, "fp16")
        built = tensorrt.build(
            "tensorrt-rtx",
            ir.to_proto(graph).SerializeToString(),
            tensorrt.Options(profiles=(PROFILE,), sms=("89",)),
            lambda *_: None,
        )
        norms = [
            layer
            for layer in built.layers
            if any(NORM.fullmatch(name) for name in layer.onnx_layers)
        ]
        row = {
            "form": form,
            "layers": len(built.layers),
            "norm_layers": len(norms),
            "float32_maps": _maps(built.log),
            "scratch_bytes": built.scratch_bytes,
        }
        rows.append(row)
        click.echo(row)
    record = {
        "command": f"python benchmarks/instance_norm_plan.py --variant {variant} --output F",
        "builder": f"tensorrt-rtx {tensorrt.version('tensorrt-rtx')}, compute capability 89",
        "rows": rows,
    }
    write_text(output, to_json(record))


def _maps(log: str) -> int:
    """Float32 results in the shape of a map, over all kernels of the plan."""
    records = {}
    for line in log.splitlines():
        found = re.search(r"Name: (\S+), LayerType: .*Outputs: \[(.*?)TacticName", line)
        if found:
            records[found[1]] = len(RESULT.findall(found[2]))
    return sum(records.values())


if __name__ == "__main__":
    main()
