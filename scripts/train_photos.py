"""Train a ResT to tell scikit-image's photos apart (rest_deploy.photos), on the CPU.

    python scripts/train_photos.py --variant nano --output tests/assets/rest_nano_photos.safetensors

It gives a trained checkpoint without a download, whose attention is peaked and whose logits are
confident, which fresh weights are not: quantization and parity are measured on it.

With --steps the result depends on the seed, the number of threads and the torch build alone;
with --minutes the schedule follows the clock, so two runs differ. Float32 throughout: bfloat16
autocast was measured and was not reliably faster at these sizes. On a machine shared with other
work, OMP_WAIT_POLICY=PASSIVE in the environment keeps torch's threads from spinning while they wait
for one another; without it steps were seen to take ten times as long.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from PIL.Image import Resampling, Transpose
from safetensors.torch import save_file
from torch import Tensor, nn

from rest_deploy import photos
from rest_deploy.artifact import staging
from rest_deploy.cards import load_card
from rest_deploy.contracts import ModelCard, Preprocessing
from rest_deploy.errors import RestDeployError
from rest_deploy.model.family import build
from rest_deploy.preprocess import to_tensor

BATCH = 2 * len(photos.LABELS)
"""Two crops of every photo in each step, so that no step favours a class."""

WARMUP = 0.05
"""Share of the budget over which the learning rate rises to its peak."""

TEST_SEED = 0
"""Of the held-out crops; independent of --seed, so that all runs are measured on the same."""

LOG_SECONDS = 10.0


@dataclass(frozen=True)
class Recipe:
    """How long to train, in steps or in minutes (the other is 0), how fast, at which sizes.

    `learning_rate` is AdamW's peak. `phases`: (from this share of the budget on, input side in
    pixels). Small inputs come first because a step at 96 pixels costs a sixth of one at 224;
    the end is at the size the model will be used at, since the sums over an attention map
    depend on its number of tokens.
    """

    steps: int
    minutes: float
    learning_rate: float
    phases: tuple[tuple[float, int], ...]


OF_STEPS = ((0.0, 96), (0.6, 160), (0.85, 224))
OF_TIME = ((0.0, 96), (0.5, 160), (0.75, 224))

RECIPES = {
    "nano": Recipe(steps=400, minutes=0.0, learning_rate=2e-3, phases=OF_STEPS),
    "v2-nano": Recipe(steps=400, minutes=0.0, learning_rate=2e-3, phases=OF_STEPS),
    "lite": Recipe(steps=0, minutes=9.0, learning_rate=1e-3, phases=OF_TIME),
}
LARGER = Recipe(steps=0, minutes=30.0, learning_rate=5e-4, phases=OF_TIME)
"""For the variants that `RECIPES` does not name."""


@dataclass(frozen=True)
class Accuracy:
    """Top-1 over `total` crops, with the 95 % Wilson interval."""

    correct: int
    total: int

    @property
    def top1(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        z, n, p = 1.959964, self.total, self.top1
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.top1:.4f} ({self.correct}/{self.total}, 95 % interval {low:.4f}-{high:.4f})"


def training_batch(
    step: int, seed: int, size: int, preprocessing: Preprocessing
) -> tuple[Tensor, Tensor]:
    """Augmented crops (BATCH, 3, size, size), normalized, and their classes (BATCH,)."""
    # Distinct for all steps of all seeds below a million steps; the split keeps it from tests.
    batch_seed = seed * 1_000_000 + step
    generator = np.random.default_rng((batch_seed, 2))
    chosen = photos.crops("train", BATCH, batch_seed)
    images = []
    for crop in chosen:
        # Squeezed to a square: aspect and scale vary as the crops' boxes do. The resampling
        # filter varies so that its sharpness does not become a feature.
        sharp = Resampling.BICUBIC if generator.random() < 0.5 else Resampling.BILINEAR
        image = photos.load(crop).resize((size, size), sharp)
        for turn in (Transpose.FLIP_LEFT_RIGHT, Transpose.FLIP_TOP_BOTTOM):
            if generator.random() < 0.5:
                image = image.transpose(turn)
        images.append(np.asarray(image))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor((preprocessing.mean, preprocessing.std)).view(2, 1, 3, 1, 1)
    values = (_jitter(pixels, generator) - mean) / std
    return values, torch.tensor([crop.photo for crop in chosen])


def _jitter(pixels: Tensor, generator: np.random.Generator) -> Tensor:
    """Random brightness, contrast and saturation for each image. (B, 3, H, W), 0..1, both ways."""
    low, high = (0.94, 0.92, 0.88), (1.06, 1.1, 1.12)
    drawn = generator.uniform(low, high, (len(pixels), 3)).astype(np.float32)
    brightness, contrast, saturation = torch.from_numpy(drawn.T.reshape(3, -1, 1, 1, 1)).unbind()
    grey = pixels.mean(dim=1, keepdim=True)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    pixels = grey + (pixels - grey) * saturation
    return ((mean + (pixels - mean) * contrast) * brightness).clamp(0, 1)


def evaluate(model: nn.Module, preprocessing: Preprocessing, count: int, seed: int) -> Accuracy:
    """Top-1 on `count` held-out crops under the standard evaluation preprocessing."""
    chosen = photos.crops("test", count, seed)
    model.eval()
    correct = 0
    with torch.inference_mode():
        for start in range(0, count, BATCH):
            part = chosen[start : start + BATCH]
            values = np.stack([to_tensor(photos.load(crop), preprocessing) for crop in part])
            predicted = model(torch.from_numpy(values)).argmax(dim=1).tolist()
            correct += sum(p == crop.photo for p, crop in zip(predicted, part, strict=True))
    return Accuracy(correct, count)


def learning_rate_factor(progress: float) -> float:
    """Linear warmup, then a cosine to zero. `progress` 0..1 -> 0..1."""
    if progress < WARMUP:
        return progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def optimizer_for(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW; decay on matrices and kernels only, not on biases and norms."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate)


def train(
    model: nn.Module, recipe: Recipe, seed: int, smoothing: float, preprocessing: Preprocessing
) -> tuple[int, float]:
    """Train `model` in place. Returns (steps taken, seconds)."""
    optimizer = optimizer_for(model, recipe.learning_rate)
    loss_of = nn.CrossEntropyLoss(label_smoothing=smoothing)
    model.train()
    start = logged = time.monotonic()
    step, images, running = 0, 0, 0.0
    while True:
        seconds = time.monotonic() - start
        progress = step / recipe.steps if recipe.steps else seconds / (60 * recipe.minutes)
        if progress >= 1:
            return step, seconds
        size = next(side for share, side in reversed(recipe.phases) if progress >= share)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_factor(progress)
        inputs, classes = training_batch(step, seed, size, preprocessing)
        loss = loss_of(model(inputs), classes)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = float(loss.detach()) if step == 0 else 0.95 * running + 0.05 * loss.item()
        step, images = step + 1, images + BATCH
        if (now := time.monotonic()) - logged >= LOG_SECONDS:
            left = (now - start) * (1 - progress) / max(progress, 1e-9)
            click.echo(
                f"step {step}  {100 * progress:.0f} %  {size} px  loss {running:.3f}  "
                f"{images / (now - logged):.0f} images/s  about {left:.0f} s left",
                err=True,
            )
            logged, images = now, 0


def write(
    path: Path, model: nn.Module, variant: str, training: dict[str, str | int | float]
) -> None:
    """Write the checkpoint under a temporary name, then give it its own. Raises `OutputError`."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    metadata = {
        "format": "pt",
        "rest_deploy.variant": variant,
        "rest_deploy.labels": json.dumps(photos.LABELS),
        "rest_deploy.training": json.dumps(training),
    }
    with staging(path.parent) as folder:
        staged = folder / path.name
        save_file(state, staged, metadata=metadata)
        staged.replace(path)


