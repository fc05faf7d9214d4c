"""The cards as a table."""

from __future__ import annotations

from rest_deploy.cards import available
from rest_deploy.contracts import Struct
from rest_deploy.errors import installed


class VariantRow(Struct, frozen=True):
    """One card, counted and published; GFLOPs are multiply-accumulates / 1e9."""

    variant: str
    name: str
    parameters_m: float | None
    gflops: float | None
    published_top1: float | None
    published_parameters_m: float | None
    published_gflops: float | None
    source: str


class VariantTable(Struct, frozen=True):
    """All shipped cards; `note` says what the counts include."""

    rows: tuple[VariantRow, ...]
    note: str


def variants() -> VariantTable:
    """The cards with parameters and GFLOPs counted on the model at 224x224, 1000 classes."""
    counting = installed("torch")
    rows = []
    for card in available().values():
        parameters = gflops = None
        if counting:
            from rest_deploy.model.cost import count

            cost = count(card.architecture, card.head.num_classes, 224, 224)
            parameters, gflops = cost.parameters / 1e6, cost.macs / 1e9
        published = card.published
        rows.append(
            VariantRow(
                variant=card.variant,
                name=card.name,
                parameters_m=parameters,
                gflops=gflops,
                published_top1=published.top1 if published else None,
                published_parameters_m=published.parameters_m if published else None,
                published_gflops=published.gflops if published else None,
                source=published.source if published else "",
            )
        )
    note = (
        "GFLOPs are multiply-accumulates at 224x224, counted over every convolution, linear "
        "layer and attention product; the paper does not say what its figures leave out."
        if counting
        else "Counting needs PyTorch: pip install 'rest-deploy[export]'"
    )
    return VariantTable(rows=tuple(rows), note=note)
