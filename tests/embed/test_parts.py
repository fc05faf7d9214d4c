from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from pyarrow import parquet

from rest_deploy.artifact import TEMPORARY_PREFIX
from rest_deploy.cards import load_card
from rest_deploy.embed import parts
from rest_deploy.embed.answers import Form
from rest_deploy.embed.job import Job, Manifest, check_same
from rest_deploy.embed.parts import Answers, Layout
from rest_deploy.errors import ArtifactError, InputError, InvariantError
from rest_deploy.signature import Output

FORM = Form(embedding=Output(name="embedding", kind="embedding", channels=3))
JOB = Job(
    schema=1, sources=("photos dir",), column="", id_column="", count=10, list_sha256="0" * 64,
    engine="e.onnx", engine_sha256="1" * 64, weights_sha256="", runs_on="onnxruntime/cpu",
    threads=0, preprocessing=load_card("nano").preprocessing, size=(32, 32),
    answer="embeddings", labels_sha256="", top=0, logits=False, batch=2, shard=4,
    tools={"rest-deploy": "0", "pillow": "0"},
)  # fmt: skip


def answers(shard: int, bad: int = 1) -> Answers:
    """Of a shard of JOB: its last `bad` images have none."""
    names = [f"{number}.png" for number in range(4 * shard, min(4 * shard + 4, 10))]
    good, refused = names[: len(names) - bad], names[len(names) - bad :]
    values = np.full((len(good), 3), shard, np.float32)
    return Answers(
        [FORM.rows(tuple(good), {"embedding": values})], [(name, "why") for name in refused]
    )


def claimed(layout: Layout) -> None:
    with parts.scratch(layout) as folder:
        (folder / layout.list.name).write_text("[]\n")
    parts.claim(layout, JOB)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "out.parquet")


def finish(layout: Layout, order: tuple[int, ...] = (0, 1, 2)) -> None:
    with parts.locked(layout):
        claimed(layout)
        for shard in order:
            parts.write_part(layout, JOB, FORM, shard, answers(shard))
        parts.merge(layout, JOB, FORM, parts.finished_parts(layout, JOB))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_merged_in_the_order_of_the_list(layout: Layout) -> None:
    finish(layout, order=(2, 0, 1))
    found = parquet.read_table(layout.output)
    assert found.column("id").to_pylist() == [f"{n}.png" for n in (0, 1, 2, 4, 5, 6, 8)]
    bad = parquet.read_table(layout.bad).to_pylist()
    assert bad == [{"id": f"{n}.png", "reason": "why"} for n in (3, 7, 9)]
    assert found.schema.metadata[b"rest_deploy.engine"] == b"e.onnx"
    assert found.schema.metadata[b"rest_deploy.engine_sha256"] == b"1" * 64
    assert found.schema.metadata[b"rest_deploy.command"].startswith(
        b"rest-deploy embed 'photos dir' --engine e.onnx --size 32 --batch 2 --shard 4"
    )
    assert names(layout.output.parent) == ["out.bad.parquet", "out.parquet", "out.parquet.json"]


def test_the_order_of_work_does_not_show(tmp_path: Path) -> None:
    one, other = Layout(tmp_path / "a" / "o.parquet"), Layout(tmp_path / "b" / "o.parquet")
    finish(one)
    finish(other, order=(1, 2, 0))
    for name in ("output", "bad", "finished"):
        assert getattr(one, name).read_bytes() == getattr(other, name).read_bytes()


