"""Published protocols: rows reach the result, and miniatures of the real files score as worked out by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from pipeline.evaluation import EvaluationError, evaluate
from pipeline.evaluation.options.base import make_options
from pipeline.evaluation.protocols.command import described
from pipeline.evaluation.protocols.rows import protocol_names, rows_of
from pipeline.evaluation.registry import TASKS
from pipeline.evaluation.tasks.detection import fuse
from tests.evaluation.fake import FakeModel, text_vector
from tests.shared_data import shared

COLOURS = ((250, 10, 10), (10, 250, 10), (10, 10, 250))


@pytest.fixture()
def templates(tmp_path, monkeypatch):
    """An installed open_clip with two templates and three class names; only its file of texts can be imported."""
    package = tmp_path / "site" / "open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('torchvision is not here')", encoding="utf-8")
    (package / "zero_shot_metadata.py").write_text(
        "OPENAI_IMAGENET_TEMPLATES = (lambda c: f'a photo of a {c}.', lambda c: f'the {c}.')\n"
        "IMAGENET_CLASSNAMES = ['red', 'green', 'blue']\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return ["a photo of a {}.", "the {}."]


def mean_vectors(names, templates, kind):
    rows = [torch.stack([text_vector(template.format(name), kind) for template in templates]).mean(0) for name in names]
    return torch.nn.functional.normalize(torch.stack(rows), dim=1)


@pytest.mark.parametrize("protocol", protocol_names())
def test_every_row_is_whole_and_its_options_are_the_tasks(protocol):
    for row in rows_of(protocol):
        kind = TASKS[row.task].options()
        options = make_options(kind, row.task, {**row.options, "data": ("x",)})
        assert row.title and row.source and row.where and "data" in row.files
        assert set(row.files) <= set(kind.model_fields) and set(row.needs) <= set(kind.model_fields)
        assert options.model_fields_set >= set(row.options)


def test_the_docs_list_every_row_with_its_command():
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for protocol in protocol_names():
        for row in rows_of(protocol):
            assert described(row) in text, f"write docs/evaluation.md anew: {row.reference}"


def coco_miniature(folder, names=("red", "green", "blue"), crowd=True, **image):
    """Two images in COCO's form: three coloured boxes, one more around a crowd, one row without its box."""
    picture = Image.new("RGB", (120, 80), (110, 110, 110))
    draw = ImageDraw.Draw(picture)
    for number, colour in enumerate(COLOURS):
        draw.rectangle((40 * number, 0, 40 * number + 39, 79), fill=colour)
    for folder_name in ("val2017", "train2017"):
        (folder / folder_name).mkdir(parents=True, exist_ok=True)
        picture.save(folder / folder_name / "1.png")
    boxes = [[2, 0, 36, 80], [42, 0, 36, 80], [82, 0, 36, 80]]
    annotations = [{"id": n, "image_id": 1, "category_id": n + 1, "bbox": box} for n, box in enumerate(boxes)]
    if crowd:
        annotations.append({"id": 9, "image_id": 1, "category_id": 3, "bbox": [2, 0, 36, 80], "iscrowd": 1})
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 120, "height": 80} | image],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
        "annotations": annotations,
    }
    path = folder / "instances_val2017.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path, content


@pytest.mark.parametrize("protocol", ["fgclip", "fgclip2"])
def test_coco_boxes_are_measured_with_the_templates_and_with_crowds(protocol, tmp_path, templates):
    path, content = coco_miniature(tmp_path)
    result = evaluate(FakeModel(), "boxes", path, images=tmp_path / "val2017", protocol=protocol)
    assert result["settings"]["protocol"]["name"] == f"{protocol}:coco-boxes"
    assert result["settings"]["templates"] == templates
    # three boxes are right; the crowd's lies on red and is called blue: wrong
    assert result["scores"]["boxes_top1"] == pytest.approx(3 / 4)
    own = evaluate(FakeModel(), "boxes", path, images=tmp_path / "val2017", protocol=protocol, crowds="leave-out")
    assert own["scores"]["boxes_top1"] == 1.0
    assert own["settings"]["protocol"]["name"] == "own settings"
    assert own["settings"]["protocol"]["changed"] == {"crowds": "leave-out"}
    assert own["settings"]["protocol"]["from"] == f"{protocol}:coco-boxes"
    plain = evaluate(FakeModel(), "boxes", path, images=tmp_path / "val2017")
    assert plain["settings"]["protocol"] == {"name": "own settings"} and plain["settings"]["templates"] == ["{}"]
    content["annotations"].append({"id": 10, "image_id": 1, "category_id": 1})
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(EvaluationError, match="1 of 5 instances cannot be evaluated .missing_field 1"):
        evaluate(FakeModel(), "boxes", path, images=tmp_path / "val2017", protocol=protocol)


