"""The accuracy gate of a build: the graph first, then the engine where a GPU is here to run it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from rest_deploy.contracts import (
    Dims,
    EngineFit,
    GateBounds,
    GateResult,
    ModelCard,
    ModelMetadata,
    Precision,
    Profile,
    Sums,
)
from rest_deploy.errors import RestDeployError, ShapeError
from rest_deploy.proofs import may_saturate
from rest_deploy.runtime import loading
from rest_deploy.runtime.cuda import open_cuda
from rest_deploy.runtime.session import Float32, Session
from rest_deploy.runtime.tensorrt import GpuOptions, TensorRtRunner
from rest_deploy.signature import Output
from rest_deploy.verbs import saturation
from rest_deploy.verbs.gate import GateData, float32_errors, reference_answers
from rest_deploy.verbs.make import Made, Request
from rest_deploy.verify import gate

ITSELF = "the engine itself, on the GPU here"
"""What the gate looked at."""


def _worst(result: GateResult) -> float:
    """Largest relative error of an output."""
    return max(check.value for check in result.checks if check.name.startswith("relative "))


@dataclass(frozen=True)
class Judge:
    """Real images and the reference's answers to them, for one build.

    ranges and weights: of the graph, see `gate.judge`; they hold for the engine made from it.
    """

    source: Session
    data: GateData
    request: Request
    reference: dict[str, npt.NDArray[np.floating]]
    reference_name: str
    ranges: dict[str, float]
    weights: dict[str, float] | None

    @classmethod
    def of(
        cls, source: Session, data: GateData, request: Request, made: Made, graph: Path, proof: Path
    ) -> Judge:
        """graph: what is published or built from; proof: the one whose answers are compared."""
        expected, name = reference_answers(source, data.images, request.checkpoint)
        return cls(
            source=source,
            data=data,
            request=request,
            reference=expected,
            reference_name=name,
            ranges=gate.range_use(proof, data.images[: gate.RANGE_IMAGES]),
            weights=None if made.original is None else gate.weight_errors(graph, made.original),
        )

    def graph(self, graph: Path, proof: Path, infer: gate.Infer | None = None) -> GateResult:
        """infer: of the provider that is built for; None: `proof` on ONNX Runtime's CPU."""
        if infer is None:
            metadata = self.source.metadata if proof != graph else None
            infer = Session.open(proof, metadata=metadata).run_normalized
        return self._judged(gate.answers(infer, self.data.images, self._outputs))

    def one_shape(self, result: GateResult, infer: gate.Infer, batch: int) -> GateResult:
        """`result` with a check of what a session compiles for one shape, which computes some
        sums in another order. infer: of `batch` images of the gate's size."""
        whole = len(self.data.images) // batch * batch
        found = gate.answers(infer, self.data.images[:whole], self._outputs, batch)
        fresh = self.source.metadata.weights.kind == "fresh"
        checks = [
            gate.error_check(
                output, self.reference[output.name][: len(found[output.name])],
                found[output.name], self._bounds(), fresh=fresh, float32=self._float32,
            )
            for output in self._outputs
        ]  # fmt: skip
        named = (msgspec.structs.replace(c, name=f"{c.name}, one shape compiled") for c in checks)
        return msgspec.structs.replace(result, checks=(*result.checks, *named))

    def because_of_the_cpu(
        self, result: GateResult, graph: Path, sums: tuple[Sums, ...], backend: str
    ) -> str:
        """The words, where `result` is worse than the sums of `graph` in float and this CPU can be
        the reason; else ""."""
        possible = may_saturate(sums, backend)
        if self.request.precision != "int8" or not possible:
            return ""
        control = self.graph(graph, graph, saturation.in_float(graph, self.source.metadata))
        if not control.passed:
            return ""
        return saturation.cause(possible, _worst(result), _worst(control))

    def engine(self, session: Session) -> GateResult:
        """On the GPU. Raises `ShapeError` when no profile holds images of the gate's size."""
        return self._judged(answers_of(session, self.data.images))

    @property
    def _outputs(self) -> tuple[Output, ...]:
        return self.source.metadata.gives

    def _judged(self, actual: dict[str, npt.NDArray[np.floating]]) -> GateResult:
        return gate.judge(
            self._outputs,
            self.reference,
            actual,
            self._bounds(),
            fresh=self.source.metadata.weights.kind == "fresh",
            ranges=self.ranges,
            weights=self.weights,
            labels=self.data.labels,
            reference_name=self.reference_name,
            source=self.data.source,
            float32=self._float32,
        )

    @property
    def _float32(self) -> gate.Float32Errors | None:
        """Only where no precision is given up: the gate of another has room for float32's error."""
        return (lambda: self._float32_errors) if self.request.precision == "fp32" else None

    @cached_property
    def _float32_errors(self) -> dict[str, float]:
        return float32_errors(
            self.source, self.data.images, self.request.checkpoint, self.reference
        )

    def _bounds(self) -> GateBounds:
        return bounds_for(self.source.metadata.card, self.request.precision)


