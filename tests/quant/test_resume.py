from __future__ import annotations

from pathlib import Path

import pytest

from rest_deploy.cards import load_card
from rest_deploy.quant import resume
from rest_deploy.quant.calibrate import calibrate
from rest_deploy.quant.dataset import CalibrationSet, open_set
from rest_deploy.quant.recipe import Recipe, load_recipe
from tests.quant.test_dataset import photo_like

RECIPE = load_recipe("int8")
"""With everything that has a state: both passes and the probes."""


@pytest.fixture
def images(tmp_path: Path) -> CalibrationSet:
    photo_like(tmp_path / "set", 20)
    return open_set(tmp_path / "set", load_card("nano").preprocessing)


@pytest.fixture(autouse=True)
def _every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)


def interrupted(
    model: Path, images: CalibrationSet, recipe: Recipe, state: Path, after: int
) -> None:
    def stop(done: int, _total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, images, recipe, progress=stop, resume=state)


@pytest.mark.parametrize("after", [8, 20, 28], ids=["first pass", "between", "second pass"])
def test_it_goes_on_where_it_was(
    exported_nano: Path, images: CalibrationSet, tmp_path: Path, after: int
) -> None:
    state = tmp_path / "state.npz"
    interrupted(exported_nano, images, RECIPE, state, after)
    assert state.is_file()
    done: list[int] = []
    table = calibrate(
        exported_nano, images, RECIPE, progress=lambda n, _total: done.append(n), resume=state
    )
    assert done[0] > after
    assert done[-1] == 40
    assert not state.exists()
    assert table == calibrate(exported_nano, images, RECIPE)


@pytest.mark.parametrize("what", ["other recipe", "damaged"])
def test_a_state_that_does_not_fit_is_not_used(
    exported_nano: Path, images: CalibrationSet, tmp_path: Path, what: str
) -> None:
    state = tmp_path / "state.npz"
    interrupted(exported_nano, images, RECIPE, state, 8)
    if what == "damaged":
        state.write_bytes(state.read_bytes()[:1000])
    recipe = load_recipe("fp8") if what == "other recipe" else RECIPE
    done: list[int] = []
    calibrate(exported_nano, images, recipe, progress=lambda n, _total: done.append(n),
              resume=state)  # fmt: skip
    assert done[0] == 8
