"""The command line as a user meets it: one line of error, an exit code, nothing half-written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save, save_file

from rest_deploy import __version__
from rest_deploy.artifact import TEMPORARY_PREFIX, read_sidecar, sha256_file, sidecar_path
from rest_deploy.cli import main

State = dict[str, torch.Tensor]

CLONE = Path(__file__).resolve().parents[1]
CLASSES = 10
"""Of the checkpoints made here."""

COMMANDS = (
    "bench", "build-engine", "calibrate", "compare", "deploy", "doctor", "embed", "export",
    "inspect", "k8s", "lint", "predict", "profile", "quantize", "ray-serve", "refit", "report",
    "selftest", "sensitivity", "serve", "triton-check", "triton-repo", "variants", "verify",
)  # fmt: skip
HEAVY = {"torch", "onnxruntime", "onnx", "onnxscript", "numpy", "PIL", "safetensors"}

INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""A shell that starts pytest in the background has it ignore SIGINT, and so its children."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    """Standard output of a command that succeeds."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(result: Result, code: int, *words: str) -> None:
    """One `error: ...` line and at most one of hint, last on stderr, and nothing on stdout."""
    error_of(result.stderr, *words)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""


def error_of(stderr: str, *words: str) -> None:
    lines = stderr.splitlines()
    errors = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    after = lines[errors[0] + 1 :]
    assert len(after) <= 1, stderr
    assert all(line.startswith("       ") for line in after), stderr
    said = " ".join(lines[errors[0] :])
    assert [word for word in words if word not in said] == [], said


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of everything below `folder`; folders have none."""
    return {
        str(path.relative_to(folder)): sha256_file(path) if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """No file of `folder` changes, none comes, none goes."""
    before = contents(folder)
    yield
    assert contents(folder) == before


def eventually(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until `condition` holds while `process` runs."""
    deadline = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, f"it ended first: {process.communicate()}"
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


@pytest.fixture
def workspace(exported_nano: Path, tmp_path: Path) -> Path:
    """A folder with a good export."""
    folder = tmp_path / "workspace"
    shutil.copytree(exported_nano.parent, folder)
    return folder


@pytest.fixture
def model(workspace: Path) -> Path:
    """A copy of the exported model that a test may damage."""
    return workspace / "rest_nano.onnx"


@pytest.fixture(scope="module")
def weights() -> State:
    """A state dict of nano."""
    from rest_deploy.cards import load_card
    from rest_deploy.model.rest import ResT

    torch.manual_seed(1)
    return dict(ResT(load_card("nano").architecture, CLASSES).state_dict())


@pytest.fixture
def checkpoint(weights: State, tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(pixels()).save(path)
    return path


@pytest.fixture
def fast_trace(exported_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export takes the graph exported before instead of tracing: what follows is what is tested."""
    import onnx_ir

    from rest_deploy.graph import export

    def trace(*_arguments: object) -> tuple[Any, dict[str, int]]:
        return onnx_ir.load(exported_nano), {}

    monkeypatch.setattr(export, "trace", trace)


def pixels(height: int = 90, width: int = 130) -> npt.NDArray[np.uint8]:
    """A gradient with noise: no two turns of it look alike."""
    noise = np.random.default_rng(0).integers(0, 64, (height, width, 3))
    ramp = np.linspace(0, 191, width)[None, :, None] * np.array([1.0, 0.6, 0.2])
    return np.asarray(noise + ramp, dtype=np.uint8)


# --- what `export` refuses ---------------------------------------------------------------------


def refuses_export(workspace: Path, code: int, words: list[str], *options: object) -> None:
    with untouched(workspace):
        result = run("export", "--variant", "nano", "--output-dir", workspace, *options)
    refused(result, code, *words)


def refuses_checkpoint(workspace: Path, path: Path, *words: str) -> None:
    refuses_export(workspace, 3, [path.name, *words], "--checkpoint", path)


def test_unknown_variant(workspace: Path) -> None:
    refuses_export(workspace, 3, ["'nanno'", "lite", "did you mean 'nano'?"], "--variant", "nanno")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_truncated_pth(workspace: Path, checkpoint: Path, keep: float) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(keep * len(whole))])
    refuses_checkpoint(workspace, checkpoint, "not a complete PyTorch checkpoint")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_truncated_safetensors(
    workspace: Path, weights: State, tmp_path: Path, keep: float
) -> None:
    path = tmp_path / "weights.safetensors"
    whole = save(weights)
    path.write_bytes(whole[: int(keep * len(whole))])
    refuses_checkpoint(workspace, path, "not a readable safetensors file")


def test_text_as_checkpoint(workspace: Path, tmp_path: Path) -> None:
    path = tmp_path / "notes.pth"
    path.write_text("not weights\nbut two lines of text\n", encoding="utf-8")
    refuses_checkpoint(workspace, path, "not a complete PyTorch checkpoint")


def test_missing_checkpoint(workspace: Path, tmp_path: Path) -> None:
    refuses_checkpoint(workspace, tmp_path / "nowhere.pth", "no such checkpoint")


class Command:
    """Unpickling it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [True, False], ids=["pickle", "zip"])
def test_pickle_with_code_is_not_run(workspace: Path, tmp_path: Path, legacy: bool) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    content = {"state_dict": {"stem.conv1.weight": Command(f"echo ran > '{marker}'")}}
    if legacy:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    refuses_checkpoint(workspace, path, "more than tensors", ".system", "run code")
    assert not marker.exists()


def test_the_pickle_with_code_would_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Command(f"echo ran > '{marker}'")))
    assert marker.exists()


