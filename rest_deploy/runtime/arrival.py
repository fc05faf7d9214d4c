"""Does this engine answer here as it did where it was built? Asked once on every kind of machine.

A file that passed its gate elsewhere can be wrong here without a word: u8 x s8 products that
saturate on a CPU without VNNI, float layers in bf16, another version of the runtime, a compiled
form that was damaged and sealed again. So an engine carries two images and the reference's answers,
and runs them where it has not been seen before. The dynamic model is asked: a compilation for one
shape has the same kernels, and the gate held both to one bound.

A pass is remembered in FILE.cache/selftest-KEY.json, KEY being the first 16 digits of a key that
the C++ runtime computes too (cpp/src/selftest.cpp): the SHA-256 of these lines, joined by "\\n":

    sha256 of the sidecar, which holds that of the file
    backend; version; cpu; features, joined by a space; gpu; driver; threads: the fields of `Site`
    blob: digest of the compiled form on disk, empty where the file itself was compiled
"""

from __future__ import annotations

import base64
import hashlib
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from rest_deploy import machine
from rest_deploy.artifact import Sidecar, sidecar_path, to_json, write_text
from rest_deploy.contracts import Build, ModelMetadata, Runner, Struct
from rest_deploy.engine.openvino import OpenVinoRunner
from rest_deploy.errors import ArtifactError, ImageError, OutputError, SelfTestError
from rest_deploy.preprocess import load_image, normalize
from rest_deploy.runtime.provider import default_cache
from rest_deploy.runtime.site import site
from rest_deploy.runtime.specialize import SpecializingRunner
from rest_deploy.selftest import Expected, SelfTest, Site
from rest_deploy.signature import Output

log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]

ANYWAY = "--no-selftest, Session.open(..., selftest=False), loads it all the same"

ROOM = 1.25
"""How much worse than measured at its build an engine may be where that, not the gate, counts."""

KEPT = 16
"""Passes remembered beside one file: as many as the compile cache has blobs."""


class Check(Struct, frozen=True):
    """Of one output: relative L2 error over the probes, what it may be, and what it was where the
    engine was built."""

    name: str
    error: float
    bound: float
    built: float | None

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


