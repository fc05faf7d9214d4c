"""The engine that is served: opened, warmed, and compared with the one it is to replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rest_deploy.artifact import data_sha256, sha256_file
from rest_deploy.contracts import Dims
from rest_deploy.errors import ArtifactError, InputError
from rest_deploy.layout import layout_of
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.specialize import ShapeLimits
from rest_deploy.serve.accepts import DATATYPE, Accepts, shape_of
from rest_deploy.serve.protocol import ModelMetadataResponse, TensorMetadata, finite
from rest_deploy.serve.settings import Settings
from rest_deploy.signature import SCORES, Output

VERSION = "1"
"""Of the model in URLs: it names what is asked and answered, which a new engine file keeps."""

Float32 = npt.NDArray[np.float32]
Images = npt.NDArray[np.generic]


class ContractError(InputError):
    """An engine that is no replacement for the one that serves."""


class Served:
    """An open engine and what its clients need to know of it. `run_all` is thread-safe."""

    def __init__(self, session: Session, sha256: str, settings: Settings) -> None:
        metadata = session.metadata
        self.session, self.sha256 = session, sha256
        self.crop = metadata.card.preprocessing.crop
        self.max_batch = settings.max_batch
        self.accepts = Accepts(
            name=settings.name or metadata.card.name,
            version=VERSION,
            input_name=metadata.input_name,
            outputs=metadata.gives,
            labels=metadata.labels,
            max_side=settings.max_side,
            input_kind=metadata.input_kind,
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

    def run_all(self, images: Images, /) -> dict[str, Float32]:
        return self.session.run_all(images)

    def warm(self) -> None:
        """Make it ready for one image and for a full batch of the size it was trained for.

        Raises `ArtifactError` when its answer is not what it says of itself, and what `run` does.
        """
        shapes: list[Dims] = [
            (batch, 3, self.crop, self.crop) for batch in dict.fromkeys((1, self.max_batch))
        ]
        self.session.warm_up(shapes)
        layout = layout_of(self.accepts.input_kind)
        for shape in shapes:
            answers = self.run_all(np.zeros(layout.shape(shape), layout.dtype))
            for output in self.accepts.outputs:
                answer, expected = answers[output.name], shape_of(output, shape)
                if answer.shape != expected or not finite(answer):
                    raise ArtifactError(
                        f"{self.session.path} answers {shape} with {output.name} of "
                        f"{answer.shape}, {'finite' if finite(answer) else 'not finite'}; expected "
                        f"{expected}, finite",
                        hint="rest-deploy verify shows where it departs from the reference",
                    )

    def contract(self) -> dict[str, str]:
        """What clients rely on, field by field."""
        accepts, card = self.accepts, self.session.metadata.card
        return {
            "input": f"{accepts.input_name}, {accepts.datatype}",
            "output": ", ".join(map(_words, accepts.outputs)),
            "labels": "\n".join(accepts.labels),
            "preprocessing": str(card.preprocessing),
        }

    def metadata(self) -> ModelMetadataResponse:
        accepts, build = self.accepts, self.session.sidecar and self.session.sidecar.build
        return ModelMetadataResponse(
            name=accepts.name,
            versions=[accepts.version],
            platform=self.session.runner.backend,
            inputs=[TensorMetadata(accepts.input_name, accepts.datatype, accepts.input_shape())],
            outputs=[
                TensorMetadata(output.name, DATATYPE, accepts.output_shape(output))
                for output in accepts.outputs
            ],
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


def _words(output: Output) -> str:
    kind = f" ({output.kind})" if output.kind != output.name and output.kind in SCORES else ""
    stride = f" every {output.stride} pixels" if output.stride else ""
    return f"{output.name}{kind} of {output.channels}{stride}{', unit' * output.unit_length}"


def _first(text: str) -> str:
    return text.replace("\n", ", ")[:80]


def fingerprint(path: Path) -> str:
    """Of the file, with the weights beside it where there are some. Raises `ArtifactError`."""
    try:
        return sha256_file(path) + data_sha256(path)
    except OSError as error:
        raise ArtifactError(f"cannot read the engine {path}: {error.strerror}") from error
