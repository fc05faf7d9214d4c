from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from rest_deploy.cards import load_card
from rest_deploy.embed import run
from rest_deploy.embed.answers import Form
from rest_deploy.embed.job import Manifest, Only
from rest_deploy.embed.parts import Answers
from rest_deploy.embed.pipeline import Batch
from rest_deploy.embed.run import EmbedReport, Wishes, Work, embed
from rest_deploy.errors import ArtifactError, InputError
from rest_deploy.preprocess import load_image, normalize, to_input, to_pixels
from rest_deploy.runtime.classifier import Classifier
from rest_deploy.runtime.session import Session
from rest_deploy.signature import InputKind, Output, OutputKind, outputs_for
from tests.embed.conftest import SIZE, picture

Pictures = Callable[..., Path]
WISHES = Wishes(batch=4, shard=8, size=SIZE, workers=2)


class Stopped(Exception):
    """What stands for a kill."""


def stopping(after: int) -> run.Compute:
    """Ends the work when `after` batches are done."""

    def compute(
        work: Work, session: Session, shards: Sequence[int]
    ) -> Iterator[tuple[int, int, Manifest | None]]:
        for count, step in enumerate(run.here(work, session, shards)):
            if count == after:
                raise Stopped
            yield step

    return compute


def embedded(source: Path, output: Path, engine: Path, wishes: Wishes = WISHES) -> EmbedReport:
    return embed([str(source)], output, engine, wishes)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_answers_are_the_classifiers(
    trained_nano: Path, pictures: Pictures, tmp_path: Path
) -> None:
    folder = pictures(10, 1)
    wishes = Wishes(batch=4, top=3, logits=True, workers=2)
    report = embedded(folder, tmp_path / "o" / "out.parquet", trained_nano, wishes)
    assert (report.images, report.rows, report.bad, report.resumed) == (10, 9, 1, 0)
    rows = parquet.read_table(tmp_path / "o" / "out.parquet").to_pylist()
    classifier = Classifier.open(trained_nano)
    for row in rows:
        expected = classifier.classify(row["id"], top=3)
        assert row["index"] == [found.index for found in expected]
        assert row["label"] == [found.label for found in expected]
        assert row["probability"] == pytest.approx([p.probability for p in expected], abs=1e-5)
    assert len(rows[0]["logits"]) == classifier.session.metadata.num_classes
    (bad,) = parquet.read_table(tmp_path / "o" / "out.bad.parquet").to_pylist()
    assert bad["id"].endswith("00009.png")
    assert "cannot be decoded" in bad["reason"] or "not an image" in bad["reason"]


