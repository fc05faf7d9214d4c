"""A run that is killed, again and again, ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from pyarrow import parquet

from rest_deploy.embed.run import Wishes, embed
from tests.embed.conftest import SIZE, fill
from tests.test_cli import done

CLONE = Path(__file__).resolve().parents[2]
DEADLINE = 540.0


def start(source: Path, output: Path, engine: Path, *options: object) -> subprocess.Popen[bytes]:
    words = ["embed", source, "-o", output, "--engine", engine, "--size", 32, *options]
    code = "import sys; from rest_deploy.cli import main; main(sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(CLONE)},
    )  # fmt: skip


def finish(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, said.decode()


def parts_of(output: Path) -> int:
    return len(list(output.with_name(f"{output.name}.parts").glob("_manifests/*.json")))


def kill_when(process: subprocess.Popen[bytes], output: Path, parts: int, wait: float) -> None:
    """`wait` seconds after there are `parts` parts, wherever it is then."""
    deadline = time.monotonic() + DEADLINE
    while parts_of(output) < parts:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(wait)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=DEADLINE)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def killed_thrice(
    tmp_path: Path, engine: Path, count: int, bad: int, *options: object
) -> tuple[Path, Path]:
    """Runs over `count` pictures, one undisturbed and one killed three times."""
    source = fill(tmp_path / "pictures", count, bad)
    whole, killed = tmp_path / "whole" / "out.parquet", tmp_path / "killed" / "out.parquet"
    finish(start(source, whole, engine, *options))
    chance = random.Random(count)
    shards = -(-count // int(str(options[options.index("--shard") + 1])))
    for parts in sorted(chance.sample(range(shards - 2), 3)):
        process = start(source, killed, engine, *options)
        kill_when(process, killed, parts, chance.uniform(0, 0.02))
        assert not killed.exists()
    finished = parts_of(killed)
    assert 0 < finished < shards
    finish(start(source, killed, engine, *options))
    return whole, killed


def test_killed_three_times(trained_nano: Path, tmp_path: Path) -> None:
    options = ("--batch", 4, "--shard", 12, "--logits")
    whole, killed = killed_thrice(tmp_path, trained_nano, 300, 5, *options)
    assert contents(whole.parent) == contents(killed.parent)
    names = parquet.read_table(whole).column("id").to_pylist()
    assert (len(names), len(set(names))) == (295, 295)


@pytest.mark.parametrize(
    "left",
    [
        ("out.parquet.json",),
        ("out.parquet", "out.parquet.json"),
        ("out.bad.parquet", "out.parquet", "out.parquet.json"),
    ],
)
def test_killed_while_merging(trained_nano: Path, tmp_path: Path, left: tuple[str, ...]) -> None:
    """The parts are all there, and some of the merged files: a rerun makes it whole."""
    source = [str(fill(tmp_path / "pictures", 30, 2))]
    whole, folder, again = (tmp_path / name / "out.parquet" for name in ("a", "b", "c"))
    wishes = Wishes(batch=4, shard=8, size=SIZE)
    embed(source, whole, trained_nano, wishes)
    embed(source, folder, trained_nano, replace(wishes, keep_parts=True))
    shutil.copytree(folder, again.with_name("out.parquet.parts"))
    for name, content in contents(whole.parent).items():
        if name not in left:
            (again.parent / name).write_bytes(content)
    assert embed(source, again, trained_nano, wishes).resumed == 30
    assert contents(again.parent) == contents(whole.parent)


class Memory:
    """Resident bytes of a process while it runs, by the share of the work that is done."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, shards: int) -> None:
        self.samples: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._watch, args=(process, output, shards))
        self._thread.start()

    def _watch(self, process: subprocess.Popen[bytes], output: Path, shards: int) -> None:
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                self.samples.append((parts_of(output) / shards, seen.memory_info().rss))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.1)

    def most(self, begin: float, end: float) -> int:
        self._thread.join()
        return max(size for share, size in self.samples if begin <= share < end)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return fill(tmp_path / "many", 10_000, 100)


@pytest.mark.slow
def test_ten_thousand_killed_three_times(trained_nano: Path, tmp_path: Path) -> None:
    whole, killed = killed_thrice(
        tmp_path, trained_nano, 10_000, 100, "--batch", 32, "--shard", 256, "--logits"
    )
    assert contents(whole.parent) == contents(killed.parent)
    assert parquet.read_table(whole).num_rows == 9_900


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_int8_killed_three_times(trained_nano: Path, tmp_path: Path, backend: str) -> None:
    """Integer kernels of either runtime: what an image's logits are does not depend on restarts."""
    pytest.importorskip(backend)
    words = ("--int8", "--backend", backend, "--workspace", tmp_path / "workspace")
    done("build-engine", trained_nano, *words)
    engine = tmp_path / "workspace" / f"rest_nano.int8.{backend}.onnx"
    # OpenVINO cannot compile this INT8 graph for 32x32, where attention has one key.
    options = ("--batch", 4, "--shard", 12, "--logits", "--size", 64)
    whole, killed = killed_thrice(tmp_path, engine, 300, 5, *options)
    assert contents(whole.parent) == contents(killed.parent)


@pytest.mark.slow
def test_memory_is_flat(trained_nano: Path, many: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    process = start(many, output, trained_nano, "--batch", 32, "--shard", 256)
    memory = Memory(process, output, 40)
    finish(process)
    early, late = memory.most(0.2, 0.5), memory.most(0.75, 1.01)
    assert late < early + 16 * 2**20, f"{early / 2**20:.0f} MB grew to {late / 2**20:.0f} MB"