class Remembered(Struct, frozen=True):
    """A self-test that was passed. site and checks: for the reader; the key decides."""

    key: str
    site: Site
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Arrival:
    """An open engine that carries a self-test, and where it is now."""

    path: Path
    sidecar: Sidecar
    build: Build
    selftest: SelfTest
    runner: Runner
    here: Site

    @classmethod
    def of(
        cls, path: Path, sidecar: Sidecar | None, runner: Runner, threads: int | None
    ) -> Arrival | None:
        """None for a file that carries none: an export, or an engine from before there were any.

        threads: of one call, None for all cores.
        """
        build = sidecar.build if sidecar else None
        if sidecar is None or build is None or build.selftest is None:
            return None
        if isinstance(runner, SpecializingRunner):
            runner = runner.dynamic
        here = site(runner.backend, threads)
        return cls(path, sidecar, build, build.selftest, runner, here)

    def ensure(self) -> None:
        """Run the self-test unless it was passed here before. Raises `SelfTestError`, and
        `ArtifactError` for one that is damaged."""
        keys = self._keys()
        known = [key for key in keys if self._remembered(key)]
        if not known:
            self.keep(self.passed(self.run()))
        elif len(known) < len(keys):  # the file was known, its new compiled form is not
            self.keep(())

    def run(self) -> tuple[Check, ...]:
        """One call of the engine for each probe. Raises `ArtifactError` where they are damaged."""
        try:
            probes = pixels_of(self.selftest)
            expected = {one.name: values_of(one) for one in self.selftest.expected}
        except (ValueError, ImageError) as damage:
            raise ArtifactError(
                f"the self-test in the sidecar of {self.path} is damaged: {damage}",
                hint=self.hint(),
            ) from damage
        answers = [self._answer(probe) for probe in probes]
        return tuple(
            Check(
                name=one.name,
                error=error(
                    expected[one.name], np.concatenate([answer[one.name] for answer in answers])
                ),
                bound=self._bound(one),
                built=one.built,
            )
            for one in self.selftest.expected
        )

    def passed(self, checks: tuple[Check, ...]) -> tuple[Check, ...]:
        """The checks, all of them passed. Raises `SelfTestError`."""
        if not all(check.passed for check in checks):
            raise SelfTestError(self.refusal(checks), hint=self.hint())
        return checks

    def keep(self, checks: tuple[Check, ...]) -> None:
        """Remember that it passed. A folder that cannot be written costs a test at each start."""
        for key in self._keys():
            if self._remembered(key):
                continue
            told = Remembered(key=key, site=self.here, checks=checks)
            try:
                write_text(self._memory(key), to_json(told))
            except OutputError as refused:
                log.warning("the self-test is run again at every start: %s", refused.message)
                return
        self._prune()

    def forget(self) -> None:
        """As if it had not been here before. Raises `OutputError`."""
        for key in self._keys():
            try:
                self._memory(key).unlink(missing_ok=True)
            except OSError as refused:
                raise OutputError(
                    f"cannot delete {self._memory(key)}: {refused.strerror}"
                ) from refused

    def refusal(self, checks: tuple[Check, ...]) -> str:
        """Why it is not loaded: the likely cause, and what was measured."""
        worst = max(checks, key=lambda check: check.error / check.bound)
        built = "" if worst.built is None else f", {worst.built:.2g} where it was built"
        return (
            f"{self.path} does not answer here as it must: {self._cause()}: error "
            f"{worst.error:.2g} of {worst.name}, bound {worst.bound:.2g}{built}"
        )

    def hint(self) -> str:
        """What mends it."""
        damaged = f"delete {default_cache(self.path)}, or " if self._from_blob else ""
        return f"{damaged}build it on this machine: {self.sidecar.command}; {ANYWAY}"

    def at_home(self) -> bool:
        """Whether this is the machine where it was built, with any number of threads."""
        built = self.build.site
        return built is not None and built == msgspec.structs.replace(
            self.here, threads=built.threads
        )

    def _bound(self, one: Expected) -> float:
        """Who built an engine without the gate knows it, and may load it there."""
        if self.build.gate is None and one.built is not None and self.at_home():
            return max(one.bound, ROOM * one.built)
        return one.bound

    def _cause(self) -> str:
        built, here = self.build.site, self.here
        if built is None:
            return f"this is {here.words()}, {here.runtime()}"
        on = here.words()
        exact = [machine.adds_bytes_exactly(one.features) for one in (built, here)]
        if self.build.precision == "int8" and not here.gpu and not exact[1]:
            on += ", where 8-bit sums saturate"
        held = machine.cap() if here.backend.startswith("openvino") else ""
        on += f" ({held})" if held else ""
        gate = "" if self.build.gate is not None else ", without the accuracy gate"
        if (built.features, built.gpu) != (here.features, here.gpu):
            this = "this is" if here.gpu else "this CPU has"
            return f"built on {built.words()}{gate}; {this} {on}"
        if built.runtime() != here.runtime():
            return f"built with {built.runtime()}{gate}; here is {here.runtime()}"
        if gate:
            return f"built{gate}; this is {on}"
        if self._from_blob:
            return f"its compiled form in {default_cache(self.path)} is not what it was built as"
        return f"built on {built.words()} with {built.runtime()}, as here: one of them is damaged"

    @property
    def _from_blob(self) -> bool:
        return isinstance(self.runner, OpenVinoRunner) and self.runner.from_cache

    def _keys(self) -> list[str]:
        """What a pass proves: the compiled form on disk, and the file, if it was compiled now."""
        blob = self.runner.blob if isinstance(self.runner, OpenVinoRunner) else ""
        blobs = [blob] if self._from_blob or not blob else ["", blob]
        return [key_of(self.path, self.here, one) for one in blobs]

    def _memory(self, key: str) -> Path:
        return default_cache(self.path) / f"selftest-{key[:16]}.json"

    def _remembered(self, key: str) -> bool:
        """What cannot be read is no pass: the test is run again."""
        try:
            told = msgspec.json.decode(self._memory(key).read_bytes(), type=Remembered)
        except FileNotFoundError:
            return False
        except (OSError, msgspec.DecodeError, UnicodeError) as refused:
            log.warning("%s is not read: %s", self._memory(key), refused)
            return False
        return told.key == key

    def _prune(self) -> None:
        """Passes of files that are no more, and of machines that did not come back."""
        folder = default_cache(self.path)
        try:
            found = sorted(folder.glob("selftest-*.json"), key=lambda one: one.stat().st_mtime_ns)
            for old in found[:-KEPT]:
                old.unlink(missing_ok=True)
        except OSError as refused:  # another process prunes too
            log.debug("%s is not pruned: %s", folder, refused)

    def _answer(self, pixels: npt.NDArray[np.uint8]) -> dict[str, Float32]:
        """pixels: (H, W, 3) -> every output (1, channels)."""
        metadata, spec = self.sidecar.metadata, self.runner.inputs[0]
        image = as_input(pixels, metadata)
        batch = np.repeat(image[None], self.selftest.batch, axis=0)
        found = self.runner.infer({spec.name: np.ascontiguousarray(batch, dtype=spec.dtype)})
        return {one.name: digest(one, found[one.name][:1]) for one in metadata.gives}


def values_of(expected: Expected) -> Float32:
    """(probes, channels)"""
    return np.frombuffer(base64.b64decode(expected.values), "<f4").reshape(-1, expected.channels)


def pixels_of(selftest: SelfTest) -> list[npt.NDArray[np.uint8]]:
    """The probes, each (H, W, 3), RGB."""
    return [np.asarray(load_image(base64.b64decode(probe))) for probe in selftest.probes]


def as_input(pixels: npt.NDArray[np.uint8], metadata: ModelMetadata) -> npt.NDArray[np.generic]:
    """(H, W, 3) -> what the model takes, without a batch."""
    if metadata.input_kind == "uint8":
        return pixels
    return normalize(pixels, metadata.card.preprocessing)


def digest(output: Output, values: npt.NDArray[np.generic]) -> Float32:
    """(N, channels) as it is, (N, channels, H, W) -> mean of each channel. float32."""
    if not output.stride:
        return values.astype(np.float32)
    return np.asarray(values.astype(np.float64).mean(axis=(2, 3)), np.float32)


def error(expected: Float32, actual: Float32) -> float:
    """||actual - expected|| / ||expected||, over all probes; infinite for NaN."""
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return math.inf
    wanted = expected.astype(np.float64)
    return float(np.linalg.norm(actual - wanted) / np.linalg.norm(wanted))


def key_of(path: Path, here: Site, blob: str) -> str:
    """See the module's words."""
    lines = [hashlib.sha256(sidecar_path(path).read_bytes()).hexdigest()]
    lines += [here.backend, here.version, here.cpu, " ".join(here.features), here.gpu, here.driver]
    return hashlib.sha256("\n".join([*lines, here.threads, blob]).encode()).hexdigest()
