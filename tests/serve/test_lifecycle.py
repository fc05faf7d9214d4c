"""Start, stop, change of engines and the death of workers, under load: nothing taken is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rest_deploy import Session
from rest_deploy.artifact import METADATA_KEY, read_sidecar, sha256_file, sidecar_path, to_json
from tests.serve.live import INFER, Live, Load, Reply, eventually, random_images, serving

LOAD = "/v2/repository/models/rest_nano/load"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def other_weights(engine: Path, target: Path, scale: float = 1.5) -> Path:
    """The same model with the last layer's bias changed: other logits, the same contract."""
    proto = onnx.load(engine)
    head = next(value for value in proto.graph.initializer if list(value.dims) == [22])
    changed = onnx.numpy_helper.to_array(head) * np.float32(scale) + np.float32(1)
    head.CopyFrom(onnx.numpy_helper.from_array(changed, head.name))
    return published(proto, engine, target)


def other_labels(engine: Path, target: Path) -> Path:
    """The same model with its first two labels in the other order."""
    proto = onnx.load(engine)
    (entry,) = [one for one in proto.metadata_props if one.key == METADATA_KEY]
    metadata = json.loads(entry.value)
    labels = metadata["labels"]
    labels[0], labels[1] = labels[1], labels[0]
    entry.value = json.dumps(metadata)
    return published(proto, engine, target, labels=labels)


def published(proto: Any, engine: Path, target: Path, labels: list[str] | None = None) -> Path:
    target.mkdir()
    path = target / engine.name
    onnx.save(proto, path)
    sidecar = json.loads(sidecar_path(engine).read_text(encoding="utf-8"))
    sidecar["sha256"] = sha256_file(path)
    if labels is not None:
        sidecar["metadata"]["labels"] = labels
    sidecar_path(path).write_text(to_json(sidecar), encoding="utf-8")
    assert read_sidecar(path) is not None
    return path


def replace(engine: Path, new: Path) -> None:
    """As `artifact.publish` does it: renames."""
    for path in (new, sidecar_path(new)):
        copy = engine.with_name(f"{path.name}.new")
        shutil.copy(path, copy)
        copy.replace(engine.with_name(path.name))


def load(live: Live, **parameters: str) -> Reply:
    body = json.dumps({"parameters": parameters}).encode() if parameters else b""
    return live.ask("POST", LOAD, body)


# --- start -------------------------------------------------------------------------------------


def test_alive_before_it_is_ready(trained_nano: Path, log: Path) -> None:
    """Until the engine is warm: alive, not ready, and inference says when to come again."""
    slow = ("--max-batch", 64)
    with serving(trained_nano, log, *slow, wait=False) as live:
        assert live.ask("GET", "/v2/health/live").status == 200
        early = live.ask("GET", "/v2/health/ready")
        reply = live.infer(random_images())
        assert (early.status, early.json()) == (503, {"ready": False})
        assert (reply.status, reply.header("retry-after")) == (503, "1")
        eventually(live.ready, live)
        assert live.infer(random_images()).status == 200
        assert live.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_an_engine_that_cannot_be_opened(engine: Path, log: Path, workers: int) -> None:
    engine.write_bytes(engine.read_bytes()[:1000])
    with serving(engine, log, "--workers", workers, wait=False) as live:
        assert live.process.wait(60) == 3
    said = log.read_text(encoding="utf-8")
    assert "error: " in said
    assert "one of the two was replaced" in said
    assert "Traceback" not in said


def test_a_port_that_is_taken(live: Live, trained_nano: Path, log: Path) -> None:
    from click.testing import CliRunner

    from rest_deploy.cli import main

    result = CliRunner().invoke(main, ["serve", str(trained_nano), "--port", str(live.port)])
    assert result.exit_code == 5
    assert "cannot listen on 127.0.0.1" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--queue", "4", "--max-batch", "8"], "does not fit a queue"),
        (["--max-body-mb", "600"], "expected no less than one"),
        (["--name", "a/b"], "does not fit into a URL"),
    ],
)
def test_options_that_contradict_each_other(options: list[str], words: str) -> None:
    from click.testing import CliRunner

    from rest_deploy.cli import main

    result = CliRunner().invoke(main, ["serve", "nowhere.onnx", *options])
    assert result.exit_code == 3, result.output
    assert words in result.stderr