def test_lvis_boxes_are_those_on_images_of_val2017(tmp_path, templates):
    url = "http://images.cocodataset.org/{}/1.png"
    path, content = coco_miniature(tmp_path, crowd=False)
    content["images"] = [
        {"id": 1, "coco_url": url.format("val2017"), "width": 120, "height": 80, "neg_category_ids": []},
        {"id": 2, "coco_url": url.format("train2017"), "width": 120, "height": 80, "neg_category_ids": []},
    ]
    wrong = {"id": 11, "image_id": 2, "category_id": 3, "bbox": [2, 0, 36, 80]}  # outside the protocol: not a miss
    content["annotations"].append(wrong)
    path.write_text(json.dumps(content), encoding="utf-8")
    result = evaluate(FakeModel(), "boxes", path, images=tmp_path, protocol="fgclip2")
    assert result["settings"]["protocol"]["name"] == "fgclip2:lvis-boxes" and result["scores"]["boxes_top1"] == 1.0
    account = result["accounting"][0]
    assert account["rows"] == 3 and account["notes"]["instances_in_other_folders"] == 1


def test_boxclass_cn_is_measured_with_bare_names(tmp_path):
    path, _ = coco_miniature(tmp_path, names=("红色", "绿色", "蓝色"))
    result = evaluate(FakeModel(), "boxes", path, images=tmp_path / "val2017", protocol="fgclip2:boxclass-cn")
    assert result["settings"]["templates"] == ["{}"] and result["scores"]["boxes_top1"] == pytest.approx(3 / 4)
    recognised = evaluate(FakeModel(), "boxes", path.rename(tmp_path / "x.json"), images=tmp_path / "val2017",
                          protocol="fgclip2")  # fmt: skip
    assert recognised["settings"]["protocol"]["name"] == "fgclip2:boxclass-cn"


@pytest.mark.parametrize("protocol", ["fgclip", "fgclip2"])
def test_fgovd_counts_a_tie_as_a_hit(protocol, tmp_path):
    coco_miniature(tmp_path)
    rows = [
        ([2, 0, 36, 80], "a red thing", ["a green thing", "a blue thing"]),  # right
        ([2, 0, 36, 80], "蓝色的东西", ["红色的东西"]),  # wrong
        ([2, 0, 36, 80], "a red thing", ["A RED thing"]),  # the same text once lower-cased: a tie
        ([2, 0, 0, 80], "a red thing", ["a blue thing"]),  # damaged: no area
    ]
    path = tmp_path / "3_attributes_llava.jsonl"
    keys = {"img_path": "val2017/1.png", "width": 120, "height": 80}
    path.write_text(
        "".join(
            json.dumps(keys | {"bbox": box, "pos_expression": [true], "neg_expression": wrong}) + "\n"
            for box, true, wrong in rows
        ),
        encoding="utf-8",
    )
    result = evaluate(FakeModel(), "fgovd", path, images=tmp_path, protocol=protocol, max_skipped_share=0.5)
    assert result["scores"] == {"3_attributes_llava": pytest.approx(2 / 3)}
    assert result["accounting"][0]["skipped"] == {"box_outside_image": 1}
    assert result["accounting"][0]["notes"]["ties_counted_as_hits"] == 1
    assert evaluate(FakeModel(), "fgovd", path, images=tmp_path, max_skipped_share=0.5)["scores"] == {
        "3_attributes_llava": pytest.approx(1 / 3)
    }


def test_fusion_is_the_geometric_mean_with_the_softmax_over_all_classes(tmp_path, templates):
    """One box that the detector calls red with 0.64 and that is green: worked out by hand."""
    path, content = coco_miniature(tmp_path, crowd=False)
    content["images"][0] |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    content["categories"] = [one | {"frequency": "f"} for one in content["categories"]]
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [42, 0, 36, 80], "area": 2880}]
    path = path.rename(tmp_path / "lvis_v1_minival.json")
    path.write_text(json.dumps(content), encoding="utf-8")
    rows = [{"image_id": 1, "category_id": 1, "bbox": [42, 0, 36, 80], "score": 0.64}]
    rows += [{"image_id": 1, "category_id": 9, "bbox": [0, 0, 9, 9], "score": 0.5}]  # damaged: no such class
    (tmp_path / "results.json").write_text(json.dumps(rows), encoding="utf-8")
    options = {"images": tmp_path / "val2017", "proposals": tmp_path / "results.json", "protocol": "fgclip2"}
    result = evaluate(FakeModel(), "detection", path, **options)
    assert result["settings"]["protocol"]["name"] == "fgclip2:lvis-fusion"
    assert result["scores"]["detector"]["ap"] == 0.0 and result["scores"]["fused"]["ap"] == pytest.approx(1.0)
    assert result["accounting"][1]["skipped"] == {"unknown_class": 1}
    features = FakeModel().encode_images([FakeModel().prepare(Image.open(tmp_path / "val2017" / "1.png"))], dense=True)
    box = torch.tensor([[42 / 120, 0, 78 / 120, 1.0]])
    region = FakeModel().pool_regions(features, box, torch.tensor([0]))[0][0]
    classes = mean_vectors(["red", "green", "blue"], templates, "region")
    p = (region @ classes.T / 0.01).softmax(0)
    scores, winner = fuse(torch.tensor([0.64]), torch.tensor([0]), p[None], 0.5, 0.5)
    assert winner.item() == 1 and scores.item() == pytest.approx((0.64 * float(p[1])) ** 0.5)


