"""TensorRT engines as plain text."""

from __future__ import annotations

from rest_deploy.contracts import EngineFit
from rest_deploy.engine.profiles import describe as describe_profile


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