def recipe_for(card: ModelCard, minutes: float | None, steps: int | None) -> Recipe:
    """The variant's recipe with the budget of the command line, if it names one."""
    recipe = RECIPES.get(card.variant, LARGER)
    if steps is None and minutes is None:
        return recipe
    if steps is not None and minutes is not None:
        raise click.UsageError("--minutes and --steps exclude each other; give one of them")
    phases = OF_STEPS if steps else OF_TIME
    return Recipe(steps or 0, minutes or 0.0, recipe.learning_rate, phases)


@click.command(help=__doc__.partition("\n")[0])
@click.option("--variant", default="nano", show_default=True, help="A card, or a path to one.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Time budget.")
@click.option("--steps", type=click.IntRange(1), help="Budget in steps; repeatable.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.0)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--test-crops", type=click.IntRange(1), default=512, show_default=True)
@click.option("--test-seed", type=click.IntRange(0), default=TEST_SEED, show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A .safetensors.")
def main(
    variant: str,
    minutes: float | None,
    steps: int | None,
    seed: int,
    label_smoothing: float,
    threads: int,
    test_crops: int,
    test_seed: int,
    output: Path | None,
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    try:
        card = load_card(variant)
        recipe = recipe_for(card, minutes, steps)
        model = build(card.architecture, len(photos.LABELS))
        taken, seconds = train(model, recipe, seed, label_smoothing, card.preprocessing)
        accuracy = evaluate(model, card.preprocessing, test_crops, test_seed)
        click.echo(
            f"{card.variant}: held-out top-1 {accuracy} at {card.preprocessing.crop} px "
            f"after {taken} steps, {seconds:.0f} s"
        )
        if output is not None:
            training: dict[str, str | int | float] = {
                "seed": seed,
                "steps": taken,
                "crops": taken * BATCH,
                "held_out_top1": round(accuracy.top1, 6),
                "held_out_crops": test_crops,
                "held_out_seed": test_seed,
                "torch": torch.__version__,
                "command": command(sys.argv),
            }
            write(output, model, card.variant, training)
            click.echo(f"wrote {output} ({output.stat().st_size} bytes)")
    except RestDeployError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error


def command(arguments: list[str]) -> str:
    """The command line as typed, without this machine's path to the script."""
    return " ".join(["python", "scripts/train_photos.py", *arguments[1:]])


if __name__ == "__main__":
    main()
