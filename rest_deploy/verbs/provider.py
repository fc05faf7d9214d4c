"""An engine for one of ONNX Runtime's providers: what was wished, what is allowed, what it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rest_deploy.artifact import sha256_file
from rest_deploy.contracts import ModelMetadata, Precision, Preprocessing, Profile, ProviderFit
from rest_deploy.engine import placement, providers
from rest_deploy.engine.backends import BackendName, Choice, choose
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.engine.onnxruntime import placement as run_once
from rest_deploy.engine.onnxruntime_session import check_provider, may_run, version
from rest_deploy.engine.profiles import profiles_from
from rest_deploy.engine.providers import Provider, ProviderOptions
from rest_deploy.errors import BuildError, InputError
from rest_deploy.runtime.provider import cache_folder, default_cache
from rest_deploy.runtime.session import Float32, Session
from rest_deploy.verbs.engine import NO_WISHES, Wishes
from rest_deploy.verbs.make import Kinds, Made, Request
from rest_deploy.verify.gate import BATCH, Infer

ONNXRUNTIME: BackendName = "onnxruntime"


@dataclass(frozen=True)
class ProviderWishes:
    """Of the user for `--backend onnxruntime`. provider: a name of `engine.providers`, "" for the
    CPU's. cache: folder for what a provider compiles, None: beside the published file.
    embed_context: also write an ONNX file with the compiled engine inside it."""

    provider: str = ""
    cache: Path | None = None
    embed_context: bool = False

    def words(self) -> list[str]:
        """As on the command line."""
        words = ["--provider", self.provider] if self.provider else []
        words += [] if self.cache is None else ["--provider-cache", str(self.cache)]
        return words + ["--embed-context"] * self.embed_context


NO_PROVIDER = ProviderWishes()


def check_backend(wishes: ProviderWishes, backend: str) -> None:
    """Raise `InputError` for wishes that this backend, or the provider among them, cannot have."""
    words = wishes.words()
    if words and backend != ONNXRUNTIME:
        raise InputError(
            f"{words[0]} goes with --backend onnxruntime, not with {backend}",
            hint=f"--backend onnxruntime {' '.join(words)}",
        )
    if words and not providers.known(wishes.provider or "cpu").compiles:
        for word in ("--provider-cache", "--embed-context"):
            if word in words:
                raise InputError(
                    f"{word} is for providers that compile; {wishes.provider or 'cpu'} does not",
                    hint="--provider tensorrt or --provider nv-tensorrt-rtx",
                )


def choose_with(
    wishes: ProviderWishes,
    backend: str,
    precision: Precision,
    unfit: Mapping[BackendName, str] | None = None,
) -> Choice:
    """`choose`, and for a provider that is not the CPU's: is it here, does it compute in that?

    Raises `InputError`, `MissingDependencyError`.
    """
    check_backend(wishes, backend)
    if wishes.provider in ("", "cpu"):
        return choose(backend, precision, unfit)
    provider = providers.known(wishes.provider)
    if precision not in provider.precisions:
        raise InputError(
            f"--provider {provider.name} does not compute in {precision}: {provider.why_not}",
            hint="--fp16, or --provider tensorrt or nv-tensorrt-rtx",
        )
    check_provider(provider.name)
    return Choice(ONNXRUNTIME, ())


@dataclass(frozen=True)
class Route:
    """A build for a provider other than the CPU's."""

    provider: Provider
    wishes: ProviderWishes
    profiles: tuple[Profile, ...]

    @property
    def name(self) -> str:
        """In file names and reports: "onnxruntime-cuda"."""
        return f"{ONNXRUNTIME}-{self.provider.name}"

    @property
    def backend(self) -> str:
        """As a runner calls itself."""
        return f"{ONNXRUNTIME}/{self.provider.name}"

    def options(self, staged: Path, target: Path, metadata: ModelMetadata) -> ProviderOptions:
        """As the published file will be opened with. target: its name."""
        if not self.provider.compiles:
            return providers.DEFAULTS
        base = self.wishes.cache or default_cache(target)
        return ProviderOptions(
            cache=cache_folder(base, sha256_file(staged)),
            timings=base,
            profiles=self.profiles,
            input_name=metadata.input_name,
            input_kind=metadata.input_kind,
        )


def route(
    wishes: ProviderWishes, others: Wishes, card: Preprocessing, request: Request
) -> Route | None:
    """None for the CPU's provider. others: of them only the shapes, where it compiles.

    Raises `InputError`.
    """
    if wishes.provider in ("", "cpu"):
        return None
    provider = providers.known(wishes.provider)
    shapes = (others.min_shapes, others.opt_shapes, others.max_shapes)
    rest = replace(others, min_shapes=(), opt_shapes=(), max_shapes=())
    wrong = rest if provider.compiles else others
    if wrong != NO_WISHES:
        raise InputError(
            f"{wrong.words()[0]} does not go with --provider {provider.name}",
            hint="--backend tensorrt or --backend tensorrt-rtx",
        )
    profiles = profiles_from(*shapes, card) if provider.compiles else ()
    providers.settings(provider.name, ProviderOptions(profiles=profiles))
    found = Route(provider, wishes, profiles)
    if request.gate and profiles and not _gate_batch(found, card.crop):
        raise InputError(
            f"no profile holds an image of {card.crop}x{card.crop}, which the gate looks at",
            hint="--max-shapes up, or --no-gate",
        )
    return found


