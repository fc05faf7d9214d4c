"""The shards of a bulk run computed by Ray Data: an actor for each replica of the engine.

Actors read the sources and the list, and write parts and manifests, as a run in one process does:
the engine and the output's folder are on a file system that all nodes see. What travels through Ray
is the number of a shard and the count of its images. A shard that Ray computes twice, since a node
was lost, is the same bytes under the same name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rest_deploy import errors
from rest_deploy.embed import storage
from rest_deploy.embed.job import Manifest, read_struct
from rest_deploy.embed.run import (
    Compute,
    Work,
    compute_shards,
    engine_sha256,
    open_engine,
    tools,
    warm,
)
from rest_deploy.errors import (
    ArtifactError,
    InputError,
    InvariantError,
    RestDeployError,
    require,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rest_deploy.runtime.session import Session

OBJECT_STORE = 200_000_000
"""Bytes, of a Ray that is started here: shards travel as numbers."""


def on_ray(address: str | None = None, replicas: int | None = None) -> Compute:
    """address: of a cluster ("auto", "ray://host:10001"); None: $RAY_ADDRESS, else a Ray of this
    machine alone. replicas: engines at once, at most; None: as many as its cores hold.

    What it returns raises `MissingDependencyError` without Ray, `InputError` when it is not told
    the threads of an engine, and what the work on a node raises.
    """

    def compute(
        work: Work, _session: Session, shards: Sequence[int]
    ) -> Iterator[tuple[int, int, Manifest | None]]:
        threads = work.wishes.threads
        if threads is None:
            raise InputError(
                "--ray needs --threads: how many cores of a node one engine gets",
                hint="--threads 4; a run without Ray goes on with it if it has the same",
            )
        if not shards:
            return
        _anywhere(work)
        ray = _started(address)
        try:
            most = replicas or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
            for shard, counted in _computed(ray, work, shards, most):
                manifest = read_struct(work.layout.manifest(shard), Manifest)
                if manifest is None or manifest.job != work.job.key or manifest.images != counted:
                    raise InvariantError(
                        f"Ray computed shard {shard}, and {work.layout.manifest(shard)} does not "
                        "say so: do all nodes see the same folder?"
                    )
                yield manifest.images, manifest.bad, manifest
        except ray.exceptions.RayError as error:
            raise _told(error) from error
        finally:
            ray.shutdown()

    return compute


class Replica:
    """An engine on some node, kept open from shard to shard.

    What fails here is answered as a row: of an exception Ray hands on a text at most.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.session: Session | None = None

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, list[Any]]:
        """shard: the number of one -> with it, its images, or the kind, message and hint of an
        error."""
        (shard,) = batch["shard"].tolist()
        images, failure = 0, ("", "", "")
        try:
            if self.session is None:
                self.session = self._open()
            for more, _, _ in compute_shards(self.work, self.session, [shard]):
                images += more
        except RestDeployError as error:
            failure = (type(error).__name__, error.message, error.hint or "")
        kind, message, hint = failure
        return {"shard": [shard], "images": [images], "kind": [kind], "message": [message],
                "hint": [hint]}  # fmt: skip

    def _open(self) -> Session:
        """Raises `ArtifactError` or `InputError` unless this node computes what the others do."""
        work = self.work
        session = open_engine(work.engine, work.wishes)
        found = engine_sha256(session)
        if found != work.job.engine_sha256:
            raise ArtifactError(
                f"{work.engine} has sha256 {found[:12]} on a node; the run has "
                f"{work.job.engine_sha256[:12]}"
            )
        here = tools(session)
        if here != work.job.tools:
            raise InputError(f"a node has {here}; the run was begun with {work.job.tools}")
        warm(work, session)
        return session


def _computed(ray: Any, work: Work, shards: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    on_gpu = work.engine.suffix == ".engine" or (work.wishes.provider or "cpu") != "cpu"
    rows = ray.data.from_items([{"shard": shard} for shard in shards]).map_batches(
        Replica,
        fn_constructor_args=(_anywhere(work),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(shards))),
        num_cpus=work.wishes.threads,
        num_gpus=1 if on_gpu else None,
    )
    for row in rows.iter_rows():
        if row["kind"]:
            kind = getattr(errors, row["kind"], RestDeployError)
            raise kind(row["message"], hint=row["hint"] or None)
        yield int(row["shard"]), int(row["images"])


def _anywhere(work: Work) -> Work:
    """With full paths: a replica has a working directory of its own.

    Raises `InputError` for sources by relative paths, which are part of the ids.
    """
    layout = replace(work.layout, output=work.layout.output.resolve())
    relative = [source for source in work.job.sources
                if not storage.is_uri(source) and not Path(source).is_absolute()]  # fmt: skip
    if relative:
        raise InputError(
            f"--ray needs full paths of sources, got {relative[0]}: nodes have working directories "
            "of their own",
            hint=f"{Path(relative[0]).resolve()}",
        )
    return replace(work, engine=work.engine.resolve(), layout=layout)


def _started(address: str | None) -> Any:
    require("ray", "ray")
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if address or os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    else:
        ray.init(
            include_dashboard=False, object_store_memory=OBJECT_STORE, log_to_driver=False,
            logging_level=logging.WARNING,
        )  # fmt: skip
    return ray


def _told(error: BaseException) -> RestDeployError:
    """What Ray says first: where it failed comes after."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return RestDeployError(f"Ray failed: {(lines or [type(error).__name__])[0][:300]}")
