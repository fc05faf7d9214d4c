"""An engine's self-test on demand: as on its first day here, whatever is remembered."""

from __future__ import annotations

from pathlib import Path

from rest_deploy.artifact import Sidecar
from rest_deploy.contracts import Struct
from rest_deploy.errors import ArtifactError, SelfTestError
from rest_deploy.runtime.arrival import Arrival
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.specialize import NEVER
from rest_deploy.selftest import Site


class SelfTestRow(Struct, frozen=True):
    """Of one output: relative L2 error over the probes, infinite for NaN (null in JSON), against
    whose answers. built: that error where it was built, None where nobody knows."""

    name: str
    against: str
    error: float
    bound: float
    built: float | None
    passed: bool


class SelfTestReport(Struct, frozen=True):
    """What `rest-deploy selftest` did. why: it failed, in words; mend: what helps then."""

    file: str
    passed: bool
    rows: tuple[SelfTestRow, ...]
    built: Site | None
    here: Site
    why: str
    mend: str


def selftest(
    engine: Path,
    *,
    backend: str | None = None,
    provider: str | None = None,
    threads: int | None = None,
) -> SelfTestReport:
    """Forget that it passed here, run the probes, remember it if it passes.

    backend, provider, threads: see `Session.open`, whose errors are raised; also `ArtifactError`
    for a file that carries no self-test.
    """
    with Session.open(
        engine, backend=backend, provider=provider, threads=threads, specialize=NEVER,
        selftest=False,
    ) as session:  # fmt: skip
        arrival = Arrival.of(session.path, session.sidecar, session.runner, threads)
        if arrival is None:
            raise _none(engine, session.sidecar)
        arrival.forget()
        answers = arrival.run()
        checks = arrival.checks(answers)
        why, mend = "", ""
        try:
            arrival.pass_or_raise(checks)
            arrival.keep(answers)
        except SelfTestError as failed:
            why, mend = failed.message, failed.hint or ""
    built = {one.name: one.built for one in arrival.selftest.expected}
    return SelfTestReport(
        file=str(engine),
        passed=not why,
        rows=tuple(
            SelfTestRow(
                name=check.name,
                against=check.against,
                error=check.error,
                bound=check.bound,
                built=built[check.name] if check.against == arrival.selftest.reference else None,
                passed=check.passed,
            )
            for check in checks
        ),
        built=arrival.build.site,
        here=arrival.here,
        why=why,
        mend=mend,
    )


def _none(engine: Path, sidecar: Sidecar | None) -> ArtifactError:
    """Why there is none, and how to get one."""
    if sidecar is None:
        what, mend = "it has no sidecar", "rest-deploy build-engine writes one"
    elif sidecar.build is None:
        what = "it is an export, which was proven against PyTorch"
        mend = f"rest-deploy verify {engine} does that here; rest-deploy build-engine {engine} "
        mend += "--int8 makes an engine, which carries one"
    else:
        what = "it is of an older rest-deploy, or answered NaN where it was built"
        mend = f"build it again: {sidecar.command}"
    return ArtifactError(f"{engine} carries no self-test: {what}", hint=mend)
