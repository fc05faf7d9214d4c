from __future__ import annotations

import pytest

from rest_deploy.cards import load_card
from rest_deploy.model.cost import count


def test_lite_by_hand() -> None:
    """The head and the first stem convolution, counted on paper."""
    architecture = load_card("lite").architecture
    with_head, without = count(architecture, 1000, 224, 224), count(architecture, 0, 224, 224)
    assert with_head.macs - without.macs == 512 * 1000
    assert with_head.parameters - without.parameters == 512 * 1000 + 1000
    assert 1.4e9 < with_head.macs < 1.6e9


def test_cost_grows_with_the_area() -> None:
    architecture = load_card("nano").architecture
    small, large = count(architecture, 10, 64, 64), count(architecture, 10, 128, 128)
    assert small.parameters == large.parameters
    assert 4 < large.macs / small.macs < 8


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_v2_is_what_its_paper_prints(size: str) -> None:
    """GFLOPs to the printed digit, everything counted; v1's paper prints a tenth less."""
    card = load_card(f"v2-{size}")
    assert card.published is not None
    found = count(card.architecture, 1000, 224, 224)
    assert found.macs / 1e9 == pytest.approx(card.published.gflops, abs=0.0501)
