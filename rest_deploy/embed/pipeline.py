"""Entries -> batches of pixels: threads decode ahead of the engine, as far as a window reaches.

Decoding and resizing leave the interpreter's lock, so threads are enough. Every batch has the same
shape, and an image's place in it follows from its place in the list alone: the slot of one that
cannot be decoded stays black. So an engine computes each image with the same kernels beside the
same neighbours, whether the run was interrupted or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from rest_deploy.contracts import Preprocessing
from rest_deploy.embed import storage
from rest_deploy.embed.entries import Entry
from rest_deploy.embed.rows import RowReader
from rest_deploy.errors import ImageError
from rest_deploy.layout import layout_of
from rest_deploy.preprocess import load_image, to_input
from rest_deploy.signature import InputKind

Images = npt.NDArray[np.generic]

AHEAD = 2
"""Batches that are decoded or being decoded while the engine has one."""


@dataclass(frozen=True)
class Batch:
    """images: (B, 3, H, W) float32, or (B, H, W, 3) uint8 for an engine that takes pixels. ids: of
    the slots in use, at most B. bad: slot -> reason."""

    images: Images
    ids: tuple[str, ...]
    bad: dict[int, str]


class Decoder:
    """Decodes in `workers` threads. One user at a time."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        size: tuple[int, int],
        workers: int,
        column: str | None = None,
        kind: InputKind = "float",
    ) -> None:
        """size: (height, width) in pixels. column: of Parquet sources, see `RowReader`. kind: what
        the engine takes."""
        self.preprocessing, self.size, self.column = preprocessing, size, column
        self.kind: InputKind = kind
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="rest-deploy-decode")

    def batches(self, entries: Iterable[Entry], batch: int) -> Iterator[Batch]:
        """In the order of the entries. batch: slots of one; only the last has some to spare."""
        reader = RowReader(self.column)
        window: deque[tuple[Entry, Future[Images | str]]] = deque()
        source = iter(entries)
        most = AHEAD * batch + self._workers
        held: list[tuple[str, Images | str]] = []
        try:
            while True:
                for entry in islice(source, most - len(window)):
                    window.append((entry, self._submit(entry, reader)))
                if not window:
                    break
                entry, future = window.popleft()
                held.append((entry.id, future.result()))
                if len(held) == batch:
                    yield self._assembled(held, batch)
                    held = []
            if held:
                yield self._assembled(held, batch)
        finally:
            for _, future in window:
                future.cancel()
            reader.close()

    def close(self) -> None:
        """Wait for what is being decoded."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, entry: Entry, reader: RowReader) -> Future[Images | str]:
        # Rows are read here, in their order; files in the threads.
        content = reader.read(entry.place, entry.row) if entry.row >= 0 else entry.location
        return self._pool.submit(self._decode, content)

    def _decode(self, source: bytes | str | None) -> Images | str:
        """The normalized (3, H, W), or why there is none."""
        if source is None:
            return "the row holds no bytes"
        try:
            content = storage.read(source) if isinstance(source, str) else source
            image: Images = to_input(load_image(content), self.kind, self.preprocessing, self.size)
        except ImageError as error:
            return error.message
        return image

    def _assembled(self, held: list[tuple[str, Images | str]], batch: int) -> Batch:
        layout = layout_of(self.kind)
        images = np.zeros(layout.shape((batch, 3, *self.size)), layout.dtype)
        bad: dict[int, str] = {}
        for slot, (_, found) in enumerate(held):
            if isinstance(found, str):
                bad[slot] = found
            else:
                images[slot] = found
        return Batch(images, tuple(name for name, _ in held), bad)
