"""A model repository as plain text."""

from __future__ import annotations

from rest_deploy.serve.triton import Checked, Repository


def written(found: Repository) -> str:
    lines = [
        f"{found.root}: {', '.join(found.models)}",
        f"engine: {found.engine}, {found.backend} backend",
        f"config.pbtxt: checked against the ModelConfig of {found.schema}"
        if found.schema
        else f"config.pbtxt: not checked against Triton's schema: {found.unchecked}",
        f"takes: {found.input_name}, {found.takes}, by {found.name}"
        + (f"; encoded images by {found.whole}" if found.whole else ""),
        *(f"warning: {warning}" for warning in found.warnings),
        "",
        f"rest-deploy triton-check {found.root}",
        f"tritonserver --model-repository={found.root} --disable-auto-complete-config",
    ]
    return "\n".join(lines)


def checked(found: Checked) -> str:
    lines = [f"{found.root}: {', '.join(found.models)}", f"schema: {found.schema}"]
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"problem: {problem}" for problem in found.problems]
    count = len(found.problems)
    lines.append("PASS" if found.passed else f"FAIL: {count} problem{'s' * (count != 1)}")
    return "\n".join(lines)
