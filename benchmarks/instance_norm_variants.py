"""Ways to write the folded InstanceNorm: float32 error of the logits of each, in PyTorch.

    python benchmarks/instance_norm_variants.py --output benchmarks/results/NAME.json

All compute the same function; docs/instance-norm.md says why they round so differently.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from rest_deploy.artifact import to_json, write_text
from rest_deploy.cards import load_card
from rest_deploy.model.checkpoint import load_model
from rest_deploy.model.deploy import to_deploy
from rest_deploy.model.deploy.rest import DeployAttention
from rest_deploy.model.reference import Reference
from rest_deploy.model.rest import INSTANCE_NORM_EPS
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, synthetic_images

Form = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Scores (B, h, N, M) and v (B, h, M, d) -> the two factors of the context."""


def scaled(centred: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    variance = (centred * centred).mean(dim=(-2, -1), keepdim=True)
    return centred, v * torch.rsqrt(variance + INSTANCE_NORM_EPS)


def zero_mean(v: Tensor) -> Tensor:
    return v - v.mean(dim=-2, keepdim=True)


def share(scores: Tensor) -> float:
    return 1.0 / scores.shape[-1]


def known_mean(s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return scaled(s.softmax(-1) - share(s), v)


def row_mean(s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    p = s.softmax(-1)
    return scaled(p - p.mean(-1, keepdim=True), v)


def map_mean(s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    p = s.softmax(-1)
    return scaled(p - p.mean((-2, -1), keepdim=True), v)


def only_v_centred(s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    centred, v = scaled(s.softmax(-1) - share(s), zero_mean(v))
    return centred + share(s), v


def expm1(s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    e = torch.expm1(s - s.mean(-1, keepdim=True))
    mean = e.mean(-1, keepdim=True)
    return scaled((e - mean) * share(s) / (1 + mean), v)


def softmax_float64(s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return scaled((s.double().softmax(-1) - share(s)).to(s.dtype), v)


def both_centred(s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return scaled(s.softmax(-1) - share(s), zero_mean(v))


FORMS: dict[str, Form] = {
    "D = P - 1/M, V not centred": known_mean,
    "D = P - mean of the row, V not centred": row_mean,
    "D = P - mean of the map, V not centred": map_mean,
    "P (r V0): only V centred, the map not": only_v_centred,
    "expm1 of the scores instead of exp": expm1,
    "softmax in float64": softmax_float64,
    "D = P - 1/M, V centred (used)": both_centred,
}


class NormOfScores(nn.Module):
    """Takes the place of the norm; the softmax before it is made a no-op by `attach`."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.form(scores, v)


class LogScores(nn.Module):
    """Hands scores through `Tensor.softmax`, which the attention calls before the norm."""

    class Raw(Tensor):
        def softmax(self, dim: int) -> Tensor:  # type: ignore[override]  # keeps the scores
            assert dim == -1
            return self.as_subclass(Tensor)

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, scores: Tensor) -> Tensor:
        mixed: Tensor = self.mix(scores)
        return mixed.as_subclass(LogScores.Raw)


def attach(model: nn.Module, form: Form) -> None:
    for attention in model.modules():
        if isinstance(attention, DeployAttention) and attention.transform_conv is not None:
            mix = attention.transform_conv
            attention.transform_conv = LogScores(mix)  # type: ignore[assignment]  # same call
            attention.norm = NormOfScores(form)


@click.command()
@click.option("--variant", default="lite", show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(variant: str, seeds: int, output: Path) -> None:
    images = synthetic_images(Case(batch=2, height=97, width=131))
    rows = []
    for name, form in FORMS.items():
        errors = []
        for seed in range(seeds):
            module = load_model(load_card(variant), None, seed=seed).module
            deployed, _ = to_deploy(module)
            attach(deployed, form)
            with torch.no_grad():
                actual = deployed(torch.from_numpy(images)).as_subclass(Tensor).numpy()
            errors.append(relative_error(Reference(module)(images), actual))
        rows.append({"form": name, "median": float(np.median(errors)), "errors": errors})
        click.echo(f"{np.median(errors):.1e}  {name}")
    command = f"python benchmarks/instance_norm_variants.py --variant {variant} --output F"
    write_text(output, to_json({"command": command, "torch": str(torch.__version__), "rows": rows}))


if __name__ == "__main__":
    main()
