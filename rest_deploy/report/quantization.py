"""Calibration tables, quantized files and engines as plain text."""

from __future__ import annotations

import math
import re
import textwrap

from rest_deploy.contracts import Build, GateResult
from rest_deploy.quant.budget import Score
from rest_deploy.quant.dataset import Health, Size
from rest_deploy.quant.table import CalibrationTable
from rest_deploy.report.engine import fit_lines
from rest_deploy.report.text import WIDTH, sums
from rest_deploy.report.text import table as columns
from rest_deploy.verbs import (
    BuildReport,
    CalibrationReport,
    LintReport,
    SensitivityReport,
    Trial,
)
from rest_deploy.verbs.saturation import CLEARLY
from rest_deploy.verify.gate import describe

LISTED = 5
"""Unreadable files shown."""

WIDEST = 5
"""Tensors listed whose range is widest for their bulk."""


def calibration(report: CalibrationReport, table: CalibrationTable) -> str:
    head = "reused, it fits" if report.reused else f"{report.seconds:.1f} s"
    lines = [
        f"{report.table}: {report.tensors} ranges by {report.recipe.name}, "
        f"{report.images} images ({head})",
        *_health(report.source, report.health, report.sizes),
    ]
    if report.replaced:
        lines.append(f"the table that was there is replaced: {report.replaced}")
    rows = [
        (name, f"{found.largest:.3g}", f"{found.threshold:.3g}", f"{found.scale:.3g}",
         found.algorithm)
        for name, found in sorted(
            table.ranges.items(), key=lambda item: item[1].largest, reverse=True
        )[:WIDEST]
    ]  # fmt: skip
    header = ("widest ranges", "largest", "threshold", "scale", "algorithm")
    return "\n".join([*lines, "", columns(header, rows)])


def build(report: BuildReport) -> str:
    made = report.build
    lines = [
        f"{report.path}: {report.metadata.card.name}, {made.precision}, {_size(report)}, "
        f"{report.seconds:.1f} s",
        _backend(report),
    ]
    if report.cached:
        lines.append("it was there already, built from the same things by the same builder")
    if made.fit is not None:
        lines += fit_lines(made.fit)
    if report.calibration is not None:
        found = report.calibration
        reused = ", reused" if found.reused else ""
        lines.append(f"calibration: {found.table} ({found.images} images{reused})")
        lines += _health(found.source, found.health, found.sizes)
    lines += [
        "",
        _layers(made, report.skipped),
        *(f"8-bit sums: {words}" for words in sums(made)),
        *_timed(report.trial),
        "",
        _gate(made.gate, made.gated if made.fit else ""),
        *_receipt(report),
    ]
    lines += [f"warning: {warning}" for warning in report.warnings]
    return "\n".join(lines)


