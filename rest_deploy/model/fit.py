"""Names and shapes: which variant a state dict is of, and what differs from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rest_deploy.cards import available
from rest_deploy.contracts import ModelCard
from rest_deploy.errors import CheckpointError
from rest_deploy.model.family import build
from rest_deploy.model.naming import is_counter

LAST_NORM = ("norm.weight", "norm.bias")
"""What a backbone that only gives feature maps has not."""


@dataclass(frozen=True)
class Guess:
    """The variant that a checkpoint is of. why: in words."""

    card: ModelCard
    why: str


def expected_shapes(card: ModelCard, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the variant's state dict, without the BatchNorm counters."""
    with torch.device("meta"):
        module = build(card.architecture, num_classes)
    return {k: tuple(v.shape) for k, v in module.state_dict().items() if not is_counter(k)}


def classes_of(state: Mapping[str, Tensor]) -> int:
    """Rows of the head, 0 when there is none."""
    head = state.get("head.weight")
    return int(head.shape[0]) if head is not None and head.dim() == 2 else 0


def misfits(card: ModelCard, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being of that variant, name by name; empty when it fits.

    A state without head may lack the last norm too: it gives feature maps.
    """
    classes = classes_of(state)
    expected = expected_shapes(card, classes)
    if not classes and not any(name in state for name in (*LAST_NORM, "head.bias")):
        for name in LAST_NORM:
            del expected[name]
    found = {name: tuple(value.shape) for name, value in state.items() if not is_counter(name)}
    return [
        *(f"missing {name}" for name in expected if name not in found),
        *(f"unexpected {name}" for name in found if name not in expected),
        *(
            f"{name} is {list(found[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ),
    ]


def fitting_variants(state: Mapping[str, Tensor]) -> list[str]:
    """Shipped variants whose names and shapes are exactly the state's."""
    return [card.variant for card in available().values() if not misfits(card, state)]


def guess(state: Mapping[str, Tensor], where: str) -> Guess:
    """The one shipped variant that fits. where: of the state, for messages.

    Raises `CheckpointError` naming the two that fit, or the closest one and what differs.
    """
    cards = available()
    problems = {variant: misfits(card, state) for variant, card in cards.items()}
    fitting = [variant for variant, found in problems.items() if not found]
    if len(fitting) > 1:
        raise CheckpointError(
            f"{where} fits several variants, whose names and shapes are the same: "
            f"{', '.join(fitting)}",
            hint=f"say which it is: --variant {fitting[0]}",
        )
    if not fitting:
        closest = min(problems, key=lambda variant: len(problems[variant]))
        raise CheckpointError(
            f"{where} fits no known variant; the closest is {closest!r}: "
            f"{_listed(problems[closest])}",
            hint="a variant of your own is a card: copy one of models/, then --variant CARD.toml",
        )
    count = sum(not is_counter(name) for name in state)
    dims = "-".join(map(str, cards[fitting[0]].architecture.dims))
    depths = "-".join(map(str, cards[fitting[0]].architecture.depths))
    return Guess(
        cards[fitting[0]],
        f"variant {fitting[0]}, guessed: all {count} names and shapes fit (dims {dims}, depths "
        f"{depths}), and no other card's do",
    )


def check_fit(card: ModelCard, state: Mapping[str, Tensor], where: str) -> None:
    """Raise `CheckpointError` listing what does not fit, and the variant that would."""
    problems = misfits(card, state)
    if not problems:
        return
    fitting = fitting_variants(state)
    raise CheckpointError(
        f"{where} does not fit variant {card.variant!r}: {_listed(problems)}",
        hint=f"it fits: --variant {fitting[0]}" if fitting else "no known variant fits it",
    )


def check_norms(state: Mapping[str, Tensor], dims: Mapping[str, int], where: str) -> None:
    """Raise `CheckpointError` unless each of `dims` has a weight and a bias of that length."""
    expected = {f"{name}.{part}": (dim,) for name, dim in dims.items() for part in
                ("weight", "bias")}  # fmt: skip
    problems = [
        f"{name} is {list(state[name].shape)}, expected {list(shape)}"
        if name in state else f"missing {name}"
        for name, shape in expected.items()
        if name not in state or tuple(state[name].shape) != shape
    ]  # fmt: skip
    if problems:
        raise CheckpointError(f"{where} has norms that do not fit: {_listed(problems)}")


def check_values(state: Mapping[str, Tensor], where: str) -> None:
    """Raise `CheckpointError` for values that are no finite floats."""
    bad = []
    for name, value in state.items():
        if is_counter(name):
            continue
        if value.layout != torch.strided or value.is_meta:
            bad.append(f"{name} is not a plain tensor ({value.layout}, {value.device})")
        elif not value.is_floating_point():
            bad.append(f"{name} is {value.dtype}")
        elif not bool(torch.isfinite(value.float()).all()):
            bad.append(f"{name} has NaN or infinite values")
        elif name.endswith("running_var") and bool((value.float() < 0).any()):
            bad.append(f"{name} has a negative variance")
    if bad:
        raise CheckpointError(
            f"{where} has unusable weights: {_listed(bad, 5)}",
            hint="the training diverged, or the file is damaged",
        )


def _listed(problems: list[str], most: int = 6) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more
