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
from collections.abc import Mapping
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

SAME = 1e-6
"""What a compiled form may differ by from the compilation that it was saved from: nothing does."""

COMPILED = "the same file compiled here"

KEPT = 64
"""Passes remembered beside one file: more than the compile cache has blobs."""


@dataclass(frozen=True)
class Check:
    """Of one output: relative L2 error over the probes, against whose answers, and what it may
    be."""

    name: str
    against: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


class Remembered(Struct, frozen=True):
    """A self-test that was passed. site: for the reader; the key decides. answers: of the engine,
    as `Expected.values`."""

    key: str
    site: Site
    answers: dict[str, str]


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
        told = [self._told(key) for key in self._keys()]
        known = next((one for one in told if one is not None), None)
        if known is None:
            answers = self.run()
            self.pass_or_raise(self.checks(answers))
            self.keep(answers)
        elif None in told:  # the file passed here before; this is a new compiled form of it
            self._write(known.answers)

    def run(self) -> dict[str, Float32]:
        """One call of the engine for each probe: every output (probes, channels). Raises
        `ArtifactError` where the probes are damaged."""
        try:
            probes = pixels_of(self.selftest)
        except (ValueError, ImageError) as damage:
            raise self._damaged(damage) from damage
        answers = [self._answer(probe) for probe in probes]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def checks(self, answers: Mapping[str, Float32]) -> tuple[Check, ...]:
        """Against the reference; of a compiled form on disk also against the file's own answers
        here, where it has been asked: those come again bit by bit, and many a damage to INT8
        weights is far smaller than the gate's bound. Raises `ArtifactError`."""
        found = []
        file = self._told(key_of(self.path, self.here, "")) if self._from_blob else None
        try:
            for one in self.selftest.expected:
                far = error(values_of(one.values, one.channels), answers[one.name])
                found.append(Check(one.name, self.selftest.reference, far, self._bound(one)))
            for name, text in file.answers.items() if file else ():
                far = error(values_of(text, answers[name].shape[1]), answers[name])
                found.append(Check(name, COMPILED, far, SAME))
        except (ValueError, KeyError) as damage:
            raise self._damaged(damage) from damage
        return tuple(found)

    def pass_or_raise(self, checks: tuple[Check, ...]) -> None:
        """Raises `SelfTestError`."""
        failed = [check for check in checks if not check.passed]
        if failed:
            worst = max(failed, key=lambda check: check.error / check.bound)
            cause, first = self._cause(worst)
            raise SelfTestError(
                f"{self.path} does not answer here as it must: {cause}: {worst.name} against "
                f"{worst.against}: error {worst.error:.2g}, bound {worst.bound:.2g}",
                hint=first + self._hint(),
            )

    def keep(self, answers: Mapping[str, Float32]) -> None:
        """Remember that it passed, and how it answered. A folder that cannot be written costs a
        test at each start."""
        self._write({name: text_of(values) for name, values in answers.items()})

    def _write(self, answers: dict[str, str]) -> None:
        for key in self._keys():
            if self._told(key) is not None:
                continue
            told = Remembered(key=key, site=self.here, answers=answers)
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

    def _damaged(self, why: Exception) -> ArtifactError:
        return ArtifactError(
            f"the self-test in the sidecar of {self.path} is damaged: {why}", hint=self._hint()
        )

    def _hint(self) -> str:
        return f"build it on this machine: {self.sidecar.command}; {ANYWAY}"

    def _cause(self, failed: Check) -> tuple[str, str]:
        """In words, and what to try before it is built again."""
        built, here = self.build.site, self.here
        blob = f"its compiled form in {default_cache(self.path)}"
        delete = f"delete {default_cache(self.path)}, or "
        if failed.against == COMPILED:
            return f"{blob} was changed", delete
        if built is None:
            return f"this is {here.words()}, {here.runtime()}", ""
        gate = "" if self.build.gate is not None else " without the accuracy gate"
        if (built.features, built.gpu) != (here.features, here.gpu):
            this = "this is" if here.gpu else "this CPU has"
            return f"built on {built.words()}{gate}; {this} {here.words()}{self._reason()}", ""
        if built.runtime() != here.runtime():
            return f"built with {built.runtime()}{gate}; here is {here.runtime()}", ""
        if gate:
            return f"built{gate}; this is {here.words()}", ""
        if self._from_blob:
            return f"{blob} may be damaged", delete
        return f"built on {built.words()} with {built.runtime()}, as here: it is damaged", ""

    def _reason(self) -> str:
        """Why other instructions may answer otherwise, where that is known."""
        built, here, reason = self.build.site, self.here, ""
        was_exact = built is not None and machine.adds_bytes_exactly(built.features)
        if self.build.precision == "int8" and was_exact and not here.gpu:
            exact = machine.adds_bytes_exactly(here.features)
            reason = "" if exact else ", where 8-bit sums saturate"
        held = machine.cap() if here.backend.startswith("openvino") else ""
        return f"{reason} ({held})" if held else reason

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

    def _told(self, key: str) -> Remembered | None:
        """What cannot be read is no pass: the test is run again."""
        try:
            told = msgspec.json.decode(self._memory(key).read_bytes(), type=Remembered)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeError) as refused:
            log.warning("%s is not read: %s", self._memory(key), refused)
            return None
        return told if told.key == key else None

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


def values_of(text: str, channels: int) -> Float32:
    """Of `Expected.values`: (probes, channels). Raises ValueError."""
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(-1, channels)


def text_of(values: Float32) -> str:
    """(probes, channels) as `Expected.values`."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


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
