"""What waits for an engine: requests, their answers, and what may go wrong with one."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from rest_deploy.errors import InputError, RestDeployError

Float32 = npt.NDArray[np.float32]
Images = npt.NDArray[np.generic]
"""(N, 3, H, W) float32 or (N, H, W, 3) uint8, as the engine takes them."""
NONE: Images = np.empty((0, 3, 0, 0), np.float32)

Shape = tuple[int, ...]
"""Of one image: (3, height, width) or (height, width, 3)."""


class Full(RestDeployError):
    """As many images wait as may: ask again later."""


class Expired(RestDeployError):
    """The deadline passed before the engine began."""


class Closed(RestDeployError):
    """The batcher takes no more requests."""


class NotFinite(RestDeployError):
    """The engine answered this request with NaN or infinity."""


class Engine(Protocol):
    """images -> every output by name, (N, ...) float32. `runtime.session.Session` is one."""

    def run_all(self, images: Images, /) -> Mapping[str, Float32]: ...


E = TypeVar("E", bound=Engine)


@dataclass(frozen=True)
class BatchLimits:
    """max_batch: images of one call. max_delay: seconds a batch may wait for more. queue: images
    that may wait. instances: calls of the engine at a time. pixels: height times width of all
    images of a call, None for any; one image is always taken."""

    max_batch: int = 8
    max_delay: float = 0.002
    queue: int = 256
    instances: int = 1
    pixels: int | None = None

    def __post_init__(self) -> None:
        if min(self.max_batch, self.queue, self.instances) < 1 or not 0 <= self.max_delay < 60:
            raise InputError(
                "expected max_batch, queue and instances of at least 1 and a max_delay of 0 to 60 "
                f"seconds, got {self}"
            )

    def most(self, shape: Shape) -> int:
        """Images of that shape in one call."""
        if self.pixels is None:
            return self.max_batch
        return max(1, min(self.max_batch, self.pixels // (math.prod(shape) // 3)))


@dataclass(frozen=True)
class Answer(Generic[E]):
    """outputs: those asked for by name, (k, ...), all finite. engine: the one that computed them.
    queued_s, computed_s: seconds of this request, computed_s that of its whole batch of `batch`
    images."""

    outputs: Mapping[str, Float32]
    engine: E
    queued_s: float
    computed_s: float
    batch: int


@dataclass(eq=False)
class Request(Generic[E]):
    """names: of the outputs asked for, None for all."""

    images: Images
    deadline: float
    arrived: float
    names: tuple[str, ...] | None = None
    future: Future[Answer[E]] = field(default_factory=Future)

    @property
    def shape(self) -> Shape:
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)


class Queue(Generic[E]):
    """Requests of one shape, oldest first. images: of all of them."""

    def __init__(self) -> None:
        self.requests: deque[Request[E]] = deque()
        self.images = 0

    def append(self, request: Request[E]) -> None:
        self.requests.append(request)
        self.images += len(request)

    def popleft(self) -> Request[E]:
        request = self.requests.popleft()
        self.images -= len(request)
        return request


def together(batch: list[Request[E]]) -> Images | Exception:
    """Of one shape each; a request on its own is not copied. No memory for it is an answer too."""
    if len(batch) == 1:
        return batch[0].images
    try:
        return np.concatenate([request.images for request in batch]) if batch else NONE
    except MemoryError as error:
        return error


def wanted(request: Request[E], now: float) -> bool:
    """Whether anybody still waits for it; one that expired gets its error."""
    if request.future.cancelled():
        return False
    if now >= request.deadline:
        fail(request, Expired(f"not begun within {request.deadline - request.arrived:.3g} s"))
        return False
    return True


def fail(request: Request[E], error: RestDeployError) -> None:
    if request.future.set_running_or_notify_cancel():
        request.future.set_exception(error)


def oldest(item: tuple[Shape, Queue[E]]) -> float:
    return item[1].requests[0].arrived