def test_checkpoint_of_another_variant(workspace: Path, checkpoint: Path) -> None:
    words = ["does not fit variant 'lite'", "it fits: --variant nano"]
    refuses_export(workspace, 3, words, "--variant", "lite", "--checkpoint", checkpoint)


def test_names_that_do_not_fit(workspace: Path, weights: State, tmp_path: Path) -> None:
    state = dict(weights)
    state["head.scale"] = state.pop("head.bias")
    path = tmp_path / "renamed.pth"
    torch.save(state, path)
    refuses_checkpoint(workspace, path, "missing head.bias", "unexpected head.scale")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(
    workspace: Path, weights: State, tmp_path: Path, value: float
) -> None:
    state = {name: tensor.clone() for name, tensor in weights.items()}
    state["head.bias"][3] = value
    path = tmp_path / "diverged.pth"
    torch.save(state, path)
    refuses_checkpoint(workspace, path, "head.bias has NaN or infinite values")


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_weights_that_cannot_be_checked(
    workspace: Path, weights: State, tmp_path: Path, kind: str
) -> None:
    head = weights["head.weight"]
    changed = {"sparse": head.to_sparse(), "meta": head.to("meta")}
    path = tmp_path / f"{kind}.pth"
    torch.save({**weights, "head.weight": changed[kind]}, path)
    refuses_checkpoint(workspace, path, "unusable weights", "head.weight")


def test_class_count_that_contradicts_the_checkpoint(workspace: Path, checkpoint: Path) -> None:
    words = ["10 classes", "--num-classes says 7"]
    refuses_export(workspace, 3, words, "--checkpoint", checkpoint, "--num-classes", 7)


def test_checkpoint_key_that_is_not_there(workspace: Path, checkpoint: Path) -> None:
    words = ["no entry 'ema'", "stem.conv1.weight"]
    refuses_export(workspace, 3, words, "--checkpoint", checkpoint, "--checkpoint-key", "ema")


@pytest.mark.parametrize("opset", [17, 99])
def test_opset_outside_the_range(workspace: Path, opset: int) -> None:
    refuses_export(workspace, 3, [f"opset {opset}", "18 to 23"], "--opset", opset)


@pytest.mark.parametrize("seed", [10**30, -(10**30)])
def test_seed_outside_the_range(workspace: Path, seed: int) -> None:
    with untouched(workspace):
        result = run("export", "--variant", "nano", "--output-dir", workspace, "--seed", seed)
    assert result.exit_code == 2, result.output


# --- where `export` cannot write -------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "deeper"])
def test_output_directory_below_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with untouched(tmp_path):
        result = run("export", "--variant", "nano", "--output-dir", tmp_path / "file" / below)
    refused(result, 5, "cannot write into", "nothing was changed", "--output-dir")


@pytest.mark.parametrize("place", ["onnx_ir.save", "os.fsync"])
@pytest.mark.usefixtures("fast_trace")
def test_full_disk(workspace: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_options: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(place, full)
    refuses_export(workspace, 5, [os.strerror(errno.ENOSPC), "free space", "nothing was changed"])


def test_writing_that_really_fails_midway(workspace: Path) -> None:
    """Half of the file fits; the system refuses the rest."""
    resource = pytest.importorskip("resource")
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({1_500_000}, -1))"
    assert resource.RLIM_INFINITY == -1
    with untouched(workspace), start_export(workspace, limit) as process:
        _, stderr = process.communicate(timeout=180)
    assert process.returncode == 5, stderr
    error_of(stderr, os.strerror(errno.EFBIG), "nothing was changed")