@pytest.mark.parametrize("task", ["boxes", "detection"])
@pytest.mark.parametrize(
    "damage",
    [
        {"images": [7]},
        {"images": [{"file_name": "1.png"}]},
        {"categories": [{"name": "red"}]},
        {"annotations": ["x"]},
        {"annotations": 3},
        {"images": None},
    ],
)
def test_annotations_that_are_not_built_as_published_are_one_line(task, damage, tmp_path):
    path, content = coco_miniature(tmp_path)
    path.write_text(json.dumps(content | damage), encoding="utf-8")
    (tmp_path / "results.json").write_text("[]", encoding="utf-8")
    options = {"proposals": tmp_path / "results.json"} if task == "detection" else {}
    for protocol in ({}, {"protocol": "fgclip2"}):
        with pytest.raises(EvaluationError):
            evaluate(FakeModel(), task, path, images=tmp_path / "val2017", **options, **protocol)


def test_images_outside_the_folder_are_not_read(tmp_path):
    path, content = coco_miniature(tmp_path, crowd=False)
    for name in ("../train2017/2.png", str(tmp_path / "train2017" / "2.png")):
        shutil.copy(tmp_path / "train2017" / "1.png", tmp_path / "train2017" / "2.png")
        content["images"][0]["file_name"] = name
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(EvaluationError, match="missing_image 3"):
            evaluate(FakeModel(), "boxes", path, images=tmp_path / "val2017")


@pytest.mark.parametrize("protocol", ["fgclip", "fgclip2"])
def test_imagenet_is_named_by_open_clip_in_the_order_of_the_folders(protocol, tmp_path, templates):
    for order, names in (("wnids", ["n01", "n02", "n10"]), ("numbers", ["0", "1", "2"])):
        for name, colour in zip(names, COLOURS, strict=True):
            (tmp_path / order / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), colour).save(tmp_path / order / name / "a.png")
        options = {"class_names": "open_clip", "protocol": protocol}
        result = evaluate(FakeModel(), "classification", tmp_path / order, **options)
        assert result["scores"]["top1"] == 1.0 and result["settings"]["templates"] == templates
        assert result["settings"]["protocol"]["name"].startswith(f"{protocol}:imagenet")
        not_applicable = ["patch_budgets"] if protocol == "fgclip2" else []  # the fake takes one size
        assert result["settings"]["protocol"].get("not_applicable", []) == not_applicable
    with pytest.raises(EvaluationError, match="needs --class-names: open_clip"):
        evaluate(FakeModel(), "classification", tmp_path / "wnids", protocol=protocol)


def test_templates_are_read_from_a_file_or_named_where_they_are_missing(tmp_path, monkeypatch):
    path, _ = coco_miniature(tmp_path, crowd=False)
    (tmp_path / "prompts.txt").write_text("a photo of {c}\n一张{}的照片\n", encoding="utf-8")
    result = evaluate(FakeModel(), "boxes", path, images=tmp_path / "val2017", templates=str(tmp_path / "prompts.txt"))
    assert result["settings"]["templates"] == ["a photo of {}", "一张{}的照片"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for source in ("open_clip", "nowhere.txt"):
        with pytest.raises(EvaluationError, match="pip install --no-deps open_clip_torch"):
            evaluate(FakeModel(), "boxes", path, images=tmp_path / "val2017", templates=source)


def test_protocols_and_rows_that_are_not_there_are_answered_with_those_that_are(tmp_path):
    path, _ = coco_miniature(tmp_path)
    for protocol, message in (
        ("fgclip3", "it must be one of anomaly, fgclip, fgclip2, scclip"),
        ("fgclip2:coco-box", "it has coco-boxes, lvis-boxes"),
        ("fgclip2:fgovd", "is measured by fgovd, not by boxes"),
        ("scclip", "scclip has no row for boxes; it has some for segmentation"),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluate(FakeModel(), "boxes", path, protocol=protocol)


def test_coco_mini_runs_as_published_without_a_raised_limit(templates):
    root = shared("data/coco-mini")
    result = evaluate(FakeModel(), "boxes", root / "instances.json", images=root / "images", protocol="fgclip2")
    assert result["accounting"][0]["rows"] == result["accounting"][0]["evaluated"] == 2163
    assert result["settings"]["protocol"]["name"] == "fgclip2:coco-boxes"
    found = evaluate(FakeModel(), "fgovd", root / "fgovd", images=root, protocol="fgclip2")
    assert sorted(found["scores"]) == ["easy", "hard", "medium", "trivial"]
    assert found["settings"]["protocol"]["name"] == "fgclip2:fgovd"
