"""Files are complete or not there, and their sidecars tell when something was swapped."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from rest_deploy import artifact
from rest_deploy.artifact import (
    TEMPORARY_PREFIX,
    Parity,
    Sidecar,
    newest,
    output_error,
    parse_metadata,
    publish,
    publish_folders,
    read_sidecar,
    sha256_file,
    sidecar_path,
    staging,
    to_json,
    workspace,
    write_text,
)
from rest_deploy.cards import load_card
from rest_deploy.contracts import ModelMetadata, Weights
from rest_deploy.errors import ArtifactError, InputError, OutputError, RestDeployError

HELLO_SHA256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
"""Of the five bytes b"hello"."""

METADATA = ModelMetadata(
    schema=1,
    variant="nano",
    card=load_card("nano"),
    num_classes=2,
    labels=("cat", "dog"),
    input_name="image",
    output_name="logits",
    instance_norm="folded",
    opset=18,
    weights=Weights(kind="fresh", state_sha256="0" * 64),
    tools={"torch": "2.13.0"},
)


def sidecar_of(path: Path) -> Sidecar:
    return Sidecar(
        schema=1,
        kind="onnx",
        file=path.name,
        sha256=sha256_file(path),
        size_bytes=path.stat().st_size,
        metadata=METADATA,
        parity=Parity(
            reference="float64",
            relative_error=1e-6,
            max_abs_error=1e-5,
            agreement=1.0,
            bound=1e-5,
            cases=("1x3x224x224",),
        ),
        passes={"folded": 3},
        command="rest-deploy export --variant nano",
    )


def publish_bytes(content: bytes, target: Path) -> None:
    with staging(target.parent) as folder:
        staged = folder / target.name
        staged.write_bytes(content)
        publish(staged, target, sidecar_of(staged))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A published model with its sidecar, alone in a workspace."""
    target = tmp_path / "workspace" / "nano.onnx"
    publish_bytes(b"old model", target)
    return target


FILE_SIZE_LIMIT = 4096


