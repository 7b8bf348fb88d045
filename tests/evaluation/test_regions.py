"""FG-OVD and box classification: each row scored as by hand, each row accounted for."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image, ImageDraw

from pipeline.evaluation import EvaluationError, evaluate
from tests.evaluation.fake import FakeModel, text_vector
from tests.shared_data import shared

RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)


@pytest.fixture()
def folder(tmp_path):
    """One picture: red on the left, green in the middle, blue on the right."""
    picture = Image.new("RGB", (120, 80), (110, 110, 110))
    draw = ImageDraw.Draw(picture)
    for at, colour in enumerate((RED, GREEN, BLUE)):
        draw.rectangle((40 * at, 0, 40 * at + 39, 79), fill=colour)
    picture.save(tmp_path / "a.png")
    Image.new("RGB", (40, 40), GREEN).save(tmp_path / "b.png")
    return tmp_path


def row(box, true, wrong, image="a.png", size=(120, 80)):
    return {
        "img_path": image,
        "bbox": box,
        "pos_expression": [true],
        "neg_expression": wrong,
        "width": size[0],
        "height": size[1],
    }


def write_rows(path, rows):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def test_fgovd_top1_counts_strict_wins_and_calls_ties_misses(folder):
    rows = [
        row([0, 0, 38, 80], "a red thing", ["a green thing", "a blue thing"]),
        row([82, 0, 38, 80], "蓝色的东西", ["红色的东西"]),
        row([0, 0, 38, 80], "a blue thing", ["a red thing"]),
        row([0, 0, 38, 80], "a red thing", ["A RED thing"]),  # the same text once lower-cased
    ]
    result = evaluate(FakeModel(), "fgovd", write_rows(folder / "hard.jsonl", rows))
    assert result["scores"] == {"hard": 0.5}
    account = result["accounting"][0]
    assert account["evaluated"] == 4 and account["notes"]["ties_counted_as_misses"] == 1
    assert account["notes"]["fewer_than_10_negatives"] == 4


def test_fgovd_bad_rows_are_skipped_by_name_and_clipped_ones_noted(folder):
    rows = [
        row([-20, -5, 58, 90], "a red thing", ["a blue thing"]),  # clipped
        row([130, 0, 20, 20], "a red thing", ["a blue thing"]),  # outside
        row([10, 10, 0, 20], "a red thing", ["a blue thing"]),  # no area
        row([0, 0, 20, 20], " ", ["a blue thing"]),  # empty phrase
        row([0, 0, 20, 20], "a red thing", []),  # nothing to be told from
        row([0, 0, 20, 20], "a red thing", ["", "a blue thing"]),  # an empty wrong phrase
        row([0, 0, 20, 20], "a red thing", ["a blue thing"], image="gone.png"),
        {"img_path": "a.png", "bbox": [0, 0, 9, 9]},
        row("0 0 9 9", "a red thing", ["a blue thing"]),
    ]
    path = write_rows(folder / "easy.jsonl", rows)
    path.write_text(path.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    account = evaluate(FakeModel(), "fgovd", path, max_skipped_share=1)["accounting"][0]
    assert account["rows"] == 10 and account["evaluated"] == 2
    assert account["skipped"] == {
        "box_outside_image": 2,
        "empty_phrase": 1,
        "no_negatives": 1,
        "missing_image": 1,
        "missing_field": 1,
        "bad_box": 1,
        "not_json": 1,
    }
    assert account["notes"]["box_clipped"] == 1 and account["notes"]["empty_negatives_left_out"] == 1
    assert "easy.jsonl:2" in account["examples"]["box_outside_image"][0]
    with pytest.raises(EvaluationError, match="8 of 10"):
        evaluate(FakeModel(), "fgovd", path)


def test_fgovd_files_of_coco_mini_match_a_loop_over_their_rows():
    root = shared("data/coco-mini")
    model = FakeModel()
    result = evaluate(model, "fgovd", root / "fgovd", images=root)
    assert sorted(result["scores"]) == ["easy", "hard", "medium", "trivial"]
    for name, account in zip(("hard", "medium", "easy", "trivial"), result["accounting"], strict=True):
        hits, rows = 0, (root / "fgovd" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        for record in map(json.loads, rows):
            features = model.encode_images([model.prepare(Image.open(root / record["img_path"]))], dense=True)
            x, y, w, h = record["bbox"]
            W, H = record["width"], record["height"]
            box = torch.tensor([[x / W, y / H, (x + w) / W, (y + h) / H]]).clamp(0, 1)
            region = model.pool_regions(features, box, torch.tensor([0]))[0][0]
            texts = [record["pos_expression"][0], *record["neg_expression"]]
            scores = [float(region @ text_vector(text, "region")) for text in texts]
            hits += scores[0] > max(scores[1:])
        assert account["rows"] == account["evaluated"] == len(rows)
        assert result["scores"][name] == pytest.approx(hits / len(rows))


def instances(folder, **changes):
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 120, "height": 80},
            {"id": 2, "file_name": "b.png", "width": 40, "height": 40},
        ],
        "categories": [{"id": 7, "name": "red_box"}, {"id": 9, "name": "green"}, {"id": 8, "name": "blue"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [0, 0, 38, 80]},
            {"image_id": 1, "category_id": 9, "bbox": [42, 0, 36, 80]},
            {"image_id": 1, "category_id": 7, "bbox": [82, 0, 38, 80]},  # labelled wrongly: a miss
        ],
    } | changes
    path = folder / "instances.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def test_boxes_of_coco_are_classified_and_images_without_regions_stated(folder):
    result = evaluate(FakeModel(), "boxes", instances(folder))
    assert result["scores"]["boxes_top1"] == pytest.approx(2 / 3)
    assert result["scores"]["boxes_top5"] == 1.0
    assert result["scores"]["boxes_top1_mean_over_classes"] == pytest.approx((0.5 + 1) / 2)
    assert result["settings"]["num_classes"] == 3 and result["settings"]["classes_with_boxes"] == 2
    assert result["accounting"][0]["notes"] == {"images_without_a_box": 1}


def test_boxes_that_cannot_be_scored_are_named(folder):
    bad = [
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 38, 80]},
        {"image_id": 1, "category_id": 99, "bbox": [0, 0, 38, 80]},
        {"image_id": 5, "category_id": 7, "bbox": [0, 0, 38, 80]},
        {"image_id": 1, "category_id": 7, "bbox": [200, 0, 38, 80]},
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 38]},
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 38, 80], "iscrowd": 1},
    ]
    account = evaluate(FakeModel(), "boxes", instances(folder, annotations=bad), max_skipped_share=1)["accounting"][0]
    assert account["evaluated"] == 2 and account["rows"] == 6  # a box around a crowd counts, as published
    assert account["skipped"] == {"unknown_class": 1, "unknown_image": 1, "box_outside_image": 1, "missing_field": 1}
    left_out = {"annotations": bad[:1] + bad[-1:]}
    account = evaluate(FakeModel(), "boxes", instances(folder, **left_out), crowds="leave-out")["accounting"][0]
    assert account["rows"] == account["evaluated"] == 1 and account["notes"]["crowds_left_out"] == 1


def test_boxes_read_lvis_urls_sizes_from_the_image_and_chinese_names(folder):
    (folder / "val2017").mkdir()
    (folder / "a.png").rename(folder / "val2017" / "a.png")
    images = [
        {"id": 1, "coco_url": "http://images.example/val2017/a.png"}
    ]  # no name and no size, as in LVIS and BoxClass-CN
    categories = [{"id": 7, "name": "红色"}, {"id": 9, "name": "绿色"}, {"id": 8, "name": "蓝色"}]
    result = evaluate(FakeModel(), "boxes", instances(folder, images=images, categories=categories))
    assert result["scores"]["boxes_top1"] == pytest.approx(2 / 3)
    (folder / "names.txt").write_text("7\tred\n9\tgreen\n8\tblue\n", encoding="utf-8")
    named = evaluate(
        FakeModel(), "boxes", instances(folder, images=images), class_names=folder / "names.txt", template=("a {}",)
    )
    assert named["scores"]["boxes_top1"] == pytest.approx(2 / 3) and named["settings"]["templates"] == ["a {}"]


def test_bad_templates_and_empty_class_names_are_refused(folder):
    with pytest.raises(EvaluationError, match="must hold {} once"):
        evaluate(FakeModel(), "boxes", instances(folder), template=("no place",))
    with pytest.raises(EvaluationError, match="empty name"):
        categories = [{"id": 7, "name": " "}, {"id": 9, "name": "green"}]
        evaluate(FakeModel(), "boxes", instances(folder, categories=categories))


def test_boxes_of_coco_mini_match_a_loop_and_every_instance_is_counted(tmp_path):
    root = shared("data/coco-mini")
    model = FakeModel()
    content = json.loads((root / "instances.json").read_text(encoding="utf-8"))
    few = tmp_path / "few.json"
    few.write_text(json.dumps(content | {"annotations": content["annotations"][:300]}), encoding="utf-8")
    result = evaluate(model, "boxes", few, images=root / "images", crowds="leave-out")
    account = result["accounting"][0]
    crowds = sum(annotation["iscrowd"] for annotation in content["annotations"][:300])
    assert account["rows"] == 300 - crowds and account["skipped"] == {}
    classes = sorted(content["categories"], key=lambda c: c["id"])
    texts = torch.stack([text_vector(c["name"], "region") for c in classes])
    images = {image["id"]: image for image in content["images"]}
    hits, count, features = [0, 0], 0, {}
    for annotation in content["annotations"][:300]:
        if annotation["iscrowd"]:
            continue
        image = images[annotation["image_id"]]
        if image["id"] not in features:
            opened = Image.open(root / "images" / image["file_name"])
            features[image["id"]] = model.encode_images([model.prepare(opened)], dense=True)
        x, y, w, h = annotation["bbox"]
        W, H = image["width"], image["height"]
        box = torch.tensor([[x / W, y / H, (x + w) / W, (y + h) / H]]).clamp(0, 1)
        region = model.pool_regions(features[image["id"]], box, torch.tensor([0]))[0][0]
        order = [classes[at]["id"] for at in (texts @ region).argsort(descending=True)[:5].tolist()]
        hits[0] += order[0] == annotation["category_id"]
        hits[1] += annotation["category_id"] in order
        count += 1
    assert count == account["evaluated"] and hits[1] > 0
    assert result["scores"]["boxes_top1"] == pytest.approx(hits[0] / count)
    assert result["scores"]["boxes_top5"] == pytest.approx(hits[1] / count)
