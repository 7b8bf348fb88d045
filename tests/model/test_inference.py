"""Images and strings in, named unit vectors out; what cannot be encoded is refused with its value and the rule."""

from __future__ import annotations

import pytest
import torch

from pipeline.data.patches import patchify
from pipeline.model.inference import normalised_boxes
from tests.model.material import CAPTIONS, KEEP, LONG, SHORT, VOCABULARY, WIDTH, picture, small_model, small_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def model(tokenizer, tmp_path):
    model = small_model(text_vocab_size=tokenizer.vocab_size)
    tokenizer.save(tmp_path)
    model.name_or_path = str(tmp_path)
    return model


IMAGES = [picture(160, 96), picture(64, 200, 1), picture(300, 300, 2)]


def test_images_of_any_size_in_any_batch_give_the_same_unit_vectors(model):
    together = model.encode_image(IMAGES, batch_size=2).embeds
    assert together.shape == (3, WIDTH)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    for number, image in enumerate(IMAGES):
        torch.testing.assert_close(model.encode_image(image).embeds[0], together[number], atol=1e-5, rtol=0)
    assert model.encode_image([]).embeds.shape == (0, WIDTH)


def test_images_are_cut_as_training_cuts_them(model):
    pixels, mask, grid = patchify(IMAGES[0], 40)
    _, expected = model.encode_vision(
        torch.as_tensor(pixels)[None], torch.as_tensor(mask)[None], torch.tensor([tuple(grid)])
    )
    found = model.encode_image(IMAGES[0], max_num_patches=40).embeds
    # Training resizes with another library's kernel: some pixels differ by 1 of 255.
    torch.testing.assert_close(found, expected, atol=3e-3, rtol=0)


@pytest.mark.parametrize("key", ["patch_budgets", "levels"])
def test_patch_budgets_come_with_the_checkpoint(model, tmp_path, key):
    (tmp_path / "preprocessor_config.json").write_text(f'{{"{key}": [16, 64]}}', encoding="utf-8")
    assert model.patch_budgets == (16, 64)
    assert model._patch_budget(picture(64, 64)) == 16
    assert model._patch_budget(picture(640, 640)) == 64


def test_without_patch_budgets_an_image_fills_what_the_image_processor_takes(model, tmp_path):
    assert model.patch_budgets is None
    assert model._patch_budget(picture(640, 640)) == model.config.vision_config.num_patches
    (tmp_path / "preprocessor_config.json").write_text('{"max_num_patches": 48}', encoding="utf-8")
    assert model._patch_budget(picture(640, 640)) == 48
    model.patch_budgets = (16, 64)
    assert model._patch_budget(picture(64, 64)) == 16
    with pytest.raises(ValueError, match=r"patch_budgets is \[64, 16\]; it must be positive and ascending"):
        model.patch_budgets = [64, 16]


TEXTS = [*CAPTIONS, "A RED Cup <eos> <pad> ", "x", "杯子" * 400, "word " * 5000, "é́ ﬁ 🙂"]


@pytest.mark.parametrize(("kind", "length"), [("short", SHORT), ("long", LONG), ("region", SHORT)])
def test_texts_become_the_ids_of_training_in_both_languages(model, tokenizer, kind, length):
    ids = model.text_ids(TEXTS, kind)
    assert torch.equal(ids, tokenizer(TEXTS, length))
    embeds = model.encode_text(TEXTS, kind=kind, batch_size=4).embeds
    torch.testing.assert_close(embeds, model.encode_ids(ids, kind), atol=1e-6, rtol=0)
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(len(TEXTS)))


def test_one_text_is_a_batch_of_one_and_case_does_not_matter(model):
    assert torch.equal(model.encode_text("A Red CUP").embeds, model.encode_text(["a red cup"]).embeds)
    assert model.encode_text([]).embeds.shape == (0, WIDTH)
    assert KEEP < SHORT < LONG < VOCABULARY


