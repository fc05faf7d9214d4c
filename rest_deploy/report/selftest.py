"""A self-test in words."""

from __future__ import annotations

from rest_deploy.contracts import Build
from rest_deploy.selftest import Site
from rest_deploy.verbs.selftest import SelfTestReport


def tested(report: SelfTestReport) -> str:
    """What `rest-deploy selftest` found."""
    lines = [f"{report.file}: {'passed' if report.passed else 'FAILED'}",
             f"  {'output':<14} {'error':>8} {'bound':>8} {'at build':>8}  against"]  # fmt: skip
    for row in report.rows:
        at_build = "" if row.built is None else f"{row.built:.2g}"
        verdict = "" if row.passed else "  FAILED"
        lines.append(
            f"  {row.name:<14} {row.error:>8.2g} {row.bound:>8.2g} {at_build:>8}  "
            f"{row.against}{verdict}"
        )
    lines.append(f"  built on  {_site(report.built)}")
    lines.append(f"  here      {_site(report.here)}")
    if report.why:
        lines += [report.why, f"  {report.mend}"]
    return "\n".join(lines)


def line(build: Build) -> str:
    """For `inspect`: how close to whose answers, and where it was so."""
    if build.selftest is None:
        return "none: it is of an older rest-deploy, or answered NaN where it was built"
    bounds = ", ".join(f"{one.name} within {one.bound:.2g}" for one in build.selftest.expected)
    return f"{bounds} of {build.selftest.reference}; built on {_site(build.site)}"


def _site(site: Site | None) -> str:
    if site is None:
        return "a machine that nobody wrote down"
    runtime = f"{site.backend.partition('/')[0]} {site.version.partition('-')[0]}"
    if site.gpu:
        return f"a GPU of compute capability {site.gpu}, CUDA {site.driver}, {runtime}"
    return f"{site.cpu}, {site.words()}, {runtime}"
