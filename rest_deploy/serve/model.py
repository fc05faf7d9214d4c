"""The engine that is served: opened, warmed, and compared with the one it is to replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rest_deploy.artifact import data_sha256, sha256_file
from rest_deploy.contracts import Dims
from rest_deploy.errors import ArtifactError, InputError
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.specialize import ShapeLimits
from rest_deploy.serve.protocol import (
    DATATYPE,
    Accepts,
    ModelMetadataResponse,
    TensorMetadata,
    finite,
)
from rest_deploy.serve.settings import Settings

VERSION = "1"
"""Of the model in URLs: it names what is asked and answered, which a new engine file keeps."""

Float32 = npt.NDArray[np.float32]


class ContractError(InputError):
    """An engine that is no replacement for the one that serves."""


class Served:
    """An open engine and what its clients need to know of it. `run` is thread-safe."""

    def __init__(self, session: Session, sha256: str, settings: Settings) -> None:
        metadata = session.metadata
        self.session, self.sha256 = session, sha256
        self.crop = metadata.card.preprocessing.crop
        self.max_batch = settings.max_batch
        self.accepts = Accepts(
            name=settings.name or metadata.card.name,
            version=VERSION,
            input_name=metadata.input_name,
            output_name=metadata.output_name,
            width=metadata.num_classes or metadata.card.architecture.dims[-1],
            labels=metadata.labels if metadata.num_classes else (),
            max_side=settings.max_side,
        )

    @classmethod
    def open(cls, settings: Settings) -> Served:
        """Raises what `Session.open` does."""
        path = Path(settings.engine)
        shapes = 1 if settings.max_batch == 1 else 2
        # Batches have every size up to max_batch: those that are warmed up stay compiled, others
        # run on the dynamic model instead of displacing them.
        limits = ShapeLimits(most=shapes, after=0)
        sha256 = fingerprint(path)
        return cls(Session.open(path, specialize=limits, **settings.options()), sha256, settings)

    @property
    def embeds(self) -> bool:
        """Whether it has no head and answers with embeddings."""
        return self.session.metadata.num_classes == 0

    def run(self, images: Float32, /) -> Float32:
        return self.session.run(images)

    def warm(self) -> None:
        """Make it ready for one image and for a full batch of the size it was trained for.

        Raises `ArtifactError` when its answer is not what it says of itself, and what `run` does.
        """
        shapes: list[Dims] = [
            (batch, 3, self.crop, self.crop) for batch in dict.fromkeys((1, self.max_batch))
        ]
        self.session.warm_up(shapes)
        for shape in shapes:
            answer = self.run(np.zeros(shape, np.float32))
            expected = (shape[0], self.accepts.width)
            if answer.shape != expected or not finite(answer):
                raise ArtifactError(
                    f"{self.session.path} answers {shape} with {answer.shape}, "
                    f"{'finite' if finite(answer) else 'not finite'}; expected {expected}, finite",
                    hint="rest-deploy verify shows where it departs from the reference",
                )

    def contract(self) -> dict[str, str]:
        """What clients rely on, field by field."""
        accepts, card = self.accepts, self.session.metadata.card
        return {
            "input": accepts.input_name,
            "output": f"{accepts.output_name} of {accepts.width}",
            "labels": "\n".join(accepts.labels),
            "preprocessing": str(card.preprocessing),
        }

    def metadata(self) -> ModelMetadataResponse:
        accepts, build = self.accepts, self.session.sidecar and self.session.sidecar.build
        return ModelMetadataResponse(
            name=accepts.name,
            versions=[accepts.version],
            platform=self.session.runner.backend,
            inputs=[TensorMetadata(accepts.input_name, DATATYPE, [-1, 3, -1, -1])],
            outputs=[TensorMetadata(accepts.output_name, DATATYPE, [-1, accepts.width])],
            parameters={
                "sha256": self.sha256,
                "variant": self.session.metadata.variant,
                "precision": build.precision if build else "fp32",
                "weights": self.session.metadata.weights.kind,
                "max_batch": self.max_batch,
                "size": self.crop,
            },
        )

    def close(self) -> None:
        self.session.close()


def check_contract(old: Mapping[str, str], new: Mapping[str, str], accept: Sequence[str]) -> None:
    """Raise `ContractError` for a field of the contract that changes and is not in `accept`."""
    changed = [name for name in old if old[name] != new[name] and name not in accept]
    if changed:
        told = "; ".join(f"{name}: {_first(old[name])} -> {_first(new[name])}" for name in changed)
        raise ContractError(
            f"the new engine differs in what clients rely on: {told}",
            hint=f'a load request with {{"parameters": {{"accept": "{",".join(changed)}"}}}} '
            "takes it all the same",
        )


def _first(text: str) -> str:
    return text.replace("\n", ", ")[:80]


def fingerprint(path: Path) -> str:
    """Of the file, with the weights beside it where there are some. Raises `ArtifactError`."""
    try:
        return sha256_file(path) + data_sha256(path)
    except OSError as error:
        raise ArtifactError(f"cannot read the engine {path}: {error.strerror}") from error
