from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from rest_deploy.cards import load_card
from rest_deploy.errors import InputError
from rest_deploy.graph.roles import Place
from rest_deploy.quant import sensitivity
from rest_deploy.quant.budget import Budget, PlaceScore, Score, parse_budget
from rest_deploy.quant.calibrate import calibrate
from rest_deploy.quant.dataset import open_set
from rest_deploy.quant.recipe import load_recipe
from rest_deploy.quant.table import CalibrationTable
from tests.quant.test_dataset import photo_like

INT8 = load_recipe("int8")


@pytest.fixture(scope="module")
def table(exported_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> CalibrationTable:
    folder = tmp_path_factory.mktemp("images")
    photo_like(folder, 8)
    return calibrate(exported_nano, open_set(folder, load_card("nano").preprocessing), INT8)


@pytest.mark.parametrize(
    ("text", "metric", "bound"),
    [("agreement>=99.5%", "agreement", 0.995), ("kl <= 1e-3", "kl", 1e-3),
     ("relative_error<=0.01", "relative_error", 0.01)],
)  # fmt: skip
def test_budgets(text: str, metric: str, bound: float) -> None:
    found = parse_budget(text)
    assert found.metric == metric
    assert found.bound == pytest.approx(bound)


@pytest.mark.parametrize("text", ["agreement<=1", "speed>=2", "kl", "kl<=x", "kl<=1e-"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(InputError):
        parse_budget(text)


def test_shares_are_of_multiplications(exported_nano: Path, table: CalibrationTable) -> None:
    """By hand at 224: fc1 and fc2 of stage 1 take 2 * 3136 tokens * 32 * 128 multiplications."""
    shares = sensitivity.shares(exported_nano, table)
    assert sum(shares.values()) == pytest.approx(1)
    mlp, qkv = shares[Place("stage1.0", "mlp")], shares[Place("stage1.0", "qkv")]
    assert mlp / qkv == pytest.approx(3136 * 128 / (49 * 32)), "k and v of 49 tokens, one head"
    patch = shares[Place("patch_embed_2", "patch")]
    assert patch / mlp == pytest.approx(28 * 28 * 9 * 32 * 64 / (2 * 3136 * 32 * 128))


def test_one_place_alone_and_all_but_some(exported_nano: Path, table: CalibrationTable) -> None:
    shares = sensitivity.shares(exported_nano, table)
    place = Place("stage3.1", "proj")
    alone = sensitivity.only(INT8, place, shares)
    graph = sensitivity.quantized(exported_nano, table, alone)
    quantized = [n.name for n in graph.graph if n.op_type == "QuantizeLinear"]
    assert quantized == ["stage3.1.attn.Reshape_5.out.QuantizeLinear"]
    graph = sensitivity.quantized(exported_nano, table, sensitivity.without(INT8, [place]))
    names = {n.name for n in graph.graph if n.op_type == "QuantizeLinear"}
    assert "stage3.1.attn.Reshape_5.out.QuantizeLinear" not in names
    assert len(names) > 15


def scores(errors: dict[Place, float], shares: dict[Place, float]) -> list[PlaceScore]:
    return [
        PlaceScore(block=place.block, role=place.role, share=shares[place],
                   score=Score(relative_error=error, kl=0.0, agreement=1.0))
        for place, error in errors.items()
    ]  # fmt: skip


def test_the_budget_costs_as_few_multiplications_as_needed(
    exported_nano: Path, table: CalibrationTable
) -> None:
    """Errors add up in squares; the two worst per multiplication must go, and no more."""
    shares = sensitivity.shares(exported_nano, table)
    errors = dict.fromkeys(shares, 1e-3)
    worst = [Place("stage4.0", "proj"), Place("head", "head")]
    errors |= dict.fromkeys(worst, 3e-2)
    nodes = {  # the activation of each place, to see in the graph what is quantized
        "stage4.0.attn.Reshape_3.out.QuantizeLinear": worst[0],
        "ReduceMean.out.QuantizeLinear": worst[1],
    }

    def measure(graph: ir.Model) -> Score:
        there = {node.name for node in graph.graph if node.op_type == "QuantizeLinear"}
        square = 1e-6 * (len(errors) - 2)
        square += sum(errors[place] ** 2 for name, place in nodes.items() if name in there)
        return Score(relative_error=float(np.sqrt(square)), kl=0.0, agreement=1.0)

    budget = Budget(metric="relative_error", bound=1e-2)
    found = sensitivity.within_budget(exported_nano, table, scores(errors, shares), budget, measure)
    assert set(found.recipe.float_places) == {"stage4.0:proj", "head:head"}
    assert found.float_share == pytest.approx(sum(shares[place] for place in worst))
    assert found.measured <= 7
    loose = Budget(metric="relative_error", bound=0.1)
    everything = sensitivity.within_budget(
        exported_nano, table, scores(errors, shares), loose, measure
    )
    assert everything.recipe.float_places == ()
    with pytest.raises(InputError, match="no recipe of 'int8' keeps relative_error<=1e-06"):
        sensitivity.within_budget(
            exported_nano, table, scores(errors, shares),
            Budget(metric="relative_error", bound=1e-6), measure,
        )  # fmt: skip


def test_a_written_recipe_reads_back(tmp_path: Path) -> None:
    recipe = sensitivity.without(INT8, [Place("stage2.0", "proj"), Place("head", "head")])
    path = tmp_path / "mine.toml"
    path.write_text(sensitivity.to_toml(recipe, "why\nand how"), encoding="utf-8")
    assert load_recipe(str(path)) == recipe