def bounds_for(card: ModelCard, precision: Precision) -> GateBounds:
    """What an engine of that precision is held to."""
    if precision != "fp32":
        return card.gate.of(precision)
    # No precision is given up: the bounds of an export.
    return msgspec.structs.replace(
        card.gate.fp16,
        relative_error=card.parity.relative_error,
        relative_error_fresh=card.parity.relative_error_fresh,
    )


def on_gpu(
    engine: bytes, fit: EngineFit, staged: Path, metadata: ModelMetadata, judge: Judge
) -> GateResult | str:
    """The gate's word on the engine itself, or why it cannot be run on this machine.

    staged: where it is now. Raises `DeviceError` when it could be run and the GPU refuses.
    """
    opened = on_this_gpu(engine, fit, staged, metadata)
    if isinstance(opened, str):
        return opened
    with opened as session:
        try:
            return judge.engine(session)
        except ShapeError as error:
            return error.message


def on_this_gpu(
    engine: bytes, fit: EngineFit, staged: Path, metadata: ModelMetadata
) -> Session | str:
    """The engine opened, or why it cannot be run on this machine. Raises `DeviceError`."""
    if "strip-weights" in fit.options:
        return "it has no weights until it is refitted"
    try:
        loading.check_fit(staged, fit, loading.examine(), "")
        cuda = open_cuda()
    except RestDeployError as error:
        return error.message.replace(str(staged), "it")
    options = GpuOptions(graphs=0)  # every batch once: nothing to capture for
    return Session(TensorRtRunner(engine, fit.flavour, cuda, options), metadata, staged, None)


def answers_of(session: Session, images: Float32) -> dict[str, npt.NDArray[np.floating]]:
    """images: (N, 3, H, W), normalized -> every output, see `gate.answers`, in batches that an
    engine's profiles hold.

    Raises `ShapeError` when no profile holds images of that size.
    """
    outputs = session.metadata.gives
    if not isinstance(session.runner, TensorRtRunner):
        return gate.answers(session.run_normalized, images, outputs)
    least, most = batches_at(session.runner.profiles, images.shape[2:])

    def padded(part: Float32) -> dict[str, Float32]:
        padding = np.repeat(part[-1:], max(0, least - len(part)), axis=0)
        found = session.run_normalized(np.concatenate([part, padding]))
        return {name: answer[: len(part)] for name, answer in found.items()}

    return gate.answers(padded, images, outputs, max(least, min(most, gate.BATCH)))


def batches_at(profiles: tuple[Profile, ...], size: tuple[int, ...]) -> tuple[int, int]:
    """Smallest and largest batch at (height, width), of the profile that takes the largest.

    Raises `ShapeError` when none holds that size.
    """
    height, width = size
    found = [
        (profile.maximum[0], profile.minimum[0])
        for profile in profiles
        if profile.holds(_at(profile, height, width))
    ]
    if not found:
        raise ShapeError(f"no profile of the engine holds images of {height}x{width}")
    most, least = max(found)
    return least, most


def _at(profile: Profile, height: int, width: int) -> Dims:
    return (profile.maximum[0], 3, height, width)
