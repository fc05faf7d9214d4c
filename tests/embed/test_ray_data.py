"""The same shards through Ray Data. Ray is heavy: an environment of its own may bring it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from pyarrow import parquet

from rest_deploy.embed.job import Manifest, read_struct
from rest_deploy.embed.ray_data import Replica, _told, on_ray
from rest_deploy.embed.run import Wishes, Work, embed
from rest_deploy.errors import InputError, RestDeployError, installed
from rest_deploy.runtime.session import Session
from tests.embed.conftest import SIZE
from tests.embed.test_kill import contents

Pictures = Callable[..., Path]
CLONE = Path(__file__).resolve().parents[2]
VARIABLE = "REST_DEPLOY_RAY_PYTHON"
OPTIONS = ("--size", 32, "--batch", 4, "--shard", 8, "--threads", 1, "--logits")


@pytest.fixture
def python() -> str:
    found = os.environ.get(VARIABLE) or (sys.executable if installed("ray") else "")
    if not found:
        pytest.skip(f"no Ray here: pip install 'rest-deploy[ray]', or {VARIABLE}=its python")
    return found


def run(python: str, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    main = "import sys; from rest_deploy.cli import main; main(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(CLONE), "RAY_USAGE_STATS_ENABLED": "0"}
    result = subprocess.run(
        [python, "-c", main, *map(str, words)],
        capture_output=True, text=True, check=False, timeout=300, env=environment,
    )  # fmt: skip
    assert result.returncode == code, result.stdout + result.stderr
    return result


def test_threads_must_be_told(trained_nano: Path, pictures: Pictures, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--ray needs --threads"):
        embed([str(pictures(3))], tmp_path / "out.parquet", trained_nano, Wishes(size=SIZE),
              compute=on_ray())  # fmt: skip


def test_what_ray_says_is_told() -> None:
    found = _told(RuntimeError("\n the reason\nthe place"))
    assert type(found) is RestDeployError
    assert found.message == "Ray failed: the reason"
    assert _told(RuntimeError()).message == "Ray failed: RuntimeError"


def test_sources_must_be_found_from_anywhere(
    trained_nano: Path, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pictures(3)
    monkeypatch.chdir(source.parent)
    with pytest.raises(InputError, match="--ray needs full paths of sources, got pictures"):
        embed([source.name], tmp_path / "out.parquet", trained_nano,
              Wishes(size=SIZE, threads=1), compute=on_ray())  # fmt: skip


def opened(engine: Path, source: Path, output: Path) -> Work:
    """A job as replicas get it, its folder claimed."""
    kept: list[Work] = []

    def keep(work: Work, _session: Session, _shards: Sequence[int]) -> Any:
        kept.append(work)
        raise InterruptedError

    wishes = Wishes(size=SIZE, batch=4, shard=8, threads=1)
    with pytest.raises(InterruptedError):
        embed([str(source)], output, engine, wishes, compute=keep)
    return kept[0]


def test_replica(trained_nano: Path, pictures: Pictures, tmp_path: Path) -> None:
    """Without Ray: what an actor answers."""
    work = opened(trained_nano, pictures(10, 1), tmp_path / "out.parquet")
    work = pickle.loads(pickle.dumps(work))
    found = Replica(work)({"shard": np.array([1])})
    assert found == {"shard": [1], "images": [2], "kind": [""], "message": [""], "hint": [""]}
    manifest = read_struct(work.layout.manifest(1), Manifest)
    assert manifest is not None
    assert (manifest.rows, manifest.bad) == (1, 1)


@pytest.mark.parametrize(
    ("field", "value", "kind", "words"),
    [
        ("engine_sha256", "0" * 64, "ArtifactError", "the run has 000000000000"),
        ("tools", {"pillow": "1"}, "InputError", "the run was begun with {'pillow': '1'}"),
    ],
)
def test_a_node_unlike_the_others_is_refused(
    trained_nano: Path,
    pictures: Pictures,
    tmp_path: Path,
    field: str,
    value: object,
    kind: str,
    words: str,
) -> None:
    work = opened(trained_nano, pictures(10), tmp_path / "out.parquet")
    other = replace(work, job=msgspec.structs.replace(work.job, **{field: value}))
    found = Replica(other)({"shard": np.array([0])})
    assert found["kind"] == [kind]
    assert words in found["message"][0]


@pytest.mark.slow
def test_ray_and_one_process_go_on_with_each_other(
    python: str, trained_nano: Path, pictures: Pictures, tmp_path: Path
) -> None:
    words = ("embed", pictures(90, 3), "--engine", trained_nano, *OPTIONS)
    here, there = tmp_path / "here" / "out.parquet", tmp_path / "there" / "out.parquet"
    run(python, *words, "-o", here)
    run(python, *words, "-o", there, "--ray")
    assert contents(here.parent) == contents(there.parent)
    assert parquet.read_table(there).num_rows == 87

    parts = tmp_path / "parts"
    run(python, *words, "-o", parts, "--parts", "--ray", "--replicas", 2)
    for shard, other in ((0, ("--ray",)), (5, ()), (11, ("--ray",))):
        before = contents(parts)
        (parts / "_manifests" / f"part-{shard:06d}.json").unlink()
        (parts / f"part-{shard:06d}.parquet").write_bytes(b"half")
        text = run(python, *words, "-o", parts, "--parts", *other).stdout
        assert "resumed: " in text
        assert contents(parts) == before
    assert parquet.read_table(parts).equals(parquet.read_table(here))


@pytest.mark.slow
def test_ray_gives_every_output_that_one_process_gives(
    python: str, everything_nano: Path, pictures: Pictures, tmp_path: Path
) -> None:
    """Labels and embeddings from one run."""
    words = ("embed", pictures(30, 3), "--engine", everything_nano, *OPTIONS)
    here, there = tmp_path / "here" / "out.parquet", tmp_path / "there" / "out.parquet"
    run(python, *words, "-o", here)
    run(python, *words, "-o", there, "--ray")
    assert contents(here.parent) == contents(there.parent)
    assert {"label", "embedding"} <= set(parquet.read_table(there).column_names)


@pytest.mark.slow
def test_what_fails_on_a_node_is_told(
    python: str, trained_nano: Path, pictures: Pictures, tmp_path: Path
) -> None:
    """The list is read by nodes as it was written; a Parquet source that is gone is not."""
    import pyarrow

    source = tmp_path / "rows.parquet"
    images = [path.read_bytes() for path in sorted(pictures(9).rglob("*.png"))]
    parquet.write_table(pyarrow.table({"image": images}), source)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from rest_deploy.embed import run\n"
        "from rest_deploy.embed.ray_data import on_ray\n"
        "compute = on_ray()\n"
        "def gone(work, session, shards):\n"
        "    os.unlink(sys.argv[1])\n"
        "    yield from compute(work, session, shards)\n"
        "wishes = run.Wishes(size=(32, 32), threads=1)\n"
        "try:\n"
        "    run.embed(sys.argv[1:2], Path(sys.argv[2]), Path(sys.argv[3]), wishes, compute=gone)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(CLONE)}
    words = [str(source), str(tmp_path / "out.parquet"), str(trained_nano)]
    result = subprocess.run(
        [python, "-c", code, *words],
        capture_output=True, text=True, check=False, timeout=300, env=environment,
    )  # fmt: skip
    assert result.stdout.startswith("InputError no such file"), result.stdout + result.stderr