@pytest.mark.usefixtures("fast_trace")
def test_file_system_without_hard_links(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_arguments: object, **_options: object) -> NoReturn:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    before = sha256_file(sidecar_path(model))
    done("export", "--variant", "nano", "--instance-norm", "folded", "--output-dir", model.parent)
    assert read_sidecar(model) is not None
    assert sha256_file(sidecar_path(model)) != before  # it counts the rewrites of this export


@pytest.mark.usefixtures("fast_trace")
def test_graph_that_departs_from_the_weights(workspace: Path) -> None:
    """Seed 1 is asked for, the graph has the weights of seed 0: it must not get the name."""
    refuses_export(workspace, 1, ["departs from PyTorch", "nothing was written"], "--seed", 1)


# --- `export` ended from outside -------------------------------------------------------------


def start_export(workspace: Path, first: str = "pass") -> subprocess.Popen[str]:
    code = f"{INTERRUPTIBLE}; {first}; from rest_deploy.cli import main; main()"
    command = [sys.executable, "-c", code, "export", "--variant", "nano", "--seed", "1"]
    return subprocess.Popen(
        [*command, "--output-dir", str(workspace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_export(workspace: Path, model: Path, checkpoint: Path) -> None:
    """It leaves the old model as it was and its own folder, which the next export sweeps."""
    before = contents(workspace)
    with start_export(workspace) as process:
        eventually(lambda: any(workspace.glob(f"{TEMPORARY_PREFIX}*/*.onnx")), process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    left = {name: sha for name, sha in contents(workspace).items() if name not in before}
    assert left
    assert all(name.startswith(TEMPORARY_PREFIX) for name in left)
    assert {name: sha for name, sha in contents(workspace).items() if name in before} == before
    assert read_sidecar(model) is not None

    report = json.loads(
        done("export", "--variant", "nano", "--checkpoint", checkpoint, "--workspace", workspace,
             "--json")
    )  # fmt: skip
    assert set(report) == {
        *("path", "metadata", "parity", "rewrites", "passes", "size_bytes", "seconds"),
        *("warnings", "notes"),
    }
    assert (report["path"], report["metadata"]["num_classes"]) == (str(model), CLASSES)
    assert sorted(contents(workspace)) == ["rest_nano.onnx", "rest_nano.onnx.json"]
    sidecar = read_sidecar(model)
    assert sidecar is not None
    assert sidecar.metadata.weights.sha256 == sha256_file(checkpoint)
    the_checkpoint_moves(workspace, checkpoint)


def the_checkpoint_moves(workspace: Path, checkpoint: Path) -> None:
    """`verify` of the model just exported, with its weights in place, gone, elsewhere, others."""
    verify = ("verify", "--workspace", workspace, "--sizes", "64x80", "--batches", "2")
    assert "PASS" in done(*verify)
    moved = checkpoint.rename(checkpoint.with_name("moved.pth"))
    refused(run(*verify), 3, "is not there", checkpoint.name, "--checkpoint F")
    assert "PASS" in done(*verify, "--checkpoint", moved)
    state = torch.load(moved, weights_only=True)
    state["head.bias"] += 1
    torch.save(state, checkpoint)
    refused(run(*verify), 3, "are not the exported ones", "--checkpoint F")


def test_interrupted_export(workspace: Path) -> None:
    with untouched(workspace), start_export(workspace) as process:
        eventually(lambda: any(workspace.glob(f"{TEMPORARY_PREFIX}*")), process)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=180)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in stderr
    assert "interrupted" in stderr


@pytest.mark.parametrize("then", ["another error", "no error"])
@pytest.mark.usefixtures("fast_trace")
def test_interrupt_swallowed_by_a_library(
    workspace: Path, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's exporter and ONNX Runtime do when Ctrl-C hits while they import."""
    from rest_deploy.graph import export

    traced = export.trace

    def trace(*arguments: Any) -> Any:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if then == "another error":
                raise AttributeError("module has no attribute 'exc'") from None
        return traced(*arguments)

    monkeypatch.setattr(export, "trace", trace)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with untouched(workspace):
            result = run("export", "--variant", "nano", "--output-dir", workspace)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130, result.output


def test_failure_nobody_foresaw(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rest_deploy.graph import export

    def trace(*_arguments: object) -> NoReturn:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(export, "trace", trace)
    refuses_export(workspace, 6, ["no such operator", "report"])


# --- `predict` -------------------------------------------------------------------------------


def predictions(model: Path, image: Path) -> Any:
    report = json.loads(done("predict", model, image, "--json"))
    return report["images"][0]["predictions"]


def write_huge_png(path: Path) -> None:
    """A complete header for 100 megapixels and no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    sides = (10_000).to_bytes(4, "big") + (10_001).to_bytes(4, "big")
    header = chunk(b"IHDR", sides + bytes([8, 2, 0, 0, 0]))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def write_truncated_jpeg(path: Path) -> None:
    Image.fromarray(pixels()).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_text(path: Path) -> None:
    path.write_text("a text file\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("missing.png", lambda _path: None, ["no such image"]),
        ("small.png", lambda path: Image.new("RGB", (31, 31)).save(path), ["31x31", "32x32"]),
        ("low.png", lambda path: Image.new("RGB", (300, 31)).save(path), ["300x31", "32x32"]),
        ("cut.jpg", write_truncated_jpeg, ["cannot be decoded", "truncated"]),
        ("huge.png", write_huge_png, ["100 megapixels", "at most 89"]),
        ("text.png", write_text, ["not an image"]),
        ("folder.png", Path.mkdir, ["cannot be decoded", "directory"]),
    ],
)
def test_images_refused(
    exported_nano: Path,
    photo: Path,
    name: str,
    write: Callable[[Path], None],
    words: list[str],
) -> None:
    """Also behind a good image: no half of a report."""
    path = photo.with_name(name)
    write(path)
    refused(run("predict", exported_nano, photo, path), 3, name, *words)


def grey_16(path: Path) -> None:
    high = pixels()[:, :, 0].astype(np.uint16) << 8
    Image.fromarray(high + 17).save(path)


def rotated(path: Path) -> None:
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(pixels(), 1)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees
    turned.save(path, exif=exif)


@pytest.mark.parametrize(
    ("name", "write", "same"),
    [
        (
            "cmyk.tif",
            lambda path: Image.fromarray(pixels()).convert("CMYK").save(path),
            Image.fromarray(pixels()).convert("CMYK").convert("RGB"),
        ),
        (
            "alpha.png",
            lambda path: Image.fromarray(np.dstack([pixels(), pixels()[:, :, 0]])).save(path),
            Image.fromarray(pixels()),
        ),
        ("grey16.png", grey_16, Image.fromarray(pixels()[:, :, 0]).convert("RGB")),
        ("rotated.png", rotated, Image.fromarray(pixels())),
    ],
)
def test_images_of_other_kinds(
    exported_nano: Path,
    photo: Path,
    name: str,
    write: Callable[[Path], None],
    same: Image.Image,
) -> None:
    """They predict what the plain 8-bit RGB image of the same content does."""
    path = photo.with_name(name)
    write(path)
    same.save(photo)
    assert predictions(exported_nano, path) == predictions(exported_nano, photo)


def test_predictions_depend_on_the_turn(exported_nano: Path, photo: Path) -> None:
    upright = predictions(exported_nano, photo)
    Image.open(photo).rotate(180).save(photo)
    assert predictions(exported_nano, photo) != upright


def test_predict_json(exported_nano: Path, photo: Path) -> None:
    report = json.loads(done("predict", exported_nano, photo, photo, "--top", 3, "--json"))
    assert set(report) == {"model", "fresh", "images"}
    assert report["fresh"] is True
    assert [image["image"] for image in report["images"]] == [str(photo)] * 2
    found = report["images"][0]["predictions"]
    assert [set(entry) for entry in found] == [{"index", "label", "probability"}] * 3
    assert sorted(found, key=lambda entry: -entry["probability"]) == found


def test_predict_says_that_fresh_weights_mean_nothing(exported_nano: Path, photo: Path) -> None:
    lines = done("predict", exported_nano, photo).splitlines()
    assert lines[0].startswith("warning: fresh weights")
    assert (lines[1], len(lines)) == (str(photo), 2 + 5)


def test_model_written_by_others(model: Path, photo: Path) -> None:
    node = onnx.helper.make_node("Identity", ["image"], ["logits"])
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3, "h", "w"])
        for name in ("image", "logits")
    ]
    graph = onnx.helper.make_graph([node], "foreign", values[:1], values[1:])
    opset = onnx.helper.make_opsetid("", 18)
    foreign = model.with_name("foreign.onnx")
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), foreign)
    refused(run("predict", foreign, photo), 3, foreign.name, "not written by rest-deploy", "export")


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_truncated_model(model: Path, photo: Path, keep: float) -> None:
    whole = model.read_bytes()
    model.write_bytes(whole[: int(keep * len(whole))])
    refused(run("predict", model, photo), 3, model.name, "one of the two was replaced")
    sidecar_path(model).unlink()
    # No byte at all is a valid, empty protobuf: then it is the metadata that is not there.
    refused(run("predict", model, photo), 3, model.name)


def test_sidecar_of_another_model(model: Path, photo: Path) -> None:
    found = json.loads(sidecar_path(model).read_text(encoding="utf-8"))
    found["sha256"] = hashlib.sha256(b"other bytes").hexdigest()
    sidecar_path(model).write_text(json.dumps(found), encoding="utf-8")
    words = [sha256_file(model)[:12], found["sha256"][:12], "export the model again"]
    for command in (["predict", model, photo], ["inspect", model], ["verify", model]):
        refused(run(*command), 3, *words)


def test_sidecar_that_is_damaged(model: Path, photo: Path) -> None:
    sidecar_path(model).write_text("{", encoding="utf-8")
    refused(run("predict", model, photo), 3, sidecar_path(model).name, "is damaged")


@pytest.mark.parametrize("command", ["predict", "verify", "inspect"])
@pytest.mark.parametrize("name", ["", "nowhere.onnx"], ids=["folder", "missing"])
def test_no_model_file(workspace: Path, photo: Path, command: str, name: str) -> None:
    images = [photo] if command == "predict" else []
    refused(run(command, workspace / name, *images), 3, "no such", str(workspace / name))


@pytest.mark.parametrize("command", ["predict", "verify", "inspect"])
def test_model_path_the_system_refuses(photo: Path, command: str) -> None:
    images = [photo] if command == "predict" else []
    refused(run(command, "m" * 300 + ".onnx", *images), 3, os.strerror(errno.ENAMETOOLONG))


def test_checkpoint_instead_of_a_model(checkpoint: Path, photo: Path) -> None:
    refused(run("predict", checkpoint, photo), 3, "'.pth'", "expected a .onnx model")


# --- `verify` --------------------------------------------------------------------------------


@pytest.mark.parametrize("by_variable", [True, False])
def test_empty_workspace(
    tmp_path: Path, by_variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "empty"
    monkeypatch.setenv("REST_DEPLOY_WORKSPACE", str(folder if by_variable else tmp_path / "other"))
    options = [] if by_variable else ["--workspace", folder]
    refused(run("verify", *options), 3, str(folder), "rest-deploy export --variant lite")


@pytest.mark.parametrize(
    "value",
    [
        *("", "big", "224,", ",224", "224x", "x224", "224;192", "1.5"),
        "0",
        "-64",
        "64x0",
        "64x64x3",
        "64,64x64x3",
    ],
)
def test_bad_sizes(value: str) -> None:
    result = run("verify", "nowhere.onnx", f"--sizes={value}")
    assert result.exit_code == 2, result.output
    assert "is not a list of sizes" in result.stderr


@pytest.mark.parametrize("value", ["", "0", "-1", "1,", "1,0", "two", "1.5", "²"])
def test_bad_batches(value: str) -> None:
    result = run("verify", "nowhere.onnx", f"--batches={value}")
    assert result.exit_code == 2, result.output
    assert "is not a list of positive whole numbers" in result.stderr


@pytest.mark.parametrize("value", ["31x31", "64,300x31"])
def test_sizes_below_the_smallest(exported_nano: Path, value: str) -> None:
    result = run("verify", exported_nano, "--sizes", value, "--batches", 1)
    refused(result, 3, "31", "at least 32")


def test_verify_json(exported_nano: Path) -> None:
    options = ("--sizes", "32,40x70", "--batches", "1,2", "--json")
    report = json.loads(done("verify", exported_nano, *options))
    assert set(report) == {"model", "backend", "reference", "inputs", "results", "cause"}
    assert report["reference"] == "float64"
    cases = [tuple(result["case"].values()) for result in report["results"]]
    assert cases == [(1, 32, 32), (2, 32, 32), (1, 40, 70), (2, 40, 70)]


def test_verify_says_when_it_fails(model: Path) -> None:
    """The weights in the file are not those its metadata names: exit 1, with the table."""
    proto = onnx.load(model)
    kernel = next(value for value in proto.graph.initializer if len(value.dims) == 4)
    changed = onnx.numpy_helper.to_array(kernel).copy()
    changed[0] *= 1.5  # one channel: the norms undo a scale that all have in common
    kernel.CopyFrom(onnx.numpy_helper.from_array(changed, kernel.name))
    onnx.save(proto, model)
    sidecar_path(model).unlink()
    result = run("verify", model, "--sizes", "64", "--batches", "1")
    assert result.exit_code == 1
    assert "FAIL: relative error at most" in result.stdout


# --- the rest --------------------------------------------------------------------------------


def test_variants_json() -> None:
    report = json.loads(done("variants", "--json"))
    assert set(report) == {"rows", "note"}
    variants = [row["variant"] for row in report["rows"]]
    assert (variants[:2], variants[5:7]) == (["nano", "lite"], ["v2-nano", "v2-tiny"])
    counted = {row["variant"]: row for row in report["rows"]}
    assert counted["v2-tiny"]["parameters_m"] == pytest.approx(30.43, abs=0.01)
    assert counted["v2-tiny"]["published_top1"] == 82.3


def test_doctor_json() -> None:
    pytest.importorskip("rest_deploy.doctor")
    report = json.loads(done("doctor", "--json"))
    assert set(report) == {"schema", "rows", "jobs"}
    assert {"export", "run on CPU"} <= {job["name"] for job in report["jobs"]}


INSPECTION = {
    *("file", "kind", "size_bytes", "sha256", "metadata", "sidecar"),
    *("tensors", "parameters", "num_classes", "fits", "notes"),
}


@pytest.mark.parametrize("sidecar", [True, False])
def test_inspect_model(model: Path, sidecar: bool) -> None:
    """A model is described from its sidecar, without one from what it carries itself."""
    file = sidecar_path(model)
    if not sidecar:
        file.unlink()
        file = model
    report = json.loads(done("inspect", file, "--json"))
    assert set(report) == INSPECTION
    assert (report["kind"], report["sha256"]) == ("onnx", sha256_file(model))
    assert report["metadata"]["variant"] == "nano"
    assert (report["sidecar"] is not None) == sidecar
    assert ("no sidecar" in done("inspect", file)) != sidecar


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_inspect_checkpoint(weights: State, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": weights}, file)
    else:
        save_file(weights, file)
    report = json.loads(done("inspect", file, "--json"))
    assert set(report) == INSPECTION
    assert (report["kind"], report["num_classes"]) == ("checkpoint", CLASSES)
    assert (report["fits"], report["tensors"]) == (["nano"], len(weights))
    assert "nano" in done("inspect", file)


def test_inspect_text(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    write_text(file)
    refused(run("inspect", file), 3, "'.txt'", ".onnx or .engine, their .json, .pth")


@pytest.mark.parametrize("labels", ["5", "null", '"cat"', '{"cat": 0}'])
def test_labels_in_a_checkpoint_that_are_no_list(
    weights: State, tmp_path: Path, labels: str
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(weights, file, metadata={"rest_deploy.labels": labels})
    refused(run("inspect", file), 3, file.name, "rest_deploy.labels")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    assert f" {command} [OPTIONS]" in done(command, "--help")


def test_help_lists_every_command() -> None:
    assert set(main.commands) == set(COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["--variant", "nano", "--instance-norm", "fast"]])
def test_wrong_command_line(arguments: list[str]) -> None:
    result = run("export", *arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_launcher_of_a_clone(tmp_path: Path) -> None:
    """A copy of what a clone holds runs from anywhere, uninstalled."""
    for name in ("rest_deploy", "models"):
        shutil.copytree(CLONE / name, tmp_path / name)
    shutil.copy(CLONE / "cli.py", tmp_path)
    for arguments, word in ((["--version"], __version__), (["variants", "--help"], "cli.py")):
        command = [sys.executable, str(tmp_path / "cli.py"), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
        assert word in result.stdout


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ("rest_deploy, rest_deploy.cli", set()),
        ("rest_deploy.verify.parity", {"numpy"}),
    ],
)
def test_importing_the_command_line_is_light(modules: str, expected: set[str]) -> None:
    code = f"import sys, {modules}; print(*{HEAVY} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert set(result.stdout.split()) == expected
