"""TensorRT engines as plain text."""

from __future__ import annotations

import textwrap

from rest_deploy.contracts import EngineFit, ProviderFit
from rest_deploy.engine.planner import Serving, describe_left_out
from rest_deploy.engine.profiles import describe as describe_profile
from rest_deploy.verbs import DeployReport, EnginePlan, RefitReport


def fit_lines(fit: EngineFit) -> list[str]:
    """Where an engine runs, for which shapes, at what cost."""
    sms = f", compute capability {', '.join(fit.sms)}" if fit.sms else ""
    options = "".join(f", --{name} {value}" for name, value in fit.options.items())
    return [
        f"runs on: {fit.flavour} {fit.version}{sms}{options}",
        *(f"profile {index}: {describe_profile(profile)}"
          for index, profile in enumerate(fit.profiles)),
        f"scratch memory of one context: {fit.scratch_bytes / 1e6:.0f} MB; {fit.layers} layers, "
        f"built in {fit.build_seconds:.1f} s, log: {fit.log}",
    ]  # fmt: skip


def provider_lines(fit: ProviderFit) -> list[str]:
    """What one of ONNX Runtime's providers ran, and for which shapes it compiles."""
    nodes = ", ".join(f"{count} on {name}" for name, count in fit.nodes.items())
    return [
        f"ran on: onnxruntime {fit.version}, nodes: {nodes}",
        *(f"profile {index}: {describe_profile(profile)}"
          for index, profile in enumerate(fit.profiles)),
        *([f"cache: {fit.cache}"] if fit.cache else []),
    ]  # fmt: skip


def engine_plan(plan: EnginePlan) -> str:
    rest = f", what is not quantized in {plan.rest}" if plan.rest else ""
    sms = f", compute capability {', '.join(plan.sms)}" if plan.sms else ""
    options = "".join(f", --{name} {value}" for name, value in plan.options.items())
    there = " (something of that name is there; it is reused if nothing else changed)"
    return "\n".join([
        f"would build {plan.path}{there if plan.exists else ''}",
        f"from: {plan.source}",
        f"precision: {plan.precision}{rest}",
        f"runs on: {plan.backend} {plan.version}{sms}{options}",
        *(
            f"profile {index}: {describe_profile(profile)}; about {size / 1e6:.0f} MB of scratch"
            f"{_serves(plan.serving, index)}"
            for index, (profile, size) in enumerate(
                zip(plan.profiles, plan.scratch_bytes, strict=True)
            )
        ),
        *_requests(plan.serving),
    ])  # fmt: skip


def refitted(report: RefitReport) -> str:
    build, weights = report.build, report.metadata.weights
    lines = [
        f"{report.path}: {build.precision} for {build.backend}, {report.size_bytes / 1e6:.1f} MB, "
        f"{report.seconds:.1f} s",
        f"weights: {report.state_before[:12]} -> {report.state_after[:12]} ({weights.path})",
    ]
    if build.gate is not None:
        checks = "; ".join(f"{check.name} {check.value:.3g}" for check in build.gate.checks)
        lines.append(f"gate: passed on {build.gate.source} (of {build.gated}): {checks}")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in report.warnings)])


def _serves(serving: Serving | None, index: int) -> str:
    return f"; serves {serving.shares[index]:.2%}" if serving else ""


def _requests(serving: Serving | None) -> list[str]:
    if serving is None:
        return []
    held = "all held by a profile" if not serving.left_out else describe_left_out(serving)
    return [f"requests: {serving.requests} in {serving.shapes} shapes; {held}"]


def deployed(report: DeployReport) -> str:
    lines = [
        f"{report.engine}: {report.precision} for {report.backend}, {report.seconds:.1f} s",
        "",
    ]
    for step in report.steps:
        took = "up to date" if step.reused else f"{step.seconds:.1f} s"
        lines.append(f"  {step.name}: {took}, {step.file}")
        lines.append(f"    {step.summary}; sha256 {step.sha256[:12]}")
    lines += [f"found: {note}" for note in report.notes]
    lines += [f"warning: {warning}" for warning in report.warnings]
    if report.record:
        lines += ["", f"rest-deploy report {report.record}", *textwrap.wrap(report.advice, 100)]
    return "\n".join(lines)