@contextlib.contextmanager
def file_size_limit() -> Iterator[None]:
    """Writes beyond so many bytes fail, as on a full disk, for root as well.

    Around single calls only, no fixture: pytest's own output may go to a longer file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE_LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestHashAndJson:
    def test_sha256_is_the_known_one(self, tmp_path: Path) -> None:
        path = tmp_path / "hello"
        path.write_bytes(b"hello")
        assert sha256_file(path) == HELLO_SHA256

    def test_json_of_a_sidecar_reads_back_equal(self, model: Path) -> None:
        sidecar = sidecar_of(model)
        assert msgspec.json.decode(to_json(sidecar), type=Sidecar) == sidecar

    def test_json_is_indented_and_ends_with_a_newline(self) -> None:
        assert to_json({"b": 1, "a": [2]}) == '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}\n'


class TestWorkspace:
    def test_option_wins_then_the_variable_then_build(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REST_DEPLOY_WORKSPACE", "from/variable")
        assert workspace(Path("from/option")) == Path("from/option")
        assert workspace(None) == Path("from/variable")
        monkeypatch.delenv("REST_DEPLOY_WORKSPACE")
        assert workspace(None) == Path("build")

    def test_empty_variable_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REST_DEPLOY_WORKSPACE", "")
        assert workspace(None) == Path("build")


class TestStaging:
    def test_folder_is_below_the_target_and_goes_away(self, tmp_path: Path) -> None:
        target = tmp_path / "deep" / "workspace"
        with staging(target) as folder:
            (folder / "half").write_text("x", encoding="utf-8")
            assert folder.parent == target
            assert folder.is_dir()
        assert names(target) == set()

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
    def test_nothing_stays_behind_on_an_exception(
        self, tmp_path: Path, error: type[BaseException]
    ) -> None:
        def fail() -> None:
            with staging(tmp_path) as folder:
                (folder / "half").write_text("x", encoding="utf-8")
                raise error("stop")

        with pytest.raises(error, match="stop"):
            fail()
        assert names(tmp_path) == set()

    def test_folder_of_a_dead_process_is_swept(self, tmp_path: Path) -> None:
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        leftover = tmp_path / f"{TEMPORARY_PREFIX}{process.pid}@{platform.node()}-abc"
        leftover.mkdir()
        (leftover / "half.onnx").write_bytes(b"half")
        with staging(tmp_path):
            assert not leftover.exists()

    @pytest.mark.parametrize(
        "pid", [os.getpid, os.getppid, lambda: 1], ids=["own", "parent", "init"]
    )
    def test_folder_of_a_live_process_is_not_swept(
        self, tmp_path: Path, pid: Callable[[], int]
    ) -> None:
        theirs = tmp_path / f"{TEMPORARY_PREFIX}{pid()}@{platform.node()}-abc"
        theirs.mkdir()
        with staging(tmp_path):
            pass
        assert theirs.is_dir()

    def test_folder_of_another_user_is_not_swept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(pid: int, number: int) -> None:
            assert (pid, number) == (12345, 0)
            raise PermissionError(errno.EPERM, "Operation not permitted")

        theirs = tmp_path / f"{TEMPORARY_PREFIX}12345@{platform.node()}-abc"
        theirs.mkdir()
        monkeypatch.setattr(os, "kill", refuse)
        with staging(tmp_path):
            pass
        assert theirs.is_dir()

    @pytest.mark.parametrize(
        "name", ["mine", f"{TEMPORARY_PREFIX}notes", f"{TEMPORARY_PREFIX}-1-x"]
    )
    def test_folder_that_is_not_ours_is_not_swept(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).mkdir()
        with staging(tmp_path):
            pass
        assert names(tmp_path) == {name}

    def test_folder_with_an_impossible_process_number(self, tmp_path: Path) -> None:
        (tmp_path / f"{TEMPORARY_PREFIX}{10**20}@{platform.node()}-x").mkdir()
        with staging(tmp_path):
            pass

    def test_what_a_killed_run_leaves_is_swept_by_the_next(self, tmp_path: Path) -> None:
        code = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from rest_deploy.artifact import staging\n"
            "with staging(Path(sys.argv[1])) as folder:\n"
            "    (folder / 'half').write_text('x')\n"
            "    print(folder.name, flush=True)\n"
            "    time.sleep(60)\n"
        )
        root = str(Path(artifact.__file__).parents[1])
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root
        )
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        with staging(tmp_path):
            assert (tmp_path / name / "half").is_file(), "swept while its process was running"
        process.kill()
        process.communicate()
        assert names(tmp_path) == {name}
        with staging(tmp_path):
            assert not (tmp_path / name).exists()

    def test_own_errors_pass_unchanged(self, tmp_path: Path) -> None:
        def fail() -> None:
            with staging(tmp_path):
                raise InputError("the image is too small")

        with pytest.raises(InputError, match="the image is too small"):
            fail()


class TestOutputErrors:
    def test_directory_below_a_regular_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x", encoding="utf-8")
        with (
            pytest.raises(OutputError, match="Not a directory") as caught,
            staging(tmp_path / "file" / "workspace"),
        ):
            pytest.fail("the folder cannot exist")
        assert caught.value.exit_code == 5
        assert "--output-dir" in (caught.value.hint or "")
        assert (tmp_path / "file").read_text(encoding="utf-8") == "x"

    def test_write_beyond_the_limit_keeps_the_previous_file(self, tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        write_text(path, "previous")
        with pytest.raises(OutputError, match="File too large"), file_size_limit():
            write_text(path, "x" * (FILE_SIZE_LIMIT + 1))
        assert path.read_text(encoding="utf-8") == "previous"
        assert names(tmp_path) == {"report.json"}

    def test_model_beyond_the_limit_keeps_the_previous_one(self, model: Path) -> None:
        with pytest.raises(OutputError) as caught, file_size_limit():
            publish_bytes(b"x" * (FILE_SIZE_LIMIT + 1), model)
        assert caught.value.exit_code == 5
        assert model.read_bytes() == b"old model"
        assert read_sidecar(model) is not None
        assert names(model.parent) == {"nano.onnx", "nano.onnx.json"}

    @pytest.mark.parametrize("function", ["fsync", "replace"])
    def test_full_disk_at_the_last_step(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, function: str
    ) -> None:
        def full(*arguments: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, function, full)
        with pytest.raises(OutputError, match="No space left on device") as caught:
            publish_bytes(b"new model", model)
        assert (caught.value.hint or "").startswith("free space there")
        assert model.read_bytes() == b"old model"
        assert read_sidecar(model) is not None
        assert names(model.parent) == {"nano.onnx", "nano.onnx.json"}

    def test_other_reasons_do_not_talk_of_space(self, tmp_path: Path) -> None:
        error = output_error(tmp_path, PermissionError(errno.EACCES, "Permission denied"))
        assert "Permission denied" in error.message
        assert "free space" not in str(error)

    def test_directory_in_the_place_of_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "report.json").mkdir()
        with pytest.raises(OutputError):
            write_text(tmp_path / "report.json", "text")
        assert names(tmp_path) == {"report.json"}

    def test_sidecar_that_cannot_be_replaced_keeps_the_model(self, model: Path) -> None:
        sidecar_path(model).unlink()
        sidecar_path(model).mkdir()
        with pytest.raises(OutputError):
            publish_bytes(b"new model", model)
        assert model.read_bytes() == b"old model"


class TestPublish:
    def test_model_and_sidecar_get_their_names(self, model: Path) -> None:
        assert names(model.parent) == {"nano.onnx", "nano.onnx.json"}
        assert model.read_bytes() == b"old model"
        sidecar = read_sidecar(model)
        assert sidecar is not None
        assert (sidecar.file, sidecar.size_bytes) == ("nano.onnx", 9)

    def test_new_version_replaces_both(self, model: Path) -> None:
        publish_bytes(b"new model!", model)
        sidecar = read_sidecar(model)
        assert model.read_bytes() == b"new model!"
        assert sidecar is not None
        assert sidecar.size_bytes == 10

    def test_replacing_does_not_write_into_the_old_file(self, model: Path) -> None:
        """A process that has the old model mapped keeps reading the old model."""
        kept = model.with_name("kept")
        kept.hardlink_to(model)
        with model.open("rb") as stream:
            publish_bytes(b"new model", model)
            assert stream.read() == b"old model"
        assert kept.read_bytes() == b"old model"
        assert model.read_bytes() == b"new model"

    def test_everything_is_written_before_the_first_rename(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replace = os.replace
        seen: list[Path] = []

        def watch(source: Path, target: Path) -> None:
            if not seen:
                assert model.read_bytes() == b"old model"
                assert source.read_bytes() == b"new model"
                assert sidecar_path(source).is_file()
            seen.append(target)
            replace(source, target)

        monkeypatch.setattr(os, "replace", watch)
        publish_bytes(b"new model", model)
        assert seen == [model, sidecar_path(model)]

    def test_ctrl_c_waits_until_both_are_renamed(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replace = os.replace

        def interrupted(source: Path, target: Path) -> None:
            replace(source, target)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(os, "replace", interrupted)
        # Set here: a test run in the background ignores SIGINT.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                publish_bytes(b"new model", model)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        finally:
            signal.signal(signal.SIGINT, before)
        assert model.read_bytes() == b"new model"
        assert read_sidecar(model) is not None, "model and sidecar are of one version"


class TestReadSidecar:
    def test_without_one(self, tmp_path: Path) -> None:
        assert read_sidecar(tmp_path / "x.onnx") is None

    def test_changed_bytes_are_noticed(self, model: Path) -> None:
        model.write_bytes(b"old m0del")
        with pytest.raises(ArtifactError, match="one of the two was replaced") as caught:
            read_sidecar(model)
        assert sha256_file(model)[:12] in caught.value.message
        assert "nano.onnx.json" in (caught.value.hint or "")
        assert caught.value.exit_code == 3

    def test_changed_bytes_pass_where_the_hash_is_not_asked_for(self, model: Path) -> None:
        model.write_bytes(b"changed")
        assert read_sidecar(model, check_hash=False) is not None

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            ('"kind": "onnx"', '"kind": "picture"', "$.kind"),
            ('"size_bytes": 9', '"size_bytes": "9"', "$.size_bytes"),
            ('"schema": 1', '"schema": 1, "extra": 2', "unknown field `extra`"),
            ('"variant": "nano",\n    "card"', '"card"', "missing required field `variant`"),
            ("{", "[", "damaged"),
        ],
    )
    def test_damaged_one_names_the_field(self, model: Path, old: str, new: str, told: str) -> None:
        path = sidecar_path(model)
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(ArtifactError) as caught:
            read_sidecar(model)
        assert told in str(caught.value)
        assert "export the model again" in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"{", b"null"])
    def test_cut_off_one(self, model: Path, content: bytes) -> None:
        sidecar_path(model).write_bytes(content)
        with pytest.raises(ArtifactError, match="is damaged"):
            read_sidecar(model)

    def test_one_that_is_not_utf8(self, model: Path) -> None:
        sidecar_path(model).write_bytes(b'{"schema": 1, "kind": "\xff"}')
        with pytest.raises(ArtifactError):
            read_sidecar(model)

    def test_one_whose_model_is_gone(self, model: Path) -> None:
        model.unlink()
        with pytest.raises(RestDeployError):
            read_sidecar(model)


class TestNewest:
    def test_the_one_written_last(self, model: Path) -> None:
        later = model.with_name("a.onnx")
        publish_bytes(b"later", later)
        os.utime(model, (2_000_000_000, 2_000_000_000))
        assert newest(model.parent, ".onnx") == model
        os.utime(later, (2_100_000_000, 2_100_000_000))
        assert newest(model.parent, ".onnx") == later

    def test_files_without_sidecar_do_not_count(self, model: Path) -> None:
        foreign = model.with_name("foreign.onnx")
        foreign.write_bytes(b"x")
        os.utime(foreign, (2_000_000_000, 2_000_000_000))
        assert newest(model.parent, ".onnx") == model

    @pytest.mark.parametrize("folder", ["", "not/there"])
    def test_none_says_how_to_get_one(self, tmp_path: Path, folder: str) -> None:
        with pytest.raises(InputError, match="no exported model") as caught:
            newest(tmp_path / folder, ".onnx")
        assert (caught.value.hint or "").startswith("rest-deploy export")


class TestMetadata:
    def test_reads_back_equal(self) -> None:
        assert parse_metadata(to_json(METADATA), Path("x.onnx")) == METADATA

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            (None, "was not written by rest-deploy"),
            ("{}", "missing required field"),
            ('{"schema": 2}', "schema"),
        ],
    )
    def test_foreign_or_old_one_is_refused(self, text: str | None, told: str) -> None:
        with pytest.raises(ArtifactError, match=told) as caught:
            parse_metadata(text, Path("x.onnx"))
        assert "x.onnx" in caught.value.message
        assert caught.value.hint


def test_small_texts_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    write_text(path, "käfer\n")
    write_text(path, "grille\n")
    assert path.read_bytes() == b"grille\n"
    assert names(path.parent) == {"report.json"}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two new folders staged inside a root with an old and an obsolete one."""
    root = tmp_path / "root"
    staged = root / f"{TEMPORARY_PREFIX}1"
    for folder, content in (
        (staged / "a", "new"), (staged / "b", "new"), (root / "a", "old"), (root / "gone", "old"),
    ):  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "file").write_text(content)
    return staged, root


def contents(root: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in root.glob("[ab g]*/file")}


def test_folders_are_published_together(folders: tuple[Path, Path]) -> None:
    staged, root = folders
    publish_folders(staged, root, ["a", "b"], ["gone"])
    assert contents(root) == {"a": "new", "b": "new"}


@pytest.mark.parametrize("fails_at", range(4))
def test_folders_are_published_all_or_none(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    staged, root = folders
    moves, real = [0], os.replace

    def replace(source: Path, target: Path) -> None:
        moves[0] += 1
        if moves[0] == fails_at + 1:
            raise OSError(errno.EIO, "broken")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="broken"):
        publish_folders(staged, root, ["a", "b"], ["gone"])
    assert contents(root) == {"a": "old", "gone": "old"}
    assert sorted(path.name for path in staged.glob("[ab]")) == ["a", "b"]
