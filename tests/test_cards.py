"""The shipped cards, and what a malformed one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from rest_deploy.cards import available, data_directory, load_card, read_card, read_labels
from rest_deploy.contracts import Published
from rest_deploy.errors import CardError

# Zhang and Yang, arXiv 2105.13677, table 3, and arXiv 2204.07366: top-1 %, parameters in M, GFLOPs,
# images/s on a V100.
PUBLISHED = {
    "lite": (77.2, 10.49, 1.4, 1246),
    "small": (79.6, 13.66, 1.9, 1043),
    "base": (81.6, 30.28, 4.3, 673),
    "large": (83.6, 51.63, 7.9, 429),
    "v2-tiny": (82.3, 30, 4.1, 826),
    "v2-small": (83.2, 41, 6.0, 687),
    "v2-base": (83.7, 56, 7.9, 582),
    "v2-large": (84.2, 87, 13.8, 415),
}
# The official model definitions: dims and depths a stage.
SHAPES = {
    "lite": ((64, 128, 256, 512), (2, 2, 2, 2)),
    "small": ((64, 128, 256, 512), (2, 2, 6, 2)),
    "base": ((96, 192, 384, 768), (2, 2, 6, 2)),
    "large": ((96, 192, 384, 768), (2, 2, 18, 2)),
    "v2-tiny": ((96, 192, 384, 768), (1, 2, 6, 2)),
    "v2-small": ((96, 192, 384, 768), (1, 2, 12, 2)),
    "v2-base": ((96, 192, 384, 768), (1, 3, 16, 3)),
    "v2-large": ((128, 256, 512, 1024), (2, 3, 16, 2)),
}


@pytest.fixture
def card_text() -> str:
    return (data_directory("models") / "rest_nano.toml").read_text(encoding="utf-8")


def read_changed(folder: Path, text: str, old: str, new: str) -> None:
    assert text.count(old) == 1, f"the card does not have {old!r} once"
    path = folder / "changed.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    read_card(path)


def test_every_shipped_card_is_valid_and_named_after_its_file() -> None:
    files = sorted(data_directory("models").glob("*.toml"))
    assert len(files) == 10
    for path in files:
        card = read_card(path)
        family = card.architecture.family.replace("_v2", "v2")
        assert card.name == path.stem == f"{family}_{card.variant.removeprefix('v2-')}"
        assert card.variant.startswith("v2-") is (family == "restv2")


def test_available_is_smallest_first_family_by_family() -> None:
    sizes = ["tiny", "small", "base", "large"]
    second = [f"v2-{size}" for size in ("nano", *sizes)]
    assert list(available()) == ["nano", "lite", *sizes[1:], *second]


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_numbers(variant: str) -> None:
    published = load_card(variant).published
    assert isinstance(published, Published)
    assert (
        published.top1,
        published.parameters_m,
        published.gflops,
        published.images_per_second_v100,
    ) == PUBLISHED[variant]
    assert published.size == 224
    assert ("2204.07366" if variant.startswith("v2") else "2105.13677") in published.source


@pytest.mark.parametrize("variant", SHAPES)
def test_published_architecture(variant: str) -> None:
    architecture = load_card(variant).architecture
    assert (architecture.dims, architecture.depths) == SHAPES[variant]
    first = variant.removeprefix("v2-") == variant
    assert architecture.heads == ((2, 4, 8, 16) if variant == "v2-large" else (1, 2, 4, 8))
    assert architecture.sr_ratios == (8, 4, 2, 1)
    assert architecture.position_encoding == "pa"
    assert architecture.head_mix is architecture.attention_norm is first


@pytest.mark.parametrize("variant", ["nano", "v2-nano"])
def test_nano_claims_no_published_numbers(variant: str) -> None:
    assert load_card(variant).published is None


@pytest.mark.parametrize("variant", PUBLISHED)
def test_preprocessing_is_the_official_evaluation_transform(variant: str) -> None:
    preprocessing = load_card(variant).preprocessing
    assert (preprocessing.resize, preprocessing.crop) == (256, 224)
    assert preprocessing.interpolation == "bicubic"
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    assert preprocessing.std == (0.229, 0.224, 0.225)


def test_a_card_goes_by_its_variant_its_name_or_its_path(card_text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(card_text.replace('variant = "nano"', 'variant = "mine"'), encoding="utf-8")
    assert load_card("lite") == load_card("rest_lite")
    assert load_card(str(path)).variant == "mine"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("lit", "lite"), ("LARGE", "large"), ("rest-smal", "rest_small"), ("v2_tiny", "v2-tiny")],
)
def test_unknown_variant_is_told_the_closest(asked: str, meant: str) -> None:
    with pytest.raises(CardError, match="known: nano, lite, small, base, large") as caught:
        load_card(asked)
    assert "v2-nano, v2-tiny, v2-small, v2-base, v2-large" in str(caught.value)
    assert caught.value.hint == f"did you mean {meant!r}?"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("asked", ["", "resnet50x", "v2"])
def test_unknown_variant_with_nothing_close_gets_no_guess(asked: str) -> None:
    with pytest.raises(CardError) as caught:
        load_card(asked)
    assert "did you mean" not in str(caught.value)
    assert ".toml" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("mlp_ratio = 4", "mlp_ratoi = 4", "unknown field `mlp_ratoi` - at `$.architecture`"),
        ("mlp_ratio = 4", 'mlp_ratio = "4"', r"got `str` - at `$.architecture.mlp_ratio`"),
        ("mlp_ratio = 4", "mlp_ratio = 4.0", r"got `float` - at `$.architecture.mlp_ratio`"),
        ("qkv_bias = true", "qkv_bias = 1", "got `int` - at `$.architecture.qkv_bias`"),
        ("[32, 64, 96, 128]", "[32, 64, 96]", "length 4, got 3 - at `$.architecture.dims`"),
        ("[32, 64, 96, 128]", "[32, 64, 96, 129]", "multiples of heads, got 129 for 8 heads"),
        ("[32, 64, 96, 128]", "[31, 64, 96, 128]", "dims[0] must be even"),
        ("[1, 1, 2, 1]", "[1, 1, 0, 1]", "depths must be positive"),
        ("head_mix = true", "head_mix = false", "attention_norm needs head_mix"),
        ('position_encoding = "pa"', 'position_encoding = "sin"', "$.architecture.position_enc"),
        ('family = "rest"', 'family = "resnet"', "$.architecture.family"),
        ("schema = 1", "schema = 2", "$.schema"),
        ("num_classes = 1000", "num_classes = -1", "num_classes must be >= 0"),
        ("crop = 224", "crop = 31", "expected 32 <= crop <= resize, got crop 31"),
        ("crop = 224", "crop = 257", "got crop 257, resize 256"),
        ("crop = 224\n", "", "missing required field `crop` - at `$.preprocessing`"),
        ("[0.229, 0.224, 0.225]", "[0.229, 0.0, 0.225]", "std positive"),
        ('interpolation = "bicubic"', 'interpolation = "lanczos"', "$.preprocessing.interpolation"),
        ("schema = 1", "schema = ", "Invalid value"),
    ],
)
def test_malformed_card_names_the_field(
    card_text: str, tmp_path: Path, old: str, new: str, told: str
) -> None:
    with pytest.raises(CardError) as caught:
        read_changed(tmp_path, card_text, old, new)
    assert told in str(caught.value)
    assert "changed.toml" in str(caught.value)


def test_the_unchanged_card_is_accepted(card_text: str, tmp_path: Path) -> None:
    """Negative control of the test above: it is the change that is refused."""
    read_changed(tmp_path, card_text, "schema = 1", "schema = 1")


def test_neither_mix_nor_norm_is_an_allowed_ablation(card_text: str, tmp_path: Path) -> None:
    text = card_text.replace("attention_norm = true", "attention_norm = false")
    read_changed(tmp_path, text, "head_mix = true", "head_mix = false")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("head_mix = false", "head_mix = true", "rest_v2 has neither a head mix nor"),
        ("attention_norm = false", "", "attention_norm must be false"),
        ("qkv_bias = true", "qkv_bias = false", "qkv_bias = true and position_encoding"),
        ('position_encoding = "pa"', 'position_encoding = "gl"', "\"none\", got true and 'gl'"),
        ("[8, 4, 2, 1]", "[8, 3, 2, 1]", "1 or even, got [8, 3, 2, 1]"),
    ],
)
def test_what_v2_does_not_have_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    text = (data_directory("models") / "restv2_nano.toml").read_text(encoding="utf-8")
    read_changed(tmp_path, text, old, old)
    with pytest.raises(CardError) as caught:
        read_changed(tmp_path, text, old, new)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mlp_ratio = 4", "mlp_ratio = 0"),
        ("[0.229, 0.224, 0.225]", "[nan, 0.224, 0.225]"),
        ("[0.485, 0.456, 0.406]", "[inf, 0.456, 0.406]"),
        ("relative_error = 1e-5", "relative_error = nan"),
        ("relative_error = 1e-5", "relative_error = -1.0"),
        ('variant = "nano"', 'variant = "../nano"'),
    ],
)
def test_nonsense_values_are_refused(card_text: str, tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(CardError):
        read_changed(tmp_path, card_text, old, new)


@pytest.mark.parametrize(
    ("content", "told"), [(b"\xff\xfe", "not valid"), (None, "No such file or directory")]
)
def test_unreadable_card(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "card.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CardError, match=told):
        load_card(str(path))


def test_cards_are_frozen() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        load_card("nano").variant = "other"  # type: ignore[misc]  # that is what is tested


def test_imagenet_labels() -> None:
    labels = read_labels("imagenet-1k", 1000)
    assert len(set(labels)) == len({label.lower() for label in labels}) == 1000
    assert {
        0: "tench",
        1: "goldfish",
        207: "golden retriever",
        281: "tabby",
        291: "lion",
        340: "zebra",
        388: "giant panda",
        508: "computer keyboard",
        620: "laptop",
        817: "sports car",
        954: "banana",
        963: "pizza",
        999: "toilet tissue",
    }.items() <= dict(enumerate(labels)).items()


def test_imagenet_classes_that_share_a_name_are_told_apart() -> None:
    labels = read_labels("imagenet-1k", 1000)
    assert (labels[134], labels[517]) == ("crane (bird)", "crane (machine)")
    assert (labels[638], labels[639]) == ("maillot (tights)", "tank suit")
    assert (labels[264], labels[474]) == ("Cardigan Welsh corgi", "cardigan")


def test_the_label_file_has_no_empty_and_no_padded_line() -> None:
    path = data_directory("models") / "labels" / "imagenet-1k.txt"
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert len(lines) == 1000
    assert [line for line in lines if not line or line != line.strip()] == []


def test_labels_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("cat\r\ndog\r\nkäfer\n\n".encode())
    assert read_labels(str(path), 3) == ("cat", "dog", "käfer")


def test_no_labels_are_numbers() -> None:
    assert read_labels("", 3) == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize("num_classes", [2, 4])
def test_labels_of_another_length_are_refused(tmp_path: Path, num_classes: int) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("cat\ndog\nowl\n", encoding="utf-8")
    with pytest.raises(CardError, match=rf"has 3 labels, the model has {num_classes} classes"):
        read_labels(str(path), num_classes)


@pytest.mark.parametrize("source", ["no-such-list", "folder/no-such-file.txt"])
def test_missing_labels(source: str) -> None:
    with pytest.raises(CardError, match="cannot read the labels"):
        read_labels(source, 3)


def test_labels_written_by_windows_editors(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert read_labels(str(path), 2) == ("cat", "dog")
