"""Which shapes are compiled, and what requests see meanwhile: without OpenVINO, then with it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from rest_deploy.contracts import Dims, TensorSpec
from rest_deploy.errors import ArtifactError, InputError, installed
from rest_deploy.runtime import specialize
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.specialize import (
    NEVER,
    REMEMBERED,
    ShapeLimits,
    ShapePolicy,
    SpecializingRunner,
)


def dims(index: int) -> Dims:
    return (1, 3, 32 + index, 64)


A, B, C, D = (dims(index) for index in range(4))


# --- the policy -----------------------------------------------------------------------------------


def test_compiled_at_the_third_request() -> None:
    policy = ShapePolicy()
    assert [policy.asked(A), policy.asked(B), policy.asked(A), policy.asked(A)] == [
        *(False, False, False, True)
    ]
    assert policy.asked(A)  # still, as long as nobody has done it
    policy.keep(A, 10)
    assert not policy.asked(A)
    assert policy.kept == (A,)


def test_one_off_shapes_never_are() -> None:
    policy = ShapePolicy()
    assert not any(policy.asked(dims(index)) for index in range(1000))
    assert len(policy._asked) == REMEMBERED


def test_the_least_recently_used_goes() -> None:
    policy = ShapePolicy(ShapeLimits(most=2, after=1))
    for shape in (A, B):
        assert policy.asked(shape)
        assert policy.keep(shape, 0) == ()
    policy.asked(A)
    assert policy.asked(C)
    assert policy.keep(C, 0) == (B,)
    assert policy.kept == (A, C)


def test_shapes_in_turn_do_not_chase_each_other() -> None:
    """Three shapes for two places: two stay, the third is served by the dynamic model."""
    policy = ShapePolicy(ShapeLimits(most=2, after=3))
    compiled = 0
    for _ in range(50):
        for shape in (A, B, C):
            if policy.asked(shape):
                compiled += 1
                policy.keep(shape, 0)
    assert compiled == 2


def test_a_shape_that_has_gone_cold_makes_room() -> None:
    policy = ShapePolicy(ShapeLimits(most=1, after=3))
    policy.keep(A, 0)
    policy.asked(A)
    assert [policy.asked(B) for _ in range(3)] == [False, False, True]
    assert policy.keep(B, 0) == (A,)


def test_memory() -> None:
    policy = ShapePolicy(ShapeLimits(most=4, after=1, most_bytes=100))
    assert policy.keep(A, 60) == ()
    assert policy.keep(B, 30) == ()
    assert policy.keep(C, 50) == (A,)
    assert policy.keep(D, 101) == (D,)
    assert policy.kept == (B, C)
    assert not policy.asked(D)  # it never fits: not compiled again and again


def test_refused() -> None:
    policy = ShapePolicy(ShapeLimits(after=1))
    assert policy.asked(A)
    policy.refuse(A)
    assert not policy.asked(A)


def test_never() -> None:
    policy = ShapePolicy(NEVER)
    assert not any(policy.asked(A) for _ in range(10))


@pytest.mark.parametrize("wrong", [{"most": -1}, {"after": -1}, {"most_bytes": 0}])
def test_limits(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected most >= 0"):
        ShapeLimits(**wrong)


# --- the runner, over runners that only say who they are ------------------------------------------


class Fake:
    """Answers with its name; `gate` holds a compilation back."""

    backend = "fake/cpu"
    inputs = (TensorSpec(name="image", dtype="float32", shape=("batch", 3, "height", "width")),)
    outputs = (TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),)

    def __init__(self, number: float) -> None:
        self.number = number
        self.closed = False

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert not self.closed
        return {"logits": np.full((len(feeds["image"]), 2), self.number, np.float32)}

    def close(self) -> None:
        self.closed = True


class Compiler:
    """Makes runners called after their height."""

    def __init__(self) -> None:
        self.made: dict[Dims, Fake] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.fails: set[Dims] = set()

    def __call__(self, shape: Dims) -> Fake:
        assert self.gate.wait(30)
        if shape in self.fails:
            raise ArtifactError("this shape is cursed")
        assert shape not in self.made
        self.made[shape] = Fake(shape[2])
        return self.made[shape]


@pytest.fixture
def compiler() -> Compiler:
    return Compiler()


def who(runner: SpecializingRunner, shape: Dims) -> float:
    return float(runner.infer({"image": np.zeros(shape, np.float32)})["logits"][0, 0])


def test_nobody_waits(compiler: Compiler) -> None:
    compiler.gate.clear()
    runner = SpecializingRunner(Fake(0), compiler)
    assert [who(runner, A) for _ in range(10)] == [0] * 10  # while it is compiled
    assert not runner.shapes
    compiler.gate.set()
    runner.wait()
    assert who(runner, A) == 32
    assert who(runner, B) == 0
    assert runner.shapes == (A,)
    runner.close()


def test_several_wait_for_their_turn(compiler: Compiler) -> None:
    compiler.gate.clear()
    runner = SpecializingRunner(Fake(0), compiler, ShapeLimits(after=1))
    for shape in (A, B, C, A, B, C):
        who(runner, shape)
    compiler.gate.set()
    runner.wait()
    assert runner.shapes == (A, B, C)
    assert threading.active_count() < 10
    runner.close()


def test_what_is_let_go_serves_whom_it_has(compiler: Compiler) -> None:
    runner = SpecializingRunner(Fake(0), compiler, ShapeLimits(most=1, after=1))
    who(runner, A)
    runner.wait()
    who(runner, B)
    runner.wait()
    assert runner.shapes == (B,)
    assert not compiler.made[A].closed  # a request may be in it; it goes with the last of them
    assert who(runner, A) == 0
    runner.close()


def test_an_error_is_said_once(compiler: Compiler, caplog: pytest.LogCaptureFixture) -> None:
    compiler.fails = {A}
    runner = SpecializingRunner(Fake(0), compiler)
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            assert who(runner, A) == 0
            runner.wait()
    assert runner.failures == {A: "this shape is cursed"}
    assert [record.getMessage() for record in caplog.records] == [
        "1x3x32x64 is not compiled for itself: this shape is cursed"
    ]
    for _ in range(3):
        who(runner, B)
    runner.wait()
    assert runner.shapes == (B,)  # the others go on
    runner.close()


def test_too_large(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([0, 10, 0, 200])
    monkeypatch.setattr(specialize, "_resident", lambda: next(sizes))
    runner = SpecializingRunner(Fake(0), compiler, ShapeLimits(after=1, most_bytes=100))
    for shape in (A, B):
        who(runner, shape)
        runner.wait()
    assert runner.shapes == (A,)
    assert "more than all may" in runner.failures[B]
    runner.close()


def test_warm_up(compiler: Compiler) -> None:
    runner = SpecializingRunner(Fake(0), compiler)
    runner.warm_up([A, B, A])
    assert runner.shapes == (A, B)
    assert who(runner, A) == 32  # at the first request
    runner.warm_up([A])  # there already: `Compiler` would refuse to make it again
    with pytest.raises(InputError, match="5 shapes to warm up; this session keeps 4"):
        runner.warm_up([dims(index) for index in range(5)])
    compiler.fails = {C}
    with pytest.raises(ArtifactError, match="cursed"):
        runner.warm_up([C])
    runner.close()


def test_warm_up_and_requests_make_it_once(compiler: Compiler) -> None:
    compiler.gate.clear()
    runner = SpecializingRunner(Fake(0), compiler, ShapeLimits(after=1))
    who(runner, A)
    warming = threading.Thread(target=runner.warm_up, args=([A],))
    warming.start()
    compiler.gate.set()
    warming.join()
    runner.wait()
    assert list(compiler.made) == [A]
    runner.close()


def test_close_waits_for_the_one_that_runs(compiler: Compiler) -> None:
    compiler.gate.clear()
    dynamic = Fake(0)
    runner = SpecializingRunner(dynamic, compiler, ShapeLimits(after=1))
    for shape in (A, B):
        who(runner, shape)
    while runner._thread is None or not runner._waiting:
        time.sleep(0.001)
    closing = threading.Thread(target=runner.close)
    closing.start()
    while not runner._closed:
        time.sleep(0.001)
    compiler.gate.set()
    closing.join(30)
    assert not closing.is_alive()
    assert dynamic.closed
    assert all(made.closed for made in compiler.made.values())
    assert B not in compiler.made  # it only waited
    assert not [t for t in threading.enumerate() if t.name == "rest-deploy-specialize"]


# --- OpenVINO -------------------------------------------------------------------------------------

openvino = pytest.mark.skipif(not installed("openvino"), reason="openvino is not installed")

SHAPES: tuple[Dims, ...] = ((1, 3, 64, 64), (2, 3, 48, 64), (1, 3, 97, 131), (3, 3, 32, 32),
                            (1, 3, 128, 96), (4, 3, 40, 40))  # fmt: skip


def storm(session: Session, expected: Callable[[int], np.ndarray]) -> list[float]:
    """Largest difference of each answer, from six threads over all shapes."""
    differences: list[float] = []
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for index in np.random.default_rng(seed).integers(0, len(SHAPES), 40):
                found = session.run(given(int(index)))
                differences.append(float(np.abs(found - expected(int(index))).max()))
        except Exception as error:  # noqa: BLE001  # raised by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return differences


def given(index: int) -> np.ndarray:
    return np.random.default_rng(index).standard_normal(SHAPES[index]).astype(np.float32)


@openvino
def test_answers_during_the_switch(exported_nano: Path) -> None:
    """Six shapes for three places, from six threads: every answer is the dynamic model's."""
    with Session.open(exported_nano, backend="openvino", threads=1, specialize=NEVER) as plain:
        answers = [plain.run(given(index)) for index in range(len(SHAPES))]
    limits = ShapeLimits(most=3)
    session = Session.open(exported_nano, backend="openvino", threads=1, specialize=limits)
    assert isinstance(session.runner, SpecializingRunner)
    with session:
        differences = storm(session, lambda index: answers[index])
        session.runner.wait()
        assert len(session.runner.shapes) == 3
        assert session.runner.failures == {}
        assert len(differences) == 240
        assert max(differences) < 1e-4
        wrong = storm(session, lambda index: answers[index] + 1e-3)  # the control
        assert min(wrong) > 1e-4