def test_boxes_in_pixels_and_normalised_ones_give_the_same_regions(model):
    image = IMAGES[0]
    pixels = model.encode_regions(image, [[16, 24, 80, 90], [0, 0, 160, 96]])
    shares = model.encode_regions(image, [(0.1, 0.25, 0.5, 0.9375), (0, 0, 1, 1)], box_format="normalised")
    torch.testing.assert_close(pixels.boxes, shares.boxes)
    torch.testing.assert_close(pixels.embeds, shares.embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(pixels.embeds.norm(dim=1), torch.ones(2))
    assert model.encode_regions(image, []).embeds.shape == (0, WIDTH)


def test_a_dense_map_holds_the_cosine_of_every_patch_with_every_phrase(model):
    found = model.dense_map(IMAGES[1], ["a red cup", "红色的杯子"])
    phrases, height, width = found.similarity.shape
    assert (phrases, found.phrases) == (2, ("a red cup", "红色的杯子"))
    assert height > width and found.features.shape == (height, width, WIDTH)
    torch.testing.assert_close(found.features.norm(dim=2), torch.ones(height, width))
    texts = model.encode_text(found.phrases, kind="region").embeds
    torch.testing.assert_close(found.similarity[1], found.features @ texts[1], atol=1e-6, rtol=0)


def test_half_precision_weights_give_float32_results(model):
    exact = model.encode_image(IMAGES).embeds
    rough = model.to(torch.bfloat16).encode_image(IMAGES).embeds
    assert rough.dtype == torch.float32
    assert (rough * exact).sum(1).min() > 0.98
    assert model.dense_map(IMAGES[0], "cup").similarity.dtype == torch.float32
    assert model.encode_regions(IMAGES[0], [[1, 2, 30, 40]]).embeds.dtype == torch.float32


@pytest.mark.parametrize(
    ("boxes", "box_format", "words"),
    [
        ([[0, 0, 10, 10], [5, 5, 120, 40]], "pixels", r"boxes\[1\] is \(5, 5, 120, 40\).*x2 <= 100"),
        ([[-1, 0, 10, 10]], "pixels", r"boxes\[0\].*clip it"),
        ([[0.1, 0.2, 0.3, 1.4]], "normalised", r"boxes\[0\].*y2 <= 1 must hold"),
        ([[10, 10, 10, 30]], "pixels", r"x1 < x2"),
        ([[30, 10, 10, 30]], "pixels", r"x1 < x2"),
        ([[0.1, 0.1, 0.5, 0.5]], "pixels", 'less than one pixel.*box_format="normalised"'),
        ([[1, float("nan"), 30, 40]], "pixels", r"boxes\[0\] is \(1, nan"),
        ([[1, 2, 3, 4]], "xywh", "box_format is 'xywh'; it must be one of pixels, normalised"),
        ([1, 2, 3, 4], "pixels", r"shape \(4,\); give a list"),
    ],
)
def test_boxes_that_break_a_rule_are_refused_with_their_number(boxes, box_format, words):
    with pytest.raises(ValueError, match=words):
        normalised_boxes(boxes, (100, 50), box_format)


@pytest.mark.parametrize("texts", ["", ["a cup", "  "], ["杯子", None]])
def test_an_empty_phrase_is_refused_with_its_number(model, texts):
    number = 0 if isinstance(texts, str) else 1
    for call in (model.encode_text, lambda t: model.dense_map(IMAGES[0], t)):
        with pytest.raises(ValueError, match=rf"texts\[{number}\] is .* something in it"):
            call(texts)


def test_other_things_than_pictures_kinds_and_tokenizers_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"images\[1\] is a str; it must be a PIL image"):
        model.encode_image([IMAGES[0], "photo.jpg"])
    with pytest.raises(ValueError, match="kind is 'box'"):
        model.encode_text("a cup", kind="box")
    other = small_model(text_vocab_size=99)
    with pytest.raises(ValueError, match="not loaded from a folder with a tokenizer"):
        other.encode_text("a cup")
    other.name_or_path = str(tmp_path)
    with pytest.raises(ValueError, match="the model's token table has 99 rows"):
        other.encode_text("a cup")
    empty = tmp_path / "empty"
    empty.mkdir()
    other.name_or_path = str(empty)
    with pytest.raises(ValueError, match=r"holds neither tokenizer\.json nor tokenizer\.model"):
        other.encode_text("a cup")