def _timed(trial: Trial | None) -> list[str]:
    """The backends beside each other, as "auto" timed them."""
    if trial is None:
        return []
    words = f"timed here, {trial.words()}"
    return textwrap.wrap(words, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _size(report: BuildReport) -> str:
    megabytes = f"{report.size_bytes / 1e6:.1f} MB"
    if report.build.fit is not None:
        return f"{megabytes} with its kernels"
    smaller = report.source_bytes / report.size_bytes
    return f"{megabytes} ({smaller:.1f} times smaller)" if smaller > 1.05 else megabytes


def _backend(report: BuildReport) -> str:
    if report.build.backend == "onnx":
        return "for any backend that takes ONNX; build-engine makes an engine for this machine"
    passed = "; ".join(f"not {name}: {reason}" for name, reason in report.passed_over)
    through = f"/{report.build.provider}" if report.build.provider else ""
    line = f"backend: {report.build.backend}{through}" + (f" ({passed})" if passed else "")
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _health(source: str, health: Health | None, sizes: tuple[Size, ...]) -> list[str]:
    if health is None:
        return []
    at = ", ".join(f"{height}x{width}" for height, width in sizes)
    lines = [
        f"images: {health.images} of {source}, {health.duplicates} duplicates, "
        f"{len(health.unreadable)} unreadable",
        f"  {_times(health.smallest)} to {_times(health.largest)} pixels, brightness "
        f"{health.brightness_min:.2f} to {health.brightness_max:.2f}, "
        f"brought to {at or _times((health.preprocessing.crop,) * 2)}",
        *(f"  skipped: {reason}" for reason in health.unreadable[:LISTED]),
    ]
    if len(health.unreadable) > LISTED:
        lines.append(f"  and {len(health.unreadable) - LISTED} more; all with --json")
    return lines + [f"warning: {warning}" for warning in health.warnings]


def _times(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def _layers(made: Build, skipped: dict[str, dict[str, int]]) -> str:
    """One row a role: what its weight layers compute in, and why others were left."""
    roles = sorted({*made.obtained, *skipped})
    kinds = sorted({kind for counts in made.obtained.values() for kind in counts})
    rows = []
    for role in roles:
        counts = made.obtained.get(role, {})
        reasons = ", ".join(f"{n} {reason}" for reason, n in skipped.get(role, {}).items())
        rows.append((role, *(str(counts.get(kind, "")) for kind in kinds), reasons))
    lines = columns(("role", *kinds, ""), rows).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def _gate(result: GateResult | None, gated: str) -> str:
    if result is None:
        return "gate: switched off"
    lines = [f"gate: {result.images} images ({result.source}) against {result.reference}"]
    if gated:
        lines.append(f"  looked at {gated}")
    lines += [
        f"  {'ok  ' if check.passed else 'FAIL'} {describe(check)}" for check in result.checks
    ]
    if result.labelled:
        (low, high), (low2, high2) = result.top1_reference_interval, result.top1_engine_interval
        lines.append(
            f"  labelled top-1: {result.top1_engine:.1%} ({low2:.1%} to {high2:.1%}), reference "
            f"{result.top1_reference:.1%} ({low:.1%} to {high:.1%}), {result.labelled} images"
        )
    return "\n".join(lines)


def _receipt(report: BuildReport) -> list[str]:
    """What the recipe measured where it was shipped, to hold the gate's figures against."""
    found = report.receipt
    if found is None:
        return []
    speeds = " and ".join(f"{row.ratio:.2f} at {row.shape}" for row in found.speed)
    words = (
        f"receipt of {found.recipe}: error {found.relative_error:.1e}, agreement "
        f"{found.agreement:.1%} on a trained {report.metadata.card.name}"
    )
    if speeds:
        words += f"; {found.backend} times the float engine's speed {speeds}"
    return textwrap.wrap(words, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def lint(report: LintReport) -> str:
    found = report.found
    lines = [
        f"{report.file}: {found.attentions} attentions, {found.missed} of them missed; "
        f"{found.quantized} of {found.layers} weight layers quantized"
    ]
    for finding in found.findings:
        more = ", …" if finding.count > len(finding.where) else ""
        lines += [
            "",
            f"{finding.level} [{finding.rule}] {finding.count} of {finding.total} {finding.what}",
            f"  {finding.why}",
            f"  {', '.join(finding.where)}{more}",
        ]
    if not found.attentions:
        lines.append("no attention found: is this a ResT?")
    elif not found.findings:
        lines.append("nothing to mend")
    return "\n".join(lines)


SHADES = " .:-=+*#%@"
"""Of the heat map: each step is a factor of two in error, the darkest the worst place."""

WORST = 12


def sensitivity(report: SensitivityReport) -> str:
    header = ("block", "role", "relative error", "KL", "agreement", "of multiplications")
    rows = [
        (found.block, found.role, f"{found.score.relative_error:.1e}",
         *_of_classes(found.score), f"{found.share:.1%}")
        for found in report.places[:WORST]
    ]  # fmt: skip
    more = len(report.places) - len(rows)
    resumed = f", {report.resumed} scores from an earlier run" if report.resumed else ""
    lines = [
        f"{report.model}, recipe {report.recipe.name}, on {report.backend}: each place quantized "
        f"alone, {report.images} images ({report.source}) against {report.reference}{resumed}",
        "",
        columns(header, rows, left=2),
        *([f"and {more} more, each below; all in {report.file}"] if more > 0 else []),
        "",
        _heat_map(report),
        "",
        f"all of the recipe: {_score(report.whole)}",
        f"  its sums in float: {_score(report.in_float)}{_kernels(report)}",
    ]
    if report.budget_score is not None:
        score = report.budget_score
        floats = ", ".join(report.budget_floats) or "nothing"
        lines += [
            f"budget {report.budget} kept: {_score(score)}",
            f"  in float: {floats} ({report.budget_float_share:.0%} of the multiplications)",
            f"  rest-deploy build-engine --recipe {report.budget_recipe}",
        ]
    return "\n".join(lines)


def _kernels(report: SensitivityReport) -> str:
    """Where the kernels, not the layers, are the most of it."""
    if not report.in_float.relative_error * CLEARLY < report.whole.relative_error:
        return ""
    return (
        f"\n  so the kernels of {report.backend} on this CPU are the reason, not a layer: "
        "exact_pairs = true in the recipe"
    )


def _of_classes(score: Score) -> tuple[str, str]:
    """KL and agreement, "-" where the first output is no classes."""
    if score.kl is None or score.agreement is None:
        return "-", "-"
    return f"{score.kl:.1e}", f"{score.agreement:.1%}"


def _score(score: Score) -> str:
    kl, agreement = _of_classes(score)
    return f"relative error {score.relative_error:.1e}, KL {kl}, agreement {agreement}"


def _heat_map(report: SensitivityReport) -> str:
    """Blocks down, roles across; each step of shade is a factor of two."""
    errors = {(found.block, found.role): found.score.relative_error for found in report.places}
    roles = list(dict.fromkeys(role for _, role in errors))
    blocks = sorted({block for block, _ in errors}, key=_depth)
    worst = max(errors.values())
    rows = []
    for block in blocks:
        cells = []
        for role in roles:
            error = errors.get((block, role))
            cells.append("" if error is None else f"{error:.0e} {_shade(error, worst) * 2}")
        rows.append((block, *cells))
    return columns(("heat map", *roles), rows)


def _shade(error: float, worst: float) -> str:
    steps = int(math.log2(worst / error)) if 0 < error <= worst else len(SHADES)
    return SHADES[max(0, len(SHADES) - 1 - steps)]


def _depth(block: str) -> tuple[float, int, str]:
    """Order of the data flow: stem, stage1.0, patch_embed_2, stage2.0, …, stage3.10, …, head."""
    if block == "head":
        return 99.0, 0, block
    numbers = [int(digits) for digits in re.findall(r"\d+", block)]
    if block.startswith("stem"):
        return 0.0, sum(numbers), block
    stage, index = [*numbers, 0, 0][:2]
    return (stage - 0.5 if block.startswith("patch") else stage), index, block