# --- stop --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "number"),
    [
        (1, signal.SIGTERM),
        (2, signal.SIGTERM),
        pytest.param(1, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_stop_under_load_loses_nothing(
    trained_nano: Path, log: Path, workers: int, number: signal.Signals
) -> None:
    with serving(trained_nano, log, "--workers", workers) as live, Load(live, clients=8) as clients:
        clients.reach(20)
        live.process.send_signal(number)
        assert live.process.wait(60) == 0
        clients.stop()
        clients.check(trained_nano)
    assert [line for line in live.lines() if "trace" in line] == []
    assert len(live.events("stopped")) == workers + (workers > 1)


def test_a_stop_answers_what_it_took(trained_nano: Path, log: Path) -> None:
    """Many large requests at once, then SIGTERM: every one is answered, later than the signal."""
    replies: list[Reply] = []
    lock = threading.Lock()

    def ask() -> None:
        found = live.infer(random_images(4, 224))
        with lock:
            replies.append(found)

    with serving(trained_nano, log, "--max-batch", 4) as live:
        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        eventually(lambda: live.metric("rest_deploy_queue_images") >= 8, live)
        answered = len(replies)
        live.process.send_signal(signal.SIGTERM)
        eventually(lambda: bool(live.events("draining")), live)
        assert not live.ready()
        for thread in threads:
            thread.join()
        assert live.process.wait(60) == 0
    assert answered < 12
    assert [reply.status for reply in replies] == [200] * 12


def test_the_load_would_notice_a_loss(trained_nano: Path, log: Path) -> None:
    """Negative control: a server that is killed does lose requests."""
    with serving(trained_nano, log) as live, Load(live, clients=8) as clients:
        clients.reach(10)
        live.process.kill()
        clients.stop()
        assert clients.broken != []


# --- change of engines -------------------------------------------------------------------------


@pytest.fixture
def many(engine: Path, log: Path, request: pytest.FixtureRequest) -> Iterator[Live]:
    with serving(engine, log, "--workers", request.param) as live:
        yield live


def by_request(live: Live) -> None:
    reply = load(live)
    assert (reply.status, reply.json()) == (200, {"outcome": "loaded"}), reply.body


def by_signal(live: Live) -> None:
    live.process.send_signal(signal.SIGHUP)
    eventually(lambda: len(live.events("engine file opened")) > 0, live)


@pytest.mark.parametrize(
    ("many", "change"), [(1, by_request), (1, by_signal), (2, by_request)], indirect=["many"]
)
def test_change_under_load_loses_nothing(
    many: Live, engine: Path, tmp_path: Path, change: Callable[[Live], None]
) -> None:
    old = Path(shutil.copytree(engine.parent, tmp_path / "old")) / engine.name
    new = other_weights(engine, tmp_path / "new")
    shas = [sha256_file(path)[:12] for path in (engine, new)]
    with Load(many, clients=8) as clients:
        clients.reach(20)
        replace(engine, new)
        clients.reach(20)
        assert set(clients.engines) == {shas[0]}  # a file alone changes nothing
        change(many)
        clients.reach(40)
        clients.stop()
        clients.check(old, new)
        assert set(clients.engines[-10:]) == {shas[1]}
    assert many.ask("GET", "/v2/models/rest_nano").json()["parameters"]["sha256"][:12] == shas[1]
    images = random_images()
    found = many.infer(images).json()["outputs"][0]["data"]
    np.testing.assert_allclose(found, Session.open(new).run(images)[0], rtol=1e-4, atol=1e-4)
    assert many.stop() == 0


@pytest.mark.parametrize("many", [1, 2], indirect=True)
def test_a_bad_file_leaves_the_old_serving(many: Live, engine: Path, tmp_path: Path) -> None:
    old = sha256_file(engine)[:12]
    assert load(many).json() == {"outcome": "unchanged"}
    good = engine.read_bytes(), sidecar_path(engine).read_bytes()
    with Load(many, clients=4) as clients:
        engine.write_bytes(good[0][:-100])
        reply = load(many)
        assert reply.status == 409
        assert "one of the two was replaced" in reply.json()["error"]
        engine.unlink()
        assert load(many).status == 409
        # Other labels would make clients read answers wrongly.
        replace(engine, other_labels_of(engine, good, tmp_path))
        reply = load(many)
        assert reply.status == 409
        assert "labels: " in reply.json()["error"]
        assert '"accept": "labels"' in reply.json()["error"]
        clients.reach(8)
        clients.stop()
        assert set(clients.codes) == {200}
        assert set(clients.engines) == {old}
        assert clients.broken == []
    assert many.ready()
    # Said in advance, the change is taken.
    assert load(many, accept="labels").json() == {"outcome": "loaded"}
    assert many.infer(random_images()).header("x-model-sha256") == sha256_file(engine)[:12]
    assert many.stop() == 0


def other_labels_of(engine: Path, good: tuple[bytes, bytes], folder: Path) -> Path:
    (folder / "old").mkdir()
    copy = folder / "old" / engine.name
    copy.write_bytes(good[0])
    sidecar_path(copy).write_bytes(good[1])
    return other_labels(copy, folder / "labels")


def test_loading_can_be_switched_off(engine: Path, log: Path) -> None:
    with serving(engine, log, "--no-loading") as live:
        reply = load(live)
        assert (reply.status, "--no-loading" in reply.json()["error"]) == (403, True)


# --- workers -----------------------------------------------------------------------------------


def pids(live: Live) -> list[int]:
    """Of the workers that run now, by number."""
    latest = {line["worker"]: line["pid"] for line in live.events("worker started")}
    return [latest[index] for index in sorted(latest)]


def test_a_killed_worker_comes_back(trained_nano: Path, log: Path) -> None:
    """The listening socket stays open: no connection is refused, before, meanwhile and after."""
    with serving(trained_nano, log, "--workers", 2) as live:
        eventually(lambda: len(live.events("ready")) == 2, live)
        before = pids(live)
        with Load(live, clients=8) as clients:
            clients.reach(20)
            os.kill(before[0], signal.SIGKILL)
            clients.reach(20)  # the other one serves
            eventually(lambda: len(live.events("ready")) == 3, live)
            clients.reach(20)
            clients.stop()
            assert set(clients.codes) == {200}
            assert len(clients.broken) <= 8  # what the dead one had in hand
        after = pids(live)
        assert (after[1], after[0] != before[0]) == (before[1], True)
        (ended,) = live.events("worker ended, it is started again")
        assert (ended["worker"], ended["code"]) == (0, -signal.SIGKILL)
        eventually(lambda: live.metric("rest_deploy_ready") == 2, live)
        assert live.stop() == 0


@pytest.mark.slow
def test_all_workers_killed_at_once_come_back(trained_nano: Path, log: Path) -> None:
    with serving(trained_nano, log, "--workers", 2) as live:
        eventually(lambda: len(live.events("ready")) == 2, live)
        for pid in pids(live):
            os.kill(pid, signal.SIGKILL)
        # Nobody accepts now; the connection waits in the socket until somebody does.
        assert live.infer(random_images()).status == 200
        assert live.stop() == 0


@pytest.mark.slow
def test_workers_end_with_their_supervisor(trained_nano: Path, log: Path) -> None:
    with serving(trained_nano, log, "--workers", 2) as live:
        eventually(lambda: len(live.events("ready")) == 2, live)
        found = pids(live)
        live.process.kill()
        live.process.wait()
        eventually(lambda: not any(map(running, found)))


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_figures_are_those_of_all_workers(trained_nano: Path, log: Path) -> None:
    with serving(trained_nano, log, "--workers", 2) as live, Load(live, clients=8) as clients:
        clients.reach(60)
        clients.stop()
        time.sleep(0.1)
        served = live.metric("rest_deploy_images_total")
        assert (served, set(clients.codes)) == (len(clients.codes), {200})
        assert {live.metric("rest_deploy_images_total") for _ in range(8)} == {served}
        workers = {line["pid"] for line in live.events("worker started")}
        assert len(workers) == 2


# --- overload ----------------------------------------------------------------------------------


def test_overload_is_told_at_once_and_what_is_taken_is_answered(
    trained_nano: Path, log: Path
) -> None:
    options = ("--max-batch", 2, "--queue", 2)
    with serving(trained_nano, log, *options) as live, Load(live, clients=24) as clients:
        eventually(lambda: {200, 429} <= set(clients.codes), live)
        clients.reach(100)
        clients.stop()
        assert set(clients.codes) <= {200, 429}
        assert clients.broken == []
        assert live.metric("rest_deploy_queue_images") == 0
        assert live.ask("POST", INFER, b"{}").status == 400  # it has room again
