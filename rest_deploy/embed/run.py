"""A bulk run on this machine: list, decode, compute, write, merge; and what is left of one."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rest_deploy import __version__
from rest_deploy.artifact import sha256_file, to_json
from rest_deploy.contracts import SMALLEST_SIDE, Struct
from rest_deploy.embed import parts
from rest_deploy.embed.answers import Form
from rest_deploy.embed.entries import Entry, Listed, read_entries, write_list
from rest_deploy.embed.job import Answer, Job, Manifest, Only
from rest_deploy.embed.parts import Answers, Layout
from rest_deploy.embed.pipeline import Batch, Decoder
from rest_deploy.embed.sources import entries
from rest_deploy.errors import ArtifactError, InputError, require
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.specialize import ShapeLimits
from rest_deploy.signature import SCORES

Float32 = npt.NDArray[np.float32]

USUAL_SHARD = 2048
"""Images of a part, about: what a killed run computes again."""

Watch = Callable[[int, int, int], None]
"""Called with the images done, to do in all, and bad so far."""


def unwatched(_done: int, _total: int, _bad: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Wishes:
    """What to compute, and how. only: of an engine that gives labels and embeddings, "" for both.
    top, logits: of labels. batch: images of one call of the engine;
    shard: of one part, None for about 2048. size: (height, width), None for the card's. threads: of
    the engine, None for all cores. workers: decoding threads, None for the cores. max_bad: share of
    bad images that the report calls too many. keep_parts: leave a folder of parts. selftest: see
    `Session.open`."""

    only: Only = ""
    top: int = 5
    logits: bool = False
    batch: int = 32
    shard: int | None = None
    size: tuple[int, int] | None = None
    column: str | None = None
    id_column: str | None = None
    backend: str | None = None
    provider: str | None = None
    threads: int | None = None
    workers: int | None = None
    max_bad: float | None = None
    keep_parts: bool = False
    selftest: bool = True


class EmbedReport(Struct, frozen=True):
    """What a run left. resumed: images that were done before. seconds: of this run."""

    output: str
    bad_output: str
    engine: str
    engine_sha256: str
    answer: str
    images: int
    rows: int
    bad: int
    resumed: int
    seconds: float
    max_bad: float | None
    too_many_bad: bool


@dataclass(frozen=True)
class Work:
    """An opened job: what every process that computes shards of it needs."""

    job: Job
    layout: Layout
    listed: Listed
    form: Form
    engine: Path
    wishes: Wishes


Compute = Callable[[Work, Session, Sequence[int]], Iterator[tuple[int, int, Manifest | None]]]
"""Shards of a job -> (images done, of them bad, the manifest of a part that is finished now)."""


def embed(
    sources: Sequence[str],
    output: Path,
    engine: Path,
    wishes: Wishes,
    *,
    watch: Watch = unwatched,
    compute: Compute | None = None,
) -> EmbedReport:
    """Labels or embeddings of every image of the sources, in Parquet.

    Goes on where an earlier run of the same job ended. compute: None for this process. Raises
    `InputError` for sources that are not there, ids named twice, and an output of another job.
    """
    require("pyarrow", "embed")
    started = time.monotonic()
    layout = Layout(output, wishes.keep_parts)
    with open_engine(engine, wishes) as session, parts.locked(layout):
        work = _open(sources, session, engine, wishes, layout)
        total = work.job.count
        done_before = parts.finished_output(layout, work.job)
        if done_before is not None:
            finished, resumed = done_before, total
            parts.clear(layout)
        else:
            parts.claim(layout, work.job)
            manifests = parts.finished_parts(layout, work.job)
            resumed = done = sum(one.images for one in manifests.values())
            bad = sum(one.bad for one in manifests.values())
            left = [shard for shard in range(work.job.shards) if shard not in manifests]
            watch(done, total, bad)
            for images, refused, manifest in (compute or here)(work, session, left):
                done, bad = done + images, bad + refused
                watch(done, total, bad)
                if manifest is not None:
                    manifests[manifest.shard] = manifest
            finished = parts.merge(layout, work.job, work.form, manifests)
    limit = wishes.max_bad
    return EmbedReport(
        output=str(output), bad_output=str(layout.bad), engine=str(engine),
        engine_sha256=work.job.engine_sha256, answer=work.job.answer, images=total,
        rows=finished.rows, bad=finished.bad, resumed=resumed,
        seconds=time.monotonic() - started, max_bad=limit,
        too_many_bad=limit is not None and finished.bad > limit * total,
    )  # fmt: skip


def open_engine(engine: Path, wishes: Wishes) -> Session:
    """With one compilation, for the one shape of this run: which kernels an image meets must not
    depend on how often a shape has come."""
    return Session.open(
        engine, backend=wishes.backend, provider=wishes.provider, threads=wishes.threads,
        specialize=ShapeLimits(most=1, after=0), selftest=wishes.selftest,
    )  # fmt: skip


def here(
    work: Work, session: Session, shards: Sequence[int]
) -> Iterator[tuple[int, int, Manifest | None]]:
    """Compute shards in this process."""
    if shards:
        warm(work, session)
        yield from compute_shards(work, session, shards)


def warm(work: Work, session: Session) -> None:
    """Make the engine ready for the one shape of this job.

    Raises `ArtifactError` where it cannot be compiled for it: the dynamic model would do, and give
    other INT8 logits than a machine on which it can.
    """
    try:
        session.warm_up([(work.job.batch, 3, *work.job.size)])
    except ArtifactError as error:
        raise ArtifactError(
            error.message, hint="another --size, or --backend onnxruntime"
        ) from error


def compute_shards(
    work: Work, session: Session, shards: Sequence[int]
) -> Iterator[tuple[int, int, Manifest | None]]:
    """One after another; decoding runs ahead across their borders."""
    job, wishes = work.job, work.wishes
    workers = wishes.workers or _cores()
    kind = session.metadata.input_kind
    decoder = Decoder(job.preprocessing, job.size, workers, job.column or None, kind)
    wanted = (entry for shard in shards for entry in _entries(work, shard))
    try:
        batches = decoder.batches(wanted, job.batch)
        for shard in shards:
            answers, left = Answers([], []), work.listed.size_of(shard)
            while left:
                batch = next(batches)
                left -= len(batch.ids)
                _answer(work.form, session, batch, answers)
                written = None if left else parts.write_part(work.layout, job, work.form, shard,
                                                             answers)  # fmt: skip
                yield len(batch.ids), len(batch.bad), written
    finally:
        decoder.close()


def _answer(form: Form, session: Session, batch: Batch, into: Answers) -> None:
    """Run a batch and add what came out. Raises `ArtifactError` for answers that are no numbers."""
    found = session.run_all(batch.images)
    for output in form.outputs:
        shape = found[output.name].shape
        if shape != (len(batch.images), output.channels):
            raise ArtifactError(
                f"{session.path} returned {output.name} of {shape} for {len(batch.images)} images; "
                f"expected {output.channels} values for each"
            )
    good = [slot for slot in range(len(batch.ids)) if slot not in batch.bad]
    into.bad.extend((batch.ids[slot], reason) for slot, reason in sorted(batch.bad.items()))
    if not good:
        return
    ids = tuple(batch.ids[slot] for slot in good)
    kept = {output.name: found[output.name][good] for output in form.outputs}
    for name, values in kept.items():
        broken = ~np.isfinite(values).all(axis=1)
        if broken.any():
            raise ArtifactError(
                f"{session.path} returned {name} with NaN or infinity for "
                f"{ids[int(broken.argmax())]}",
                hint="rest-deploy verify shows where it departs from the reference",
            )
    into.batches.append(form.rows(ids, kept))


def form_of(session: Session, wishes: Wishes) -> Form:
    """What is kept of the engine's answers: labels where it gives classes, an embedding where it
    gives one, or only one of the two.

    Raises `InputError` for an engine that gives neither, or not what is wished for.
    """
    gives = session.metadata.gives
    given = ", ".join(output.name for output in gives)
    scores = next((one for kind in SCORES for one in gives if one.kind == kind), None)
    embedding = next((one for one in gives if one.kind == "embedding"), None)
    if scores is None and embedding is None:
        raise InputError(
            f"{session.path} gives {given}: neither labels nor an embedding, which rows are made "
            "of; the maps of many images are for the head that reads them",
            hint="rest-deploy export --output embedding; Session.run_all returns maps",
        )
    if (wishes.only == "labels" and scores is None) or (
        wishes.only == "embeddings" and embedding is None
    ):
        raise InputError(
            f"--only {wishes.only}: {session.path} gives {given}",
            hint=f"rest-deploy export --output {'logits' if embedding else 'embedding'}",
        )
    if wishes.only == "labels":
        embedding = None
    if wishes.only == "embeddings":
        scores = None
    if wishes.logits and (scores is None or scores.kind != "logits"):
        raise InputError(
            f"--logits: {session.path} gives {given}, and "
            f"{'only embeddings are kept' if wishes.only == 'embeddings' else 'no logits'}",
            hint="rest-deploy export --output logits",
        )
    labels = session.metadata.labels if scores is not None else ()
    return Form(labels, scores, embedding, wishes.top, wishes.logits)


def _answer_of(form: Form) -> Answer:
    if form.scores is None:
        return "embeddings"
    return "labels" if form.embedding is None else "labels and embeddings"


def _entries(work: Work, shard: int) -> Iterator[Entry]:
    listed = work.listed
    return read_entries(work.layout.list, listed.offsets[shard], listed.size_of(shard))


def _open(
    sources: Sequence[str], session: Session, engine: Path, wishes: Wishes, layout: Layout
) -> Work:
    """List the sources and say what the job is; the list stays beside the job's own until it is
    known to be the same."""
    # "photos/" and "photos" are one source: their ids are the same.
    sources = [source.rstrip("/") or "/" for source in sources]
    card = session.metadata.card
    size = wishes.size or (card.preprocessing.crop, card.preprocessing.crop)
    if min(size) < SMALLEST_SIDE:
        raise InputError(f"--size {size[0]}x{size[1]}; expected at least {SMALLEST_SIDE} pixels")
    shard = wishes.shard or wishes.batch * -(-USUAL_SHARD // wishes.batch)
    if shard % wishes.batch:
        raise InputError(
            f"--shard {shard} is no multiple of --batch {wishes.batch}: a batch would begin in one "
            "part and end in the next"
        )
    form = form_of(session, wishes)
    with parts.scratch(layout) as folder:
        listed = write_list(
            entries(sources, wishes.column, wishes.id_column), folder / layout.list.name, shard
        )
    job = Job(
        schema=1,
        sources=tuple(sources),
        column=wishes.column or "",
        id_column=wishes.id_column or "",
        count=listed.count,
        list_sha256=listed.sha256,
        engine=engine.name,
        engine_sha256=engine_sha256(session),
        weights_sha256=session.metadata.weights.state_sha256,
        runs_on=session.runner.backend,
        threads=wishes.threads or 0,
        preprocessing=card.preprocessing,
        size=size,
        answer=_answer_of(form),
        labels_sha256=hashlib.sha256(to_json(form.labels).encode()).hexdigest(),
        top=wishes.top if form.scores else 0,
        logits=wishes.logits,
        batch=wishes.batch,
        shard=shard,
        tools=tools(session),
        only=wishes.only,
    )
    return Work(job, layout, listed, form, engine, wishes)


def engine_sha256(session: Session) -> str:
    """Of the engine's file."""
    return session.sidecar.sha256 if session.sidecar else sha256_file(session.path)


def tools(session: Session) -> dict[str, str]:
    """Versions of what decides pixels (Pillow), logits (the runtime) or bytes (pyarrow)."""
    import PIL
    import pyarrow

    return {
        "rest-deploy": __version__,
        "pillow": PIL.__version__,
        "pyarrow": pyarrow.__version__,
        session.runner.backend.partition("/")[0]: _runtime_version(session),
    }


def _runtime_version(session: Session) -> str:
    """An engine of TensorRT runs on the version that built it, and on no other."""
    build = session.sidecar.build if session.sidecar else None
    if build is not None and build.fit is not None:
        return build.fit.version
    runtime = session.runner.backend.partition("/")[0]
    for package in (runtime, f"{runtime}-gpu"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
