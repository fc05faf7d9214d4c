"""Which layers cost accuracy, and the recipe that keeps a budget."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from rest_deploy import machine
from rest_deploy.artifact import sha256_file, to_json, write_text
from rest_deploy.bench.record import PlaceError, Sensitivity
from rest_deploy.contracts import HostBackend, Runner, Struct
from rest_deploy.engine.backends import choose
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.engine.openvino import OpenVinoRunner
from rest_deploy.errors import InputError, require
from rest_deploy.quant.budget import PlaceScore, Score, parse_budget
from rest_deploy.quant.recipe import Recipe, load_recipe
from rest_deploy.runtime.session import Session
from rest_deploy.verbs import saturation
from rest_deploy.verbs.calibrate import CARD_PHOTOS, Images, calibrate
from rest_deploy.verbs.gate import gate_data, reference_answers
from rest_deploy.verbs.progress import Counter, Progress, silent, step, uncounted
from rest_deploy.verbs.verify import open_export
from rest_deploy.verify import gate
from rest_deploy.verify.distances import distances

if TYPE_CHECKING:
    import onnx_ir as ir

SENSITIVITY_IMAGES = 64

IN_FLOAT = "in float"
"""Among the scores by place."""


class SensitivityReport(Struct, frozen=True):
    """Scores, worst first, by the kernels of `backend`. `whole`: everything the recipe names
    quantized; `in_float`: the same with its sums in float, so what is worse in `whole` is the
    kernels'. `resumed`: scores that an earlier, interrupted run had measured."""

    model: str
    recipe: Recipe
    reference: str
    images: int
    source: str
    whole: Score
    places: tuple[PlaceScore, ...]
    resumed: int
    file: str
    backend: HostBackend
    in_float: Score
    budget: str = ""
    budget_recipe: str = ""
    budget_floats: tuple[str, ...] = ()
    budget_float_share: float = 0.0
    budget_score: Score | None = None


class Stored(Struct, frozen=True):
    """What a run has measured so far; `identity` says of what. found: of a run that was finished,
    of the export with that hash."""

    schema: Literal[1]
    identity: str
    scores: dict[str, Score]
    model_sha256: str = ""
    found: Sensitivity | None = None