def infer(found: Route, staged: Path, options: ProviderOptions, metadata: ModelMetadata) -> Infer:
    """Of a file that is not published yet: every output of normalized images (N, 3, H, W), on the
    provider, in as many runs as its profiles ask for."""
    runner = OnnxRuntimeRunner(staged, provider=found.provider.name, options=options)
    session = Session(runner, metadata, staged, None)

    def run(images: Float32) -> dict[str, npt.NDArray[np.floating]]:
        size = _gate_batch(found, images.shape[2])
        starts = range(0, len(images), size)
        parts = [session.run_normalized(images[start : start + size]) for start in starts]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return run


def _gate_batch(found: Route, side: int) -> int:
    """Largest batch of at most the gate's that a profile holds; so are smaller ones, from 1."""
    if not found.profiles:
        return BATCH
    return max(
        (
            min(BATCH, profile.maximum[0])
            for profile in found.profiles
            if profile.holds((profile.maximum[0], 3, side, side)) and profile.minimum[0] == 1
        ),
        default=0,
    )


def prove(found: Route, staged: Path, options: ProviderOptions, what: str) -> ProviderFit:
    """Run the file once and hold the provider to it; write the context model that was wished.

    Raises `VerificationError` where a matrix layer ran elsewhere, `BuildError` where ONNX Runtime
    wrote no context model.
    """
    context = None
    if found.wishes.embed_context:
        assert options.cache is not None
        context = options.cache / f"{staged.stem}_ctx.onnx"
        context.unlink(missing_ok=True)  # ONNX Runtime writes over none
    ran = run_once(staged, found.provider.name, replace(options, context_model=context))
    placement.enforce(ran, what)
    if context is not None and not context.is_file():
        raise BuildError(f"{found.backend} wrote no context model {context}; nothing was written")
    cache = found.wishes.cache
    return ProviderFit(
        version=version(),
        nodes=ran.nodes,
        profiles=found.profiles,
        cache="" if cache is None else str(cache.resolve()),
    )


def told(found: Route, made: Made, precision: Precision) -> Kinds:
    """What the matrix layers compute in. CUDA's kernels are chosen by a node's types; of one that
    compiles ONNX Runtime does not tell, so it is what the file asks for."""
    asked = " asked" if found.provider.compiles else ""
    rest = made.rest if made.original is not None else precision
    kinds: Kinds = {}
    for role, total in _matrices(made).items():
        eight = sum(made.asked.get(role, {}).values()) if made.original is not None else 0
        counts = {f"{precision}{asked}": eight, f"{rest}{asked}": total - eight}
        kinds[role] = {kind: count for kind, count in counts.items() if count}
    return kinds


def _matrices(made: Made) -> dict[str, int]:
    from rest_deploy.graph.roles import place

    counts: dict[str, int] = {}
    for node in (made.original or made.model).graph:
        here = place(node.name or "") if node.op_type in {"MatMul", "Gemm", "Conv"} else None
        if here is not None:
            counts[here.role] = counts.get(here.role, 0) + 1
    return counts


def remarks(found: Route) -> list[str]:
    """What a build for this provider does not prove."""
    if not found.provider.compiles:
        return []
    return [
        f"{found.backend} ran every matrix layer; which type its kernels compute in it does not "
        "tell. --backend tensorrt proves that"
    ]


def idle_gpu(choice: Choice) -> list[str]:
    """Of a build for the CPU that nobody asked for by name: that a GPU is here, and what computes
    on it."""
    if not choice.passed_over or not may_run("cuda"):
        return []
    return [
        "a GPU is here and this engine does not use it; one that does: build-engine --fp16 "
        "--backend onnxruntime --provider cuda"
    ]


def shortfall(made: Made, kinds: Kinds, request: Request, backend: str) -> list[str]:
    """Where ONNX Runtime's CPU computes in another type than the recipe asks for."""
    if request.precision in ("fp16", "fp8"):
        return [
            f"{backend} on a CPU has no {request.precision} kernels: it computes in float32, "
            "no faster"
        ]
    if request.precision != "int8":
        return []
    left = _roles(made.float_places)
    missing = {
        role: f"{role} {counts['int8'] - kinds.get(role, {}).get('int8', 0)} of {counts['int8']}"
        for role, counts in made.asked.items()
        if kinds.get(role, {}).get("int8", 0) < counts["int8"]
    }
    without = ", ".join(words for role, words in missing.items() if role in left)
    others = ", ".join(words for role, words in missing.items() if role not in left)
    warnings = []
    if without:
        warnings.append(f"{backend} has no integer kernels here, so float weights stay: {without}")
    if others:
        warnings.append(f"{backend} computes these in float, after dequantizing: {others}")
    return warnings


def _roles(places: Iterable[str]) -> set[str]:
    return {place.partition(":")[2] for place in places}
