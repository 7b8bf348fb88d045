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
from tests.evaluation.fake import FakeModel, noisy, text_vector
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


def test_coco_boxes_are_measured_with_the_templates_and_with_crowds(tmp_path, templates):
    path, content = coco_miniature(tmp_path)
    result = evaluate(FakeModel(), "boxes", path, images=tmp_path / "val2017", protocol="fgclip2")
    assert result["settings"]["protocol"]["name"] == "fgclip2:coco-boxes"
    assert result["settings"]["templates"] == templates
    # three boxes are right; the crowd's lies on red and is called blue: wrong
    assert result["scores"]["boxes_top1"] == pytest.approx(3 / 4)
    own = evaluate(FakeModel(), "boxes", path, images=tmp_path / "val2017", protocol="fgclip2", crowds="leave-out")
    assert own["scores"]["boxes_top1"] == 1.0
    assert own["settings"]["protocol"]["name"] == "own settings"
    assert own["settings"]["protocol"]["changed"] == {"crowds": "leave-out"}
    assert own["settings"]["protocol"]["from"] == "fgclip2:coco-boxes"
    plain = evaluate(FakeModel(), "boxes", path, images=tmp_path / "val2017")
    assert plain["settings"]["protocol"] == {"name": "own settings"} and plain["settings"]["templates"] == ["{}"]
    content["annotations"].append({"id": 10, "image_id": 1, "category_id": 1})
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(EvaluationError, match="1 of 5 instances cannot be evaluated .missing_field 1"):
        evaluate(FakeModel(), "boxes", path, images=tmp_path / "val2017", protocol="fgclip2")


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


def test_fgovd_counts_a_tie_as_a_hit(tmp_path):
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
    result = evaluate(FakeModel(), "fgovd", path, images=tmp_path, protocol="fgclip2", max_skipped_share=0.5)
    assert result["scores"] == {"3_attributes_llava": pytest.approx(2 / 3)}
    assert result["accounting"][0]["skipped"] == {"box_outside_image": 1}
    assert result["accounting"][0]["notes"]["ties_counted_as_hits"] == 1
    assert evaluate(FakeModel(), "fgovd", path, images=tmp_path, max_skipped_share=0.5)["scores"] == {
        "3_attributes_llava": pytest.approx(1 / 3)
    }


@pytest.fixture()
def pictures(tmp_path):
    for number in range(4):
        noisy(number).save(tmp_path / f"{number}.jpg", quality=95)
    return tmp_path


def pair_recall(folder, names, texts, owner, kind):
    """i2t and t2i R@1 by plain loops."""
    model = FakeModel()
    images = torch.cat([model.encode_images([model.prepare(Image.open(folder / name))]).embeds for name in names])
    similarity = images @ torch.stack([text_vector(text, kind) for text in texts]).T
    i2t = [owner[int(row.argmax())] == number for number, row in enumerate(similarity)]
    t2i = [int(column.argmax()) == owner[number] for number, column in enumerate(similarity.T)]
    return sum(i2t) / len(i2t), sum(t2i) / len(t2i)


def test_coco_captions_are_the_first_five_without_a_prompt(pictures):
    model = FakeModel()
    model.short_prefix = lambda language: "a photo of "
    texts = [[f"caption {number} of {image}" for number in range(7 if image == 0 else 5)] for image in range(3)]
    content = {
        "images": [{"id": image, "file_name": f"{image}.jpg"} for image in range(3)],
        "annotations": [{"image_id": i, "caption": text} for i, group in enumerate(texts) for text in group],
    }
    path = pictures / "captions_val2017.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    result = evaluate(model, "retrieval", path, protocol="fgclip2")
    assert result["settings"]["protocol"]["name"] == "fgclip2:coco"
    assert result["settings"]["num_captions"] == 15 and result["settings"]["short_prefix"] == ""
    flat = [text for group in texts for text in group[:5]]
    expected = pair_recall(pictures, [f"{n}.jpg" for n in range(3)], flat, [n // 5 for n in range(15)], "short")
    assert (result["scores"]["i2t_r1"], result["scores"]["t2i_r1"]) == pytest.approx(expected)
    assert evaluate(model, "retrieval", path)["settings"]["short_prefix"] == "a photo of "


CHINESE = ["一只红色的杯子放在木桌上", "绿色的草地上有两只羊", "蓝色的天空下的海", "雪地里的一座小屋"]


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".csv", ".jsonl", ".dat", ""])
def test_a_headerless_chinese_list_scores_as_the_same_list_in_json(pictures, suffix):
    """Whatever its suffix: the long path, Chinese, no prefix, and the result says so."""
    model = FakeModel()
    model.short_prefix = lambda language: {"en": "a photo of ", "zh": ""}[language]
    rows = [(f"{number}.jpg", text) for number, text in enumerate(CHINESE)]
    listed, as_json = pictures / f"lit_cn{suffix}", pictures / "as.json"
    listed.write_text("".join(f"{image}\t{text}\n" for image, text in rows), encoding="utf-8")
    as_json.write_text(json.dumps([{"image": i, "caption": t} for i, t in rows], ensure_ascii=False), encoding="utf-8")
    results = [
        evaluate(model, "retrieval", path, images=pictures, **options)
        for path in (listed, as_json)
        for options in ({}, {"format": "lit-cn"}, {"protocol": "fgclip2"})
    ]
    expected = pair_recall(pictures, [image for image, _ in rows], CHINESE, range(4), "long")
    for result in results:
        settings = result["settings"]
        assert (result["scores"]["i2t_r1"], result["scores"]["t2i_r1"]) == pytest.approx(expected)
        assert (settings["text_kind"], settings["language"], settings["short_prefix"]) == ("long", "zh", "")
    assert model.kinds_asked == {"long"}
    assert results[0]["settings"]["text_kind_from"] == "a Chinese list with one caption an image"
    assert results[2]["settings"]["protocol"]["name"] == "fgclip2:lit-cn"