def sensitivity(
    model: Path | None,
    *,
    workspace: Path,
    recipe: str = "int8",
    backend: str = "auto",
    images: Images = CARD_PHOTOS,
    gate_images: int = SENSITIVITY_IMAGES,
    gate_set: Path | None = None,
    checkpoint: Path | None = None,
    budget: str | None = None,
    output: Path | None = None,
    progress: Progress = silent,
    counter: Counter = uncounted,
) -> SensitivityReport:
    """Measure every (block, role) of the recipe alone, on held-out images, by the first output.

    backend: whose kernels compute it, "openvino" or "onnxruntime"; "auto": what `build-engine`
    would take without timing, ONNX Runtime for engines that are not for a CPU.
    budget: like "agreement>=99.5%"; the recipe that keeps it is written to `output`. Scores are
    stored as they come: an interrupted run goes on. Raises what `calibrate` raises, and
    `InputError` for a budget that cannot be kept.
    """
    require("onnxruntime", "onnxruntime")
    require("onnx_ir", "export")
    from rest_deploy.graph.unsign import unsign_activations
    from rest_deploy.quant import sensitivity as study

    wanted = parse_budget(budget) if budget is not None else None
    source = open_export(model, workspace)
    loaded = load_recipe(recipe)
    runtime = _runtime(backend, loaded)
    report, table = calibrate(
        source.path, workspace=workspace, images=images, recipe=recipe, counter=counter
    )
    seen = gate_data(source.metadata, gate_set, gate_images)
    with step(progress, f"computed the reference on {len(seen.images)} images"):
        expected, reference = reference_answers(source, seen.images, checkpoint)
    (first,) = source.metadata.gives[:1]
    stem = f"{source.path.name.removesuffix('.onnx')}.{loaded.name}"
    file = workspace / f"{stem}.sensitivity.json"
    identity = hashlib.sha256(
        f"{report.table_sha256} {hashlib.sha256(seen.images.tobytes()).hexdigest()} {runtime} "
        f"{machine.features_for(runtime)}".encode()
    ).hexdigest()
    scores = _stored(file, identity)
    resumed = len(scores)

    def measure(graph: ir.Model, *, in_float: bool = False) -> Score:
        import onnx_ir as ir

        if runtime == "onnxruntime":
            unsign_activations(graph)  # as its engines have it
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "quantized.onnx"
            ir.save(graph, path)
            if in_float:
                infer = saturation.in_float(path, source.metadata)
            else:
                runner: Runner = (
                    OpenVinoRunner(path) if runtime == "openvino" else OnnxRuntimeRunner(path)
                )
                infer = Session(runner, source.metadata, path, None).run_normalized
            actual = gate.answers(infer, seen.images, (first,))
        found = distances(first, expected[first.name], actual[first.name])
        return Score(relative_error=found.relative_error, kl=found.kl, agreement=found.agreement)

    shares = study.shares(source.path, table)
    recipes = {"": loaded, IN_FLOAT: loaded}
    recipes |= {str(place): study.only(loaded, place, shares) for place in shares}
    for done, (name, alone) in enumerate(recipes.items()):
        if name not in scores:
            graph = study.quantized(source.path, table, alone)
            scores[name] = measure(graph, in_float=name == IN_FLOAT)
            stored = Stored(schema=1, identity=identity, scores=scores)
            write_text(file, to_json(stored))
        counter("measuring", done + 1, len(recipes), "places")
    places = study.ranked(
        PlaceScore(block=place.block, role=place.role, share=share, score=scores[str(place)])
        for place, share in shares.items()
    )
    finished = Stored(
        schema=1,
        identity=identity,
        scores=scores,
        model_sha256=sha256_file(source.path),
        found=Sensitivity(
            command=f"rest-deploy sensitivity {source.path.name} --recipe {recipe}",
            recipe=loaded.name,
            images=len(seen.images),
            whole=scores[""].relative_error,
            places=tuple(
                PlaceError(
                    block=one.block,
                    role=one.role,
                    relative_error=one.score.relative_error,
                    share=one.share,
                )
                for one in places
            ),
        ),
    )
    write_text(file, to_json(finished))
    result = SensitivityReport(
        model=str(source.path),
        recipe=loaded,
        reference=reference,
        images=len(seen.images),
        source=seen.source,
        whole=scores[""],
        places=tuple(places),
        resumed=resumed,
        file=str(file),
        backend=runtime,
        in_float=scores[IN_FLOAT],
    )
    if wanted is None:
        return result
    found = study.within_budget(source.path, table, places, wanted, measure)
    target = output or workspace / f"{stem}-budget.toml"
    comment = (
        f"{loaded.name} with places in float so that {wanted} holds on {seen.source}:\n"
        f"measured {getattr(found.score, wanted.metric):.4g}; "
        f"{found.float_share:.0%} of the multiplications stay float."
    )
    write_text(target, study.to_toml(found.recipe, comment))
    return msgspec.structs.replace(
        result,
        budget=str(wanted),
        budget_recipe=str(target),
        budget_floats=found.recipe.float_places,
        budget_float_share=found.float_share,
        budget_score=found.score,
    )


def _runtime(wanted: str, recipe: Recipe) -> HostBackend:
    """Raises `InputError`, `MissingDependencyError`."""
    if wanted not in ("auto", "openvino", "onnxruntime"):
        raise InputError(f"sensitivity runs on openvino or onnxruntime, not on {wanted}")
    found = choose(wanted, recipe.format).backend
    return "openvino" if found == "openvino" else "onnxruntime"


def last_sensitivity(name: str, sha256: str, workspace: Path) -> Sensitivity | None:
    """What the last finished run found for the export of that name and hash, None for none."""
    files = workspace.glob(f"{name.removesuffix('.onnx')}.*.sensitivity.json")
    for file in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            stored = msgspec.json.decode(file.read_bytes(), type=Stored)
        except (OSError, msgspec.DecodeError, UnicodeError):
            continue
        if stored.found is not None and stored.model_sha256 == sha256:
            return stored.found
    return None


def _stored(file: Path, identity: str) -> dict[str, Score]:
    """Scores of an earlier run on the same table and images; a damaged file counts as none."""
    try:
        stored = msgspec.json.decode(file.read_bytes(), type=Stored)
    except (OSError, msgspec.DecodeError, UnicodeError):
        return {}
    return dict(stored.scores) if stored.identity == identity else {}