@openvino
def test_warm_up_of_a_session(exported_nano: Path) -> None:
    with Session.open(exported_nano, backend="openvino", threads=1) as session:
        assert isinstance(session.runner, SpecializingRunner)
        session.warm_up([SHAPES[0], SHAPES[1]])
        assert session.runner.shapes == (SHAPES[0], SHAPES[1])
    with Session.open(exported_nano, threads=1) as other:
        other.warm_up([SHAPES[0]])  # runs once


@openvino
def test_memory_is_measured(exported_nano: Path) -> None:
    limits = ShapeLimits(most_bytes=1000)
    with Session.open(exported_nano, backend="openvino", threads=1, specialize=limits) as session:
        assert isinstance(session.runner, SpecializingRunner)
        with pytest.raises(InputError, match="8x3x224x224 had to go again"):
            session.warm_up([(8, 3, 224, 224)])
        assert session.runner.shapes == ()
        assert "MB, more than all may" in session.runner.failures[8, 3, 224, 224]


def test_only_what_is_warmed_up_is_compiled(compiler: Compiler) -> None:
    runner = SpecializingRunner(Fake(0), compiler, ShapeLimits(most=2, after=0))
    runner.warm_up([A])
    for _ in range(20):
        assert who(runner, B) == 0
    runner.wait()
    assert runner.shapes == (A,)
    runner.close()