def test_lists_have_tabs_or_commas_a_header_or_none_and_a_damaged_row_is_named(pictures):
    forms = {
        "tab.txt": "image\tcaption\n0.jpg\ta red bus, by the road\n1.jpg\ttwo trees\n",
        "comma.txt": '0.jpg,"a red bus, by the road"\n1.jpg,two trees\n',
        "bare.txt": "0.jpg,a red bus, by the road\n1.jpg,two trees\n",
        "header.csv": '\ufefffile_name,caption\n0.jpg,"a red bus, by the road"\n1.jpg,two trees\n',
        "numbered.txt": "0.jpg#0\ta red bus, by the road\n1.jpg#0 two trees\n",
    }
    for name, text in forms.items():
        path = pictures / name
        path.write_text(text, encoding="utf-8")
        result = evaluate(FakeModel(), "retrieval", path)
        assert result["settings"]["num_captions"] == 2 and result["settings"]["language"] == "en", name
        expected = pair_recall(pictures, ["0.jpg", "1.jpg"], ["a red bus, by the road", "two trees"], [0, 1], "short")
        assert (result["scores"]["i2t_r1"], result["scores"]["t2i_r1"]) == pytest.approx(expected), name
    (pictures / "damaged.txt").write_text("0.jpg\t红色的巴士\n1.jpg\n2.jpg\t \n", encoding="utf-8")
    account = evaluate(FakeModel(), "retrieval", pictures / "damaged.txt", max_skipped_share=0.9)["accounting"][0]
    assert account["skipped"] == {"empty_caption": 2} and "damaged.txt:2" in account["examples"]["empty_caption"][0]
    (pictures / "words.txt").write_text("nonsense\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match="line 1 is 'nonsense'; write the image, a tab or comma"):
        evaluate(FakeModel(), "retrieval", pictures / "words.txt")


def test_urban1k_is_two_folders_read_through_the_long_path(pictures):
    (pictures / "Urban1k" / "image").mkdir(parents=True)
    (pictures / "Urban1k" / "caption").mkdir()
    texts = ["a busy street\nwith a red bus", "two people cross", "a shop window"]
    for number, text in enumerate(texts):
        shutil.copy(pictures / f"{number}.jpg", pictures / "Urban1k" / "image" / f"{number + 9}.jpg")
        (pictures / "Urban1k" / "caption" / f"{number + 9}.txt").write_text(text + "\n", encoding="utf-8")
    (pictures / "Urban1k" / "caption" / "77.txt").write_text("its image is gone", encoding="utf-8")
    result = evaluate(FakeModel(), "retrieval", pictures / "Urban1k", protocol="fgclip2", max_skipped_share=0.3)
    assert result["settings"]["protocol"]["name"] == "own settings"  # the share of rows that may be lost was raised
    assert result["settings"]["protocol"]["from"] == "fgclip2:urban1k"
    assert result["settings"]["text_kind"] == "long" and result["settings"]["num_images"] == 3
    assert result["accounting"][0]["skipped"] == {"missing_image": 1}
    flat = [text.replace("\n", " ") for text in texts]
    expected = pair_recall(pictures, ["0.jpg", "1.jpg", "2.jpg"], flat, range(3), "long")
    assert (result["scores"]["i2t_r1"], result["scores"]["t2i_r1"]) == pytest.approx(expected)


def test_imagenet_is_named_by_open_clip_in_the_order_of_the_folders(tmp_path, templates):
    for order, names in (("wnids", ["n01", "n02", "n10"]), ("numbers", ["0", "1", "2"])):
        for name, colour in zip(names, COLOURS, strict=True):
            (tmp_path / order / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), colour).save(tmp_path / order / name / "a.png")
        options = {"class_names": "open_clip", "protocol": "fgclip2"}
        result = evaluate(FakeModel(), "classification", tmp_path / order, **options)
        assert result["scores"]["top1"] == 1.0 and result["settings"]["templates"] == templates
        assert result["settings"]["protocol"]["name"].startswith("fgclip2:imagenet")
        assert result["settings"]["protocol"]["not_applicable"] == ["patch_budgets"]  # the fake takes one size
    with pytest.raises(EvaluationError, match="needs --class-names: open_clip"):
        evaluate(FakeModel(), "classification", tmp_path / "wnids", protocol="fgclip2")


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
        ("fgclip3", "it must be one of fgclip, fgclip2, scclip"),
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
