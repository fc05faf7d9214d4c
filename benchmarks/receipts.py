"""What the shipped INT8 recipes cost and gain on one trained model: calibration/receipts/*.json.

    python scripts/train_photos.py --variant lite --output F
    python benchmarks/receipts.py --variant lite --checkpoint F --training "..."

Both CPU backends, each with its default recipe and the accuracy gate on 512 held-out crops; each
INT8 engine in rounds in turn with the float export on the same backend.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import msgspec

from rest_deploy import verbs
from rest_deploy.artifact import to_json, write_text
from rest_deploy.bench import environment, measure
from rest_deploy.bench.plan import Plan, Subject, sweep
from rest_deploy.bench.record import Environment
from rest_deploy.bench.stopping import Limits
from rest_deploy.cards import data_directory
from rest_deploy.quant.receipt import Measured, Receipt, Speed
from rest_deploy.runtime.session import Session
from rest_deploy.verbs import Images, Request
from rest_deploy.verify import gate

PATH = click.Path(path_type=Path)
BACKENDS = ("openvino", "onnxruntime")
GATE_IMAGES = 512
BATCHES = (1, 8)
SIDE = 224


@click.command()
@click.option("--variant", required=True)
@click.option("--checkpoint", type=PATH, required=True)
@click.option("--training", required=True, help="The command that made the checkpoint.")
@click.option("--output", type=PATH, help="Default: calibration/receipts/VARIANT.json.")
@click.option("--seconds", type=float, default=4.0, show_default=True, help="Per engine and shape.")
def main(
    variant: str, checkpoint: Path, training: str, output: Path | None, seconds: float
) -> None:
    """Measure and write the receipt."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = verbs.export(variant, output_dir=folder, checkpoint=checkpoint)
        metadata = report.metadata
        rows = tuple(_row(Path(report.path), backend, folder, seconds) for backend in BACKENDS)
    receipt = Receipt(
        schema=1,
        variant=metadata.variant,
        state_sha256=metadata.weights.state_sha256,
        classes=metadata.num_classes,
        training=training,
        command=f"python benchmarks/receipts.py --variant {variant} --checkpoint F "
        f"--training ... --seconds {seconds:g}",
        machine=_machine(environment.examine()),
        measured=rows,
    )
    target = output or data_directory("calibration") / "receipts" / f"{metadata.variant}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, to_json(msgspec.to_builtins(receipt)))
    for row in rows:
        speeds = ", ".join(f"{found.shape} {found.ratio:.2f}" for found in row.speed)
        print(f"{variant} {row.recipe} on {row.backend}: error {row.relative_error:.1e}, "
              f"agreement {row.agreement:.1%}, {speeds}")  # fmt: skip


def _row(export: Path, backend: str, folder: Path, seconds: float) -> Measured:
    request = Request(precision="int8", images=Images(), gate_images=GATE_IMAGES)
    report = verbs.build_engine(export, request, workspace=folder, backend=backend)
    found = report.build.gate
    assert found is not None
    checks = {check.name: check.value for check in found.checks}
    return Measured(
        recipe=report.build.recipe,
        backend=backend,
        images=found.images,
        relative_error=checks[gate.LOGIT_ERROR],
        agreement=checks[gate.AGREEMENT],
        top1_reference=found.top1_reference,
        top1_engine=found.top1_engine,
        speed=_speed(export, Path(report.path), backend, seconds),
    )


def _speed(export: Path, engine: Path, backend: str, seconds: float) -> tuple[Speed, ...]:
    subjects = [
        Subject("fp32", lambda n: Session.open(export, backend=backend, threads=n or None)),
        Subject("int8", lambda n: Session.open(engine, threads=n or None)),
    ]
    plan = Plan(
        points=sweep(BATCHES, ((SIDE, SIDE),)),
        limits=Limits(max_seconds=seconds, min_seconds=min(1.0, seconds)),
        classes=Session.open(export).metadata.num_classes,
    )
    result = measure.compare(subjects, plan)
    failed = [one.failed for one in result.engines if one.failed]
    if failed:
        raise click.ClickException(f"{backend}: {failed[0]}")
    return tuple(
        Speed(shape=found.shape, ratio=found.ratio, low=found.low, high=found.high)
        for found in result.ratios
    )


def _machine(here: Environment) -> str:
    versions = (f"{name} {here.packages[name]}" for name in BACKENDS if name in here.packages)
    return ", ".join((here.cpu, f"{here.cores} cores", *versions))


if __name__ == "__main__":
    main()
