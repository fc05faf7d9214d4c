"""FP32 and INT8 on both CPU runtimes on this machine: error, agreement, time, and auto's choice.

    python benchmarks/machines.py --variant lite --checkpoint F --output F.json
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/machines.py ...    # OpenVINO below what the CPU has

Every engine is built with the default photos, judged on held-out crops against PyTorch in float64,
and timed in rounds with the others. Then "auto" is asked several times which INT8 backend it would
take. The record holds the instruction set that each runtime may use.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import numpy as np

from rest_deploy import machine, photos, verbs
from rest_deploy.artifact import to_json, write_text
from rest_deploy.bench import environment, measure
from rest_deploy.bench.plan import Plan, Subject, sweep
from rest_deploy.bench.stopping import Limits
from rest_deploy.contracts import HostBackend, Precision
from rest_deploy.model.reference import Reference
from rest_deploy.preprocess import to_tensor
from rest_deploy.runtime.session import Session
from rest_deploy.verbs import Images, Request
from rest_deploy.verbs.trial import HOSTS, trial
from rest_deploy.verify import gate, metrics
from rest_deploy.verify.parity import load_reference

PATH = click.Path(path_type=Path)
ENGINES: tuple[tuple[Precision, HostBackend], ...] = tuple(
    (precision, backend) for precision in ("fp32", "int8") for backend in HOSTS
)
SEED = 7
"""Of the crops, which are of the held-out split; calibration takes the other one."""


@click.command()
@click.option("--variant", required=True)
@click.option("--checkpoint", type=PATH, required=True)
@click.option("--output", type=PATH, required=True)
@click.option("--crops", type=int, default=512, show_default=True)
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Of each engine.")
@click.option("--trials", type=int, default=10, show_default=True)
def main(
    variant: str, checkpoint: Path, output: Path, crops: int, seconds: float, trials: int
) -> None:
    """Build the engines, measure them and write the JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = verbs.export(variant, output_dir=folder, checkpoint=checkpoint)
        model, card = Path(report.path), report.metadata.card.preprocessing
        chosen = photos.crops("test", crops, seed=SEED)
        images = np.stack([to_tensor(photos.load(crop), card) for crop in chosen])
        reference = Reference(load_reference(report.metadata), outputs=report.metadata.gives)
        exact = gate.answers(reference.all, images, report.metadata.gives)["logits"]
        rows, subjects = {}, []
        for precision, backend in ENGINES:
            request = Request(precision=precision, images=Images())
            built = verbs.build_engine(model, request, workspace=folder, backend=backend)
            path, label = Path(built.path), f"{precision} {backend}"
            with Session.open(path) as session:
                found = gate.answers(session.run_normalized, images, report.metadata.gives)
            rows[label] = {
                "recipe": built.build.recipe,
                "exact_everywhere": built.build.exact_everywhere,
                "relative_error": metrics.relative_error(exact, found["logits"]),
                "agreement": metrics.agreement(exact, found["logits"]),
            }
            subjects.append(Subject(label, _opener(path)))
        side = card.crop
        plan = Plan(
            points=sweep((1, 8), ((side, side),)),
            limits=Limits(max_seconds=seconds, min_seconds=seconds),
            base=subjects[0].label,
        )
        compared = measure.compare(subjects, plan)
        source = Session.open(model)
        asked = [trial(source, Request(precision="int8"), HOSTS) for _ in range(trials)]
    features = {backend: machine.features_for(backend) for backend in HOSTS}
    write_text(output, to_json({
        "command": f"python benchmarks/machines.py --variant {variant} --checkpoint F --output F",
        "cap": machine.cap(),
        "instruction_sets": {
            backend: machine.instruction_set(found) for backend, found in features.items()
        },
        "features": features,
        "variant": variant,
        "crops": crops,
        "state_sha256": report.metadata.weights.state_sha256,
        "environment": msgspec.to_builtins(environment.examine()),
        "engines": rows,
        "times": {
            one.label: {m.shape: m.host.median for m in one.measurements}
            for one in compared.engines
        },
        "ratios": [msgspec.to_builtins(ratio) for ratio in compared.ratios],
        "auto": [{"first": one.order("int8")[0], "words": one.words()} for one in asked],
    }))  # fmt: skip
    for label, row in rows.items():
        print(f"{label}: error {row['relative_error']:.1e}, agreement {row['agreement']:.1%}")


def _opener(path: Path) -> Callable[[int], Session]:
    return lambda _threads: Session.open(path)


if __name__ == "__main__":
    main()