def test_row_groups_do_not_depend_on_parts(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP", 3)
    finish(layout)
    described = parquet.ParquetFile(layout.output).metadata
    rows = [described.row_group(index).num_rows for index in range(described.num_row_groups)]
    assert rows == [3, 3, 1]
    assert parquet.read_table(layout.output).num_rows == 7


@pytest.mark.parametrize("damage", ["part", "bad_part", "manifest"])
def test_a_part_counts_when_all_of_it_is_there(layout: Layout, damage: str) -> None:
    layout.folder.mkdir()
    parts.write_part(layout, JOB, FORM, 0, answers(0))
    assert set(parts.finished_parts(layout, JOB)) == {0}
    path: Path = getattr(layout, damage)(0)
    content = path.read_bytes()
    path.unlink()
    assert parts.finished_parts(layout, JOB) == {}
    if damage != "manifest":
        path.write_bytes(content[:-1])
        assert parts.finished_parts(layout, JOB) == {}


def test_parts_of_another_job_do_not_count(layout: Layout) -> None:
    layout.folder.mkdir()
    parts.write_part(layout, JOB, FORM, 0, answers(0))
    other = msgspec.structs.replace(JOB, engine_sha256="2" * 64)
    assert parts.finished_parts(layout, other) == {}


def test_a_damaged_manifest_is_named(layout: Layout) -> None:
    layout.folder.mkdir()
    parts.write_part(layout, JOB, FORM, 0, answers(0))
    layout.manifest(0).write_text('{"schema": 2}')
    with pytest.raises(ArtifactError, match=r"part-000000\.json is not this version's"):
        parts.finished_parts(layout, JOB)


@pytest.mark.parametrize("change", ["missing", "short"])
def test_every_image_once_or_nothing(layout: Layout, change: str) -> None:
    with parts.locked(layout):
        claimed(layout)
        for shard in range(3):
            parts.write_part(layout, JOB, FORM, shard, answers(shard))
        found = parts.finished_parts(layout, JOB)
        if change == "missing":
            del found[1]
        else:
            found[1] = msgspec.structs.replace(found[1], images=3)
        with pytest.raises(InvariantError):
            parts.merge(layout, JOB, FORM, found)
    assert not layout.output.exists()


def test_claims_of_another_job_are_refused(layout: Layout) -> None:
    with parts.locked(layout):
        claimed(layout)
        other = msgspec.structs.replace(JOB, engine_sha256="2" * 64, batch=4)
        with pytest.raises(InputError) as caught:
            parts.claim(layout, other)
    assert "engine_sha256 was 111111111111, is 222222222222; batch was 2, is 4" in str(caught.value)
    check_same(JOB, JOB, layout.folder)


def test_finished_output(layout: Layout) -> None:
    assert parts.finished_output(layout, JOB) is None
    finish(layout)
    found = parts.finished_output(layout, JOB)
    assert found is not None
    assert (found.rows, found.bad) == (7, 3)
    with pytest.raises(InputError, match="belongs to another run: top was 0, is 1"):
        parts.finished_output(layout, msgspec.structs.replace(JOB, top=1))
    layout.output.write_bytes(b"else")
    assert parts.finished_output(layout, JOB) is None


def test_a_file_that_nobody_explains_is_kept(layout: Layout) -> None:
    layout.output.write_bytes(b"mine")
    with pytest.raises(InputError, match="is there already"):
        parts.finished_output(layout, JOB)


@pytest.mark.parametrize("keep", [False, True])
def test_a_folder_of_other_things_is_kept(tmp_path: Path, keep: bool) -> None:
    layout = Layout(tmp_path / "out", keep)
    layout.folder.mkdir()
    (layout.folder / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.txt in it is not of a bulk run"), \
            parts.locked(layout):  # fmt: skip
        pass
    assert names(layout.folder) == ["mine.txt"]


def test_an_unclaimed_folder_goes(layout: Layout) -> None:
    with pytest.raises(RuntimeError), parts.locked(layout), parts.scratch(layout):
        raise RuntimeError
    assert not layout.folder.exists()


def _try_lock(layout: Layout, answer: multiprocessing.Queue[str]) -> None:
    try:
        with parts.locked(layout):
            answer.put("mine")
    except InputError as error:
        answer.put(error.message)


def test_one_run_at_a_time(layout: Layout) -> None:
    spawn = multiprocessing.get_context("spawn")
    answer: multiprocessing.Queue[str] = spawn.Queue()
    for held, expected in ((True, "another run is writing"), (False, "mine")):
        other = spawn.Process(target=_try_lock, args=(layout, answer))
        if held:
            with parts.locked(layout):
                other.start()
                assert expected in answer.get(timeout=60)
                other.join()
        else:
            other.start()
            assert expected in answer.get(timeout=60)
            other.join()


def test_parts_folder_reads_as_one(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "out", keep_parts=True)
    finish(layout)
    assert parquet.read_table(layout.output).num_rows == 7
    assert parquet.read_table(layout.bad).num_rows == 3
    assert parts.finished_output(layout, JOB) is not None
    layout.part(1).unlink()
    assert parts.finished_output(layout, JOB) is None


def test_nothing_in_the_metadata_tells_runs_apart() -> None:
    other = msgspec.structs.replace(JOB, list_sha256="3" * 64)
    assert other.metadata() == JOB.metadata()
    assert other.key != JOB.key


def test_manifest_counts(layout: Layout) -> None:
    layout.folder.mkdir()
    found = parts.write_part(layout, JOB, FORM, 2, answers(2, bad=2))
    assert isinstance(found, Manifest)
    assert (found.images, found.rows, found.bad) == (2, 0, 2)
    assert parquet.read_table(layout.part(2)).num_rows == 0


def test_clearing_may_end_anywhere(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the parts is still known to be theirs."""
    original = Path.unlink

    def ending(at: int) -> Callable[..., None]:
        calls = itertools.count(1)

        def unlink(path: Path, missing_ok: bool = False) -> None:
            if next(calls) == at:
                raise InterruptedError
            original(path, missing_ok=missing_ok)

        return unlink

    finish(layout)
    whole = {path.name: path.read_bytes() for path in layout.output.parent.iterdir()}
    for path in layout.output.parent.iterdir():
        path.unlink()
    for at in range(1, 7):  # three parts, the list, the job, the lock
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", ending(at))
            with pytest.raises(InterruptedError):
                finish(layout)
        with parts.locked(layout):
            found = parts.finished_output(layout, JOB)
            assert found is not None
            parts.clear(layout)
        assert {p.name: p.read_bytes() for p in layout.output.parent.iterdir()} == whole
        for path in layout.output.parent.iterdir():
            path.unlink()


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_kill_before_the_claim_leaves(tmp_path: Path, keep: bool) -> None:
    layout = Layout(tmp_path / "out.parquet", keep)
    layout.folder.mkdir()
    (layout.folder / "_lock").touch()
    (layout.folder / "_scratch").mkdir()
    (layout.folder / "_scratch" / "_list").write_text("half")
    (layout.folder / f"{TEMPORARY_PREFIX}1@elsewhere-x").mkdir()
    finish(layout)
    assert parts.finished_output(layout, JOB) is not None


def test_a_folder_that_looks_like_a_partition(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "day=1" / "out.parquet")
    finish(layout)
    assert parquet.ParquetFile(layout.output).schema_arrow.names == ["id", "embedding"]


def test_a_part_that_lies_about_its_rows(layout: Layout) -> None:
    """Manifests that add up, and a file that does not: nothing gets the output's name."""
    with parts.locked(layout):
        claimed(layout)
        for shard in range(3):
            parts.write_part(layout, JOB, FORM, shard, answers(shard))
        found = parts.finished_parts(layout, JOB)
        layout.part(0).write_bytes(layout.part(2).read_bytes())
        with pytest.raises(InvariantError, match="5 answers and 3 bad images; expected 10"):
            parts.merge(layout, JOB, FORM, found)
    assert not layout.output.exists()