@pytest.mark.parametrize("after", [0, 1, 2, 3, 6, 7])
def test_stopped_and_resumed_is_undisturbed(
    trained_nano: Path, pictures: Pictures, tmp_path: Path, after: int
) -> None:
    folder = pictures(30, 2)
    embedded(folder, tmp_path / "whole" / "out.parquet", trained_nano)
    output = tmp_path / "halves" / "out.parquet"
    with pytest.raises(Stopped):
        embed([str(folder)], output, trained_nano, WISHES, compute=stopping(after))
    assert not output.exists()
    report = embedded(folder, output, trained_nano)
    assert report.resumed == min(30, (after + 1) // 2 * 8)  # the step it ended in was done
    assert files(output.parent) == files(tmp_path / "whole")
    assert len(files(output.parent)) == 3


def test_workers_and_parts_do_not_show(
    trained_nano: Path, pictures: Pictures, tmp_path: Path
) -> None:
    folder = pictures(20)
    one = Wishes(batch=4, shard=8, size=SIZE, workers=1)
    many = Wishes(batch=4, shard=8, size=SIZE, workers=8)
    embedded(folder, tmp_path / "a" / "out.parquet", trained_nano, one)
    embedded(folder, tmp_path / "b" / "out.parquet", trained_nano, many)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    parted = Wishes(batch=4, shard=8, size=SIZE, keep_parts=True)
    embedded(folder, tmp_path / "c" / "out", trained_nano, parted)
    whole = parquet.read_table(tmp_path / "a" / "out.parquet")
    assert parquet.read_table(tmp_path / "c" / "out").equals(whole)


def test_logits_depend_on_the_image_alone(
    trained_nano: Path, pictures: Pictures, tmp_path: Path
) -> None:
    """A neighbour that turns bad changes nothing else."""
    folder = pictures(12)
    wishes = Wishes(batch=4, size=SIZE, logits=True)
    embedded(folder, tmp_path / "a.parquet", trained_nano, wishes)
    sorted(folder.rglob("*.png"))[5].write_bytes(b"no image")
    embedded(folder, tmp_path / "b.parquet", trained_nano, wishes)
    before = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    after = parquet.read_table(tmp_path / "b.parquet").to_pylist()
    assert after == before[:5] + before[6:]


def test_again_computes_nothing(trained_nano: Path, pictures: Pictures, tmp_path: Path) -> None:
    folder, output = pictures(9), tmp_path / "o" / "out.parquet"
    embedded(folder, output, trained_nano)
    before = files(output.parent)
    embed([str(folder)], output, trained_nano, WISHES, compute=stopping(0))
    assert files(output.parent) == before
    assert not output.with_name("out.parquet.parts").exists()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("change", ["engine", "sources", "contents", "options"])
def test_another_job_is_refused(
    exported_nano: Path,
    trained_nano: Path,
    pictures: Pictures,
    tmp_path: Path,
    finished: bool,
    change: str,
) -> None:
    folder, output = pictures(20), tmp_path / "out.parquet"
    if finished:
        embedded(folder, output, trained_nano)
    else:
        with pytest.raises(Stopped):
            embed([str(folder)], output, trained_nano, WISHES, compute=stopping(3))
    engine, wishes = trained_nano, WISHES
    if change == "engine":
        engine, word = exported_nano, "engine_sha256"
    elif change == "sources":
        (folder / "more.png").write_bytes(picture(99))
        word = "count was 20, is 21"
    elif change == "contents":
        (folder / "0" / "00000.png").write_bytes(picture(99) + b" ")
        word = "list_sha256"
    else:
        wishes, word = Wishes(batch=4, shard=8, size=SIZE, top=2), "top was 5, is 2"
    with pytest.raises(InputError, match=word):
        embedded(folder, output, engine, wishes)
    assert output.exists() == finished


def test_embeddings(tmp_path: Path, pictures: Pictures) -> None:
    from rest_deploy import verbs

    verbs.export("nano", output_dir=tmp_path / "e", num_classes=0)
    engine = tmp_path / "e" / "rest_nano.onnx"
    report = embedded(pictures(5), tmp_path / "out.parquet", engine)
    assert report.answer == "embeddings"
    (row, *_) = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    with Session.open(engine) as session:
        preprocessing = session.metadata.card.preprocessing
        pixels = to_pixels(load_image(row["id"]), preprocessing, SIZE)
        expected = session.run(normalize(pixels, preprocessing)[None])[0]
    assert row["embedding"] == pytest.approx(expected.tolist(), abs=1e-4)
    with pytest.raises(InputError, match="gives embedding, and no logits"):
        embedded(pictures(5), tmp_path / "other.parquet", engine, Wishes(logits=True))


@pytest.mark.parametrize("only", ["", "labels", "embeddings"])
@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_an_engine_that_gives_both(
    everything_nano: Path, pixels_nano: Path, pictures: Pictures, tmp_path: Path,
    kind: InputKind, only: Only,
) -> None:  # fmt: skip
    engine = everything_nano if kind == "float" else pixels_nano
    report = embedded(
        pictures(3), tmp_path / "out.parquet", engine, Wishes(only=only, top=2, size=SIZE, batch=4)
    )
    assert report.answer == (only or "labels and embeddings")
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    labels, vector = ["index", "label", "probability"], ["embedding"]
    kept = {"": labels + vector, "labels": labels, "embeddings": vector}[only]
    with Session.open(engine) as session:
        card = session.metadata.card.preprocessing
        for row in rows:
            assert list(row) == ["id", *kept]
            image = to_input(load_image(row["id"]), kind, card, SIZE)
            expected = session.run_all(image[None])
            if only != "labels":
                wanted = expected["embedding"][0].tolist()
                assert row["embedding"] == pytest.approx(wanted, abs=1e-4)
            if only != "embeddings":
                shares = expected["probabilities"][0]
                assert row["index"] == np.argsort(-shares, kind="stable")[:2].tolist()
                wanted = np.sort(shares)[::-1][:2].tolist()
                assert row["probability"] == pytest.approx(wanted, abs=1e-4)
    other: Only = "labels" if only == "embeddings" else "embeddings"
    with pytest.raises(InputError, match="only"):
        embedded(
            pictures(3),
            tmp_path / "out.parquet",
            engine,
            Wishes(only=other, top=2, size=SIZE, batch=4),
        )


def gives(*kinds: OutputKind) -> Any:
    outputs = outputs_for(kinds, load_card("nano").architecture, 22)
    metadata = SimpleNamespace(gives=outputs, labels=("a",) * 22)
    return SimpleNamespace(metadata=metadata, path=Path("e.onnx"))


def test_what_is_kept_of_an_engines_outputs() -> None:
    form = run.form_of(gives("features", "probabilities", "logits", "embedding"), Wishes())
    assert [one.name for one in form.outputs] == ["logits", "embedding"]
    assert len(form.labels) == 22
    form = run.form_of(gives("logits", "embedding"), Wishes(only="embeddings"))
    assert ([one.name for one in form.outputs], form.labels) == (["embedding"], ())


@pytest.mark.parametrize(
    ("kinds", "wishes", "words"),
    [
        (("features",), Wishes(), "gives c2, c3, c4, c5: neither labels nor an embedding"),
        (("logits",), Wishes(only="embeddings"), "--only embeddings: e.onnx gives logits"),
        (("embedding",), Wishes(only="labels"), "--only labels: e.onnx gives embedding"),
        (("probabilities",), Wishes(logits=True), "and no logits"),
        (("logits", "embedding"), Wishes(only="embeddings", logits=True), "only embeddings are"),
    ],
)
def test_outputs_that_do_not_do(kinds: tuple[OutputKind, ...], wishes: Wishes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run.form_of(gives(*kinds), wishes)


def test_parquet_sources_give_the_same(
    trained_nano: Path, pictures: Pictures, tmp_path: Path
) -> None:
    """Photos larger than their rows: the answers are those of the files."""
    folder = pictures(20)
    paths = sorted(folder.rglob("*.png"))
    table = pyarrow.table(
        {"name": [str(p) for p in paths], "image": [p.read_bytes() for p in paths]}
    )
    parquet.write_table(table, tmp_path / "images.parquet", row_group_size=7)
    embedded(folder, tmp_path / "a.parquet", trained_nano)
    wishes = Wishes(batch=4, shard=8, size=SIZE, id_column="name")
    output = tmp_path / "b.parquet"
    with pytest.raises(Stopped):
        embed([str(tmp_path / "images.parquet")], output, trained_nano, wishes,
              compute=stopping(3))  # fmt: skip
    embedded(tmp_path / "images.parquet", output, trained_nano, wishes)
    assert parquet.read_table(tmp_path / "a.parquet").equals(parquet.read_table(output))


@pytest.mark.parametrize(("max_bad", "failed"), [(None, False), (0.2, False), (0.19, True)])
def test_too_many_bad(
    trained_nano: Path, pictures: Pictures, tmp_path: Path, max_bad: float | None, failed: bool
) -> None:
    wishes = Wishes(batch=4, size=SIZE, max_bad=max_bad)
    report = embedded(pictures(10, 2), tmp_path / "out.parquet", trained_nano, wishes)
    assert report.too_many_bad == failed
    assert parquet.read_table(tmp_path / "out.parquet").num_rows == 8


def test_all_bad(trained_nano: Path, pictures: Pictures, tmp_path: Path) -> None:
    report = embedded(pictures(3, 3), tmp_path / "out.parquet", trained_nano)
    assert (report.rows, report.bad) == (0, 3)
    assert parquet.read_table(tmp_path / "out.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (Wishes(batch=4, shard=6), "--shard 6 is no multiple of --batch 4"),
        (Wishes(size=(16, 64)), "--size 16x64"),
    ],
)
def test_wishes_that_do_not_fit(
    trained_nano: Path, pictures: Pictures, tmp_path: Path, wishes: Wishes, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        embedded(pictures(1), tmp_path / "out.parquet", trained_nano, wishes)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


class Broken:
    """A session whose answers are as given."""

    path = Path("e.onnx")

    def __init__(self, answers: npt.NDArray[np.float32]) -> None:
        self._answers = answers

    def run_all(self, _images: object) -> dict[str, npt.NDArray[np.float32]]:
        return {"embedding": self._answers}


THREE = Form(embedding=Output(name="embedding", kind="embedding", channels=3))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_is_no_answer(value: float) -> None:
    images = np.zeros((4, 3, *SIZE), np.float32)
    batch = Batch(images, ("a", "b", "c"), {1: "why"})
    answers = np.zeros((4, 3), np.float32)
    answers[[1, 3]] = value  # of a bad image, and of an empty slot: nobody asked
    into = Answers([], [])
    run._answer(THREE, Broken(answers), batch, into)  # type: ignore[arg-type]
    assert (into.batches[0].num_rows, into.bad) == (2, [("b", "why")])
    answers[2, 0] = value
    with pytest.raises(ArtifactError, match="embedding with NaN or infinity for c"):
        run._answer(THREE, Broken(answers), batch, into)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="expected 3 values for each"):
        run._answer(THREE, Broken(answers[:, :2]), batch, into)  # type: ignore[arg-type]


def test_progress_counts_images(trained_nano: Path, pictures: Pictures, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    embed([str(pictures(10, 1))], tmp_path / "out.parquet", trained_nano, WISHES,
          watch=lambda *now: seen.append(now))  # fmt: skip
    assert seen == [(0, 10, 0), (4, 10, 0), (8, 10, 0), (10, 10, 1)]


def test_no_time_is_in_the_files(trained_nano: Path, pictures: Pictures, tmp_path: Path) -> None:
    folder = pictures(5)
    embedded(folder, tmp_path / "a" / "out.parquet", trained_nano)
    time.sleep(0.01)
    shutil.copytree(tmp_path / "a", tmp_path / "kept")
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    embedded(folder, tmp_path / "a" / "out.parquet", trained_nano)
    assert files(tmp_path / "a") == files(tmp_path / "kept")
    finished = json.loads((tmp_path / "a" / "out.parquet.json").read_text())
    assert finished["job"]["engine_sha256"] in str(
        parquet.read_schema(tmp_path / "a" / "out.parquet").metadata
    )


def test_a_photo_of_any_kind_of_pixels(trained_nano: Path, tmp_path: Path) -> None:
    """Preprocessing is the package's own: grey, palette and CMYK are images like others."""
    (tmp_path / "modes").mkdir()
    for mode in ("L", "P", "CMYK", "RGBA"):
        stream = io.BytesIO()
        Image.new(mode, (40, 40)).save(stream, "TIFF")
        (tmp_path / "modes" / f"{mode}.tif").write_bytes(stream.getvalue())
    report = embedded(tmp_path / "modes", tmp_path / "out.parquet", trained_nano)
    assert (report.rows, report.bad) == (4, 0)


def test_a_slash_at_the_end_is_the_same_source(
    trained_nano: Path, pictures: Pictures, tmp_path: Path
) -> None:
    folder, output = pictures(5), tmp_path / "out.parquet"
    embed([str(folder)], output, trained_nano, WISHES)
    assert embed([f"{folder}/"], output, trained_nano, WISHES).resumed == 5
