"""Segmentation: every layout's labels, windows, background rules and the mean IoU, against a loop over pixels."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.evaluation import EvaluationError, evaluate
from pipeline.evaluation.formats.items import ImageItem
from pipeline.evaluation.formats.scenes import scene_masks
from pipeline.evaluation.formats.segmentation import CLASS_LISTS, IGNORE, LAYOUTS, read_segmentation
from pipeline.evaluation.formats.shards import read_shards
from pipeline.evaluation.options.segmentation import SegmentationOptions
from pipeline.evaluation.tasks.segmentation import Windows, intersection_over_union, segment
from tests.evaluation.fake import COLOURS, FakeModel, text_vector

CLASSES = ["red", "green", "blue"]
BY_FORM = {"voc": 20, "pascal-context": 59, "ade20k": 150, "coco-stuff": 171, "coco-object": 80, "cityscapes": 19}


def write_set(folder, form, truth):
    """Two images of colour blocks in the layout; ``truth`` [h, w] of class numbers, -1 background or nothing."""
    layout = LAYOUTS[form]
    first = 0 if layout.zero == "class" else 1
    outside = 0 if layout.zero != "class" else 255
    raw = np.where(truth < 0, outside, truth + first).astype(np.uint8)
    colours = np.array([*(np.array(c) * 250 for c in list(COLOURS.values())[:3]), (100, 100, 100)], dtype=np.uint8)
    for stem in ("city/one", "two") if form == "cityscapes" else ("one", "two"):
        for where, ending, picture in (
            (layout.images, layout.image_ending, Image.fromarray(colours[truth])),
            (layout.labels, layout.label_ending, Image.fromarray(raw)),
        ):
            path = folder / where / f"{stem}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=100) if ending.endswith(".jpg") else picture.save(path)
    if layout.listing:
        path = folder / "ImageSets" / layout.listing / "val.txt"
        path.parent.mkdir(parents=True)
        path.write_text("one\ntwo\n", encoding="utf-8")
    names = CLASSES + [f"thing {number}" for number in range(BY_FORM[form] - 3)]
    (folder / "names.txt").write_text("\n".join(names), encoding="utf-8")
    return names


@pytest.fixture()
def truth():
    blocks = np.array([[0, 0, 1, 1], [0, 2, 2, -1], [2, 2, -1, -1], [1, 0, 1, 2]])
    return np.repeat(np.repeat(blocks, 8, 0), 8, 1)


def plain_miou(predictions, truths, num_classes):
    """Mean over the classes that occur of the intersection over the union, counted pixel by pixel."""
    values = []
    for c in range(num_classes):
        inter = sum(int(((p == c) & (t == c)).sum()) for p, t in zip(predictions, truths, strict=True))
        union = sum(
            int((((p == c) | (t == c)) & (t != IGNORE)).sum()) for p, t in zip(predictions, truths, strict=True)
        )
        if union:
            values.append(inter / union)
    return sum(values) / len(values)


@pytest.mark.parametrize("form", sorted(LAYOUTS))
def test_every_layout_is_found_and_scored_as_by_pixels(form, truth, tmp_path):
    names = write_set(tmp_path, form, truth)
    found = read_segmentation(tmp_path, "auto" if form != "coco-object" else form, "test", "en", tmp_path / "names.txt")
    assert len(found.images) == 2 and found.num_classes == BY_FORM[form]
    label = found.read_label(0)
    outside = BY_FORM[form] if LAYOUTS[form].zero == "background" else IGNORE
    assert (label == np.where(truth < 0, outside, truth)).all()

    model = FakeModel()
    result = evaluate(
        model, "segmentation", tmp_path, format=form, class_names=tmp_path / "names.txt", background="none"
    )
    texts = torch.stack([text_vector(name, "region") for name in names])
    predictions, truths = [], []
    for number in range(2):
        image = Image.open(found.images[number].path)
        features = model.encode_images([model.prepare(image)], dense=True)
        grid = (torch.nn.functional.normalize(features.dense[0], dim=-1) @ texts.T).T.view(1, -1, 4, 4)
        full = torch.nn.functional.interpolate(grid, truth.shape, mode="bilinear")[0]
        predictions.append(full.argmax(0).numpy())
        label = found.read_label(number)
        truths.append(np.where(label == found.num_classes, IGNORE, label))
    predictions = [np.where(t == IGNORE, -1, p) for p, t in zip(predictions, truths, strict=True)]
    assert result["scores"]["miou"] == pytest.approx(plain_miou(predictions, truths, len(names)))
    assert result["scores"]["miou"] > 0.1 and result["accounting"][0]["evaluated"] == 2


def test_the_class_lists_have_the_sets_numbers_of_distinct_names():
    lists = json.loads(CLASS_LISTS.read_text(encoding="utf-8"))
    assert {name: len(set(names)) for name, names in lists.items()} == BY_FORM


def test_background_is_a_class_a_threshold_or_left_out(truth, tmp_path):
    write_set(tmp_path, "voc", truth)
    common = {"format": "voc", "class_names": tmp_path / "names.txt"}
    none = evaluate(FakeModel(), "segmentation", tmp_path, background="none", **common)
    assert "background" not in none["scores"]["iou"]
    word = evaluate(FakeModel(), "segmentation", tmp_path, background="class", **common)
    assert "background" in word["scores"]["iou"] and "background" in word["settings"]["background_words"]["en"]
    low = evaluate(FakeModel(), "segmentation", tmp_path, background="threshold", background_threshold=0.0, **common)
    assert low["scores"]["iou"]["background"] == 0.0  # nothing is below 0
    high = evaluate(FakeModel(), "segmentation", tmp_path, background="threshold", background_threshold=1.01, **common)
    share = (truth < 0).mean()
    assert high["scores"]["iou"]["background"] == pytest.approx(share)  # everything is below it
    assert high["settings"]["background_threshold"] == 1.01
    write_set(tmp_path / "city", "cityscapes", truth)
    with pytest.raises(EvaluationError, match="has no background; use none"):
        evaluate(FakeModel(), "segmentation", tmp_path / "city", background="class")


def test_windows_cover_the_image_and_average_where_they_overlap():
    model = FakeModel()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 28, 3), dtype=np.uint8))
    texts = {0: torch.stack([text_vector(name, "region") for name in CLASSES])}
    windows = Windows(16, 8, None)
    assert windows.starts(28) == [0, 8, 12] and windows.starts(20) == [0, 4] and windows.starts(9) == [0]
    ((number, logits),) = segment(model, {0: image}, texts, windows, None, {0: (20, 28)}, batch_size=4)
    total, count = torch.zeros(3, 20, 28), torch.zeros(20, 28)
    for top in (0, 4):
        for left in (0, 8, 12):
            window = model.prepare_window(image.crop((left, top, left + 16, top + 16)))
            unit = torch.nn.functional.normalize(model.encode_images([window], dense=True).dense[0], dim=-1)
            grid = (unit @ texts[0].T).T.view(1, 3, 4, 4)
            total[:, top : top + 16, left : left + 16] += torch.nn.functional.interpolate(
                grid, (16, 16), mode="bilinear"
            )[0]
            count[top : top + 16, left : left + 16] += 1
    assert number == 0 and torch.allclose(logits, total / count, atol=1e-6)
    with pytest.raises(EvaluationError, match="multiple of the patch size, 4"):
        Windows.of(SegmentationOptions(data=("x",), window=18), model)
    with pytest.raises(EvaluationError, match="above the window"):
        Windows.of(SegmentationOptions(data=("x",), window=16, stride=20), model)


def test_images_whose_label_cannot_be_used_are_counted(truth, tmp_path):
    write_set(tmp_path, "ade20k", truth)
    bad = truth.copy()
    bad[0, 0] = 160
    Image.fromarray((bad + 1).astype(np.uint8)).save(tmp_path / "annotations/validation/two.png")
    Image.fromarray(truth.astype(np.uint8)).save(tmp_path / "annotations/validation/three.png")
    common = {"format": "ade20k", "class_names": tmp_path / "names.txt"}
    account = evaluate(FakeModel(), "segmentation", tmp_path, max_skipped_share=0.9, **common)["accounting"][0]
    assert account["skipped"] == {"missing_image": 1, "unknown_class_161": 1} and account["evaluated"] == 1
    (tmp_path / "few.txt").write_text("red\ngreen\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match="has 2 lines; the set has 150 classes"):
        evaluate(FakeModel(), "segmentation", tmp_path, format="ade20k", class_names=tmp_path / "few.txt")
    with pytest.raises(EvaluationError, match="no known layout"):
        evaluate(FakeModel(), "segmentation", tmp_path / "images")


def test_classes_that_occur_nowhere_are_left_out_of_the_mean():
    confusion = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    scores, by_class = intersection_over_union(confusion, ["a", "b", "c"])
    assert by_class == {"a": 0.75, "b": 0.8} and scores["miou"] == pytest.approx(0.775)
    assert scores["pixel_accuracy"] == pytest.approx(7 / 8)


def test_scenes_are_segmented_with_each_images_own_language(scenes):
    result = evaluate(FakeModel(), "segmentation", scenes)
    assert result["accounting"][0]["evaluated"] == 40 and 0 < result["scores"]["miou"] < 1
    assert result["settings"]["background"] == "threshold" and result["settings"]["calibration"] is None
    few = evaluate(FakeModel(), "segmentation", scenes, max_images=10)["accounting"][0]
    assert few["evaluated"] == few["rows"] == 10 and few["notes"] == {"images_outside_the_chosen_ones": 30}


@pytest.mark.parametrize("form", ["scenes-shape", "scenes-colour"])
def test_scenes_masks_are_read_as_shapes_or_as_colours(scenes, form):
    found, templates = scene_masks(scenes, form)
    samples = read_shards(scenes).samples
    assert len(found.images) == len(samples) == 40
    for number, one in enumerate(samples):
        language = one.sample.language
        names = found.classes[language]
        label = found.read_label(number)
        shown = {names[at] for at in set(label.flat) - {found.num_classes}}
        said = " ".join(region.phrase for region in one.sample.regions)
        words = set(said.split()) if language == "en" else said  # "striped" is not red
        assert shown == {name for name in names if name in words}
        assert all(text.count("{}") == 1 for text in templates[language])
    if form == "scenes-shape":
        assert templates == {"en": ["{}"], "zh": ["{}"]}
    else:
        assert [len(templates[language]) for language in ("en", "zh")] == [6, 6]
        assert "{} circle" in templates["en"] and "{}的圆形" in templates["zh"]


def test_scenes_whose_masks_are_not_explained_and_forms_that_are_none_are_refused(scenes, tmp_path):
    with pytest.raises(EvaluationError, match="must be one of auto, scenes-shape, scenes-colour"):
        evaluate(FakeModel(), "segmentation", scenes, format="voc")
    shutil.copytree(scenes, tmp_path / "test")
    with pytest.raises(EvaluationError, match="no scenes.json that explains its masks"):
        evaluate(FakeModel(), "segmentation", tmp_path / "test")


def test_a_label_value_that_the_scenes_do_not_explain_is_named(scenes, tmp_path):
    found, _ = scene_masks(scenes)
    Image.fromarray(np.full((4, 4), 77, np.uint8)).save(tmp_path / "odd.png")
    found.labels[0] = ImageItem("odd", tmp_path / "odd.png")
    assert found.read_label(0) == "unknown_class_77"


def test_a_chunk_that_was_segmented_before_is_not_segmented_again(scenes, tmp_path):
    from pipeline.evaluation.features import EncodeSettings

    settings = EncodeSettings(cache_folder=tmp_path)
    first, second, third = FakeModel(), FakeModel(), FakeModel()
    one = evaluate(first, "segmentation", scenes, settings=settings)
    two = evaluate(second, "segmentation", scenes, settings=settings)
    assert second.images_encoded == 0 and one["scores"] == two["scores"]
    evaluate(third, "segmentation", scenes, settings=settings, background="none")
    assert third.images_encoded == 40
