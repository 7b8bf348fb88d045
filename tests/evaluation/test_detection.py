"""Detection: fusion's arithmetic, the library's own AP, LVIS's groups, and detectors of transformers."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pipeline.evaluation import EvaluationError, evaluate
from pipeline.evaluation.average_precision import average_precision
from pipeline.evaluation.proposals import Proposals, TransformersDetector, made_proposals, merged
from pipeline.evaluation.tasks.detection import fuse
from tests.data_tools.tiny_models import save_grounding_dino, save_owlv2
from tests.evaluation.fake import FakeModel
from tests.shared_data import shared


def test_fusion_is_the_power_product_over_all_classes():
    generator = torch.Generator().manual_seed(0)
    confidence, p = torch.rand(6, 4, generator=generator), torch.rand(6, 4, generator=generator).softmax(1)
    labels = confidence.argmax(1)
    scores, winners = fuse(confidence, labels, p, 0.3, 0.7)
    for q in range(6):
        expected = [float(confidence[q, c]) ** 0.3 * float(p[q, c]) ** 0.7 for c in range(4)]
        assert scores[q] == pytest.approx(max(expected)) and winners[q] == int(np.argmax(expected))
    scores, winners = fuse(confidence, labels, p, 1, 0)
    assert torch.equal(scores, confidence.double().amax(1)) and torch.equal(winners, labels)
    scores, winners = fuse(confidence[:, 0], torch.tensor([3] * 6), p, 1, 0)  # one confidence a box, and its class
    assert torch.equal(scores, confidence[:, 0].double()) and winners.tolist() == [3] * 6
    assert torch.equal(fuse(confidence[:, 0], labels, p, 0, 1)[1], p.argmax(1))


def perturbed(content, seed=0):
    """A detector's results file made from the truth: moved boxes, some wrong classes, some inventions."""
    random = np.random.default_rng(seed)
    classes = [category["id"] for category in content["categories"]]
    rows = []
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        dx, dy, dw, dh = random.normal(0, 0.08, 4)
        box = [x + dx * w, y + dy * h, w * (1 + dw), h * (1 + dh)]
        category = annotation["category_id"] if random.random() < 0.8 else int(random.choice(classes))
        rows.append((annotation["image_id"], category, box, float(random.beta(4, 2))))
        if random.random() < 0.5:
            rows.append((annotation["image_id"], int(random.choice(classes)), [5, 5, 40, 60], float(random.beta(2, 4))))
    return [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in rows]


def test_alpha_one_beta_zero_is_the_detectors_own_ap_on_real_images(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    root = shared("data/coco-mini")
    content = json.loads((root / "instances.json").read_text(encoding="utf-8"))
    few = {image["id"] for image in content["images"][:60]}
    content["images"] = [image for image in content["images"] if image["id"] in few]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in few]
    rows = perturbed(content)
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(content), encoding="utf-8")
    results.write_text(json.dumps(rows), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        own = coco.COCO(str(truth))
        evaluator = COCOeval(own, own.loadRes(str(results)), "bbox")
        evaluator.evaluate(), evaluator.accumulate(), evaluator.summarize()
    found = evaluate(FakeModel(), "detection", truth, images=root / "images", proposals=results, alpha=1.0, beta=0.0)
    for kind in ("fused", "detector"):
        assert found["scores"][kind]["ap"] == pytest.approx(evaluator.stats[0], abs=1e-6)
        assert found["scores"][kind]["ap50"] == pytest.approx(evaluator.stats[1], abs=1e-6)
    assert found["scores"]["model"]["ap"] < found["scores"]["detector"]["ap"]
    instances, proposals = found["accounting"]
    assert instances["rows"] == instances["evaluated"] == len(content["annotations"])
    assert proposals["rows"] == proposals["evaluated"] == len(rows)


@pytest.fixture()
def coloured(tmp_path):
    """Three pictures of coloured squares, their truth in LVIS's form, and a detector that mixes up the colours."""
    colours = {
        1: ("red_square", "f", (250, 0, 0)),
        2: ("green_square", "c", (0, 250, 0)),
        3: ("blue_square", "r", (0, 0, 250)),
    }
    images, annotations, results = [], [], []
    for number in range(3):
        picture = Image.new("RGB", (96, 64), (100, 100, 100))
        draw = ImageDraw.Draw(picture)
        for at in range(2):
            category = 1 + (number + at) % 3
            x = 4 + 48 * at
            draw.rectangle((x, 8, x + 40, 56), fill=colours[category][2])
            bbox = [x, 8, 40, 48]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": bbox, "area": 1920}
            )
            wrong = 1 + category % 3
            results.append(
                {"image_id": number, "category_id": wrong if at else category, "bbox": bbox, "score": 0.8 - at * 0.1}
            )
            results.append({"image_id": number, "category_id": category, "bbox": [x, 8, 12, 12], "score": 0.1})
        picture.save(tmp_path / f"{number}.png")
        images.append(
            {
                "id": number,
                "coco_url": f"http://images.example/x/{number}.png",
                "width": 96,
                "height": 64,
                "neg_category_ids": [1, 2, 3],
                "not_exhaustive_category_ids": [],
            }
        )
    categories = [{"id": at, "name": name, "frequency": frequency} for at, (name, frequency, _) in colours.items()]
    truth = tmp_path / "lvis.json"
    truth.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories}), encoding="utf-8"
    )
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return tmp_path


def test_lvis_groups_are_reported_and_fusion_mends_the_detectors_classes(coloured):
    common = {"images": coloured, "proposals": coloured / "results.json"}
    found = evaluate(FakeModel(), "detection", coloured / "lvis.json", **common)
    assert found["settings"]["rules"] == "LVIS"
    fused, detector, model = (found["scores"][kind] for kind in ("fused", "detector", "model"))
    assert {"ap", "ap_rare", "ap_common", "ap_frequent"} <= set(fused)
    assert fused["ap"] == pytest.approx(1.0) and detector["ap"] < 0.8
    assert model["ap"] <= fused["ap"]


def test_lvis_groups_are_the_frequencies_that_the_file_names(coloured):
    content = json.loads((coloured / "lvis.json").read_text(encoding="utf-8"))
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in content["annotations"]
        if a["category_id"] != 3  # the rare class is never found
    ]
    found = average_precision(content, perfect, [0, 1, 2])
    assert found["ap_rare"] == 0.0 and found["ap_common"] == found["ap_frequent"] == pytest.approx(1.0)
    with pytest.raises(EvaluationError, match="none of the evaluated images has a box"):
        average_precision(content | {"annotations": []}, perfect, [0, 1, 2])
    assert average_precision(content, [], [0, 1, 2])["ap"] == 0.0


def test_rows_that_no_image_or_class_owns_are_counted(coloured):
    rows = json.loads((coloured / "results.json").read_text(encoding="utf-8"))
    rows += [dict(rows[0], image_id=77), dict(rows[0], category_id=77), dict(rows[0], bbox=[500, 500, 10, 10])]
    (coloured / "results.json").write_text(json.dumps(rows), encoding="utf-8")
    (coloured / "2.png").unlink()
    content = json.loads((coloured / "lvis.json").read_text(encoding="utf-8"))
    content["annotations"].append(dict(content["annotations"][0], id=99, image_id=55))
    (coloured / "lvis.json").write_text(json.dumps(content), encoding="utf-8")
    found = evaluate(
        FakeModel(), "detection", coloured / "lvis.json", proposals=coloured / "results.json", max_skipped_share=0.9
    )
    instances, proposals = found["accounting"]
    assert instances["skipped"] == {"missing_image": 2, "unknown_image": 1} and instances["evaluated"] == 4
    assert proposals["skipped"] == {"unknown_image": 1, "unknown_class": 1}
    assert instances["notes"]["proposals_without_area_in_the_image_named_at_chance"] == 1


def test_scenes_have_made_proposals_and_pictures_in_both_languages(scenes, tmp_path):
    for language in ("en", "zh"):
        found = evaluate(FakeModel(), "detection", scenes, language=language, out=tmp_path / language)
        scores = {kind: value["ap"] for kind, value in found["scores"].items()}
        assert 0 < scores["model"] < scores["detector"] < 1 and scores["fused"] > 0
        assert found["settings"]["classes"] > 30  # whole phrases, not the six shapes
        again = evaluate(FakeModel(), "detection", scenes, language=language)
        assert again["scores"] == found["scores"]
        pictures = sorted((tmp_path / language).glob("*.png"))
        assert len(pictures) == 8 and max(path.stat().st_size for path in pictures) < 200_000
        index = json.loads((tmp_path / language / "pictures.json").read_text(encoding="utf-8"))
        assert set(index) == {path.name for path in pictures}
        assert index[pictures[0].name]["boxes"][0]["label"]


def test_made_proposals_lie_near_the_truth_and_beside_it():
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.5, 0.4, 0.9, 0.9]])
    made = made_proposals(boxes, torch.tensor([0, 2]), 3, torch.Generator().manual_seed(3))
    assert made.class_scores.shape == (4, 3) and (made.boxes >= 0).all() and (made.boxes <= 1).all()
    assert (made.boxes[:2] - boxes).abs().max() < 0.25
    assert torch.equal(made.scores, made.class_scores.amax(1))


def test_the_strongest_proposals_keep_their_order_where_equal():
    one = Proposals(torch.rand(4, 4), torch.tensor([0.2, 0.9, 0.2, 0.05]), torch.tensor([0, 1, 2, 3]))
    assert one.strongest(0.1, 10).labels.tolist() == [1, 0, 2] and one.strongest(0.0, 2).labels.tolist() == [1, 0]


@pytest.mark.parametrize("save", [save_owlv2, save_grounding_dino, lambda f: save_grounding_dino(f, mm=True)])
def test_detectors_of_transformers_score_every_class_of_every_box(save, coloured, tmp_path):
    folder = save(tmp_path / "detector")
    detector = TransformersDetector(folder)
    names = ["red bus", "cat", "white house"]
    found = detector(Image.open(coloured / "0.png"), names)
    assert found.class_scores.shape == (len(found.boxes), 3) and len(found.boxes) > 4
    assert (found.class_scores > 0).all() and (found.class_scores < 1).all()
    processed = detector.processor(
        images=Image.open(coloured / "0.png"),
        text=[names] if not detector.grounding else ". ".join(names) + ".",
        return_tensors="pt",
    )
    with torch.no_grad():
        output = detector.model(**processed)
    own = (
        detector.processor.post_process_grounded_object_detection(
            output, processed["input_ids"], threshold=0.0, text_threshold=0.0, target_sizes=[(64, 96)]
        )
        if detector.grounding
        else detector.processor.post_process_grounded_object_detection(output, threshold=0.0, target_sizes=[(64, 96)])
    )[0]
    ours = found.boxes * torch.tensor([96.0, 64.0, 96.0, 64.0])
    assert torch.allclose(ours.float(), own["boxes"], atol=0.02)
    if not detector.grounding:
        assert torch.allclose(found.scores.float(), own["scores"], atol=1e-5)
        assert found.labels.tolist() == own["labels"].tolist()
    result = evaluate(
        FakeModel(),
        "detection",
        coloured / "lvis.json",
        images=coloured,
        detector=folder,
        max_detections=20,
        class_names=write_names(coloured),
    )
    assert set(result["scores"]) == {"fused", "detector", "model"}


def write_names(folder):
    path = folder / "names.txt"
    path.write_text("1\tred bus\n2\twhite cat\n3\tblue house\n", encoding="utf-8")
    return path


def test_many_classes_go_to_a_grounding_detector_in_several_prompts(coloured, tmp_path, monkeypatch):
    from pipeline.evaluation import proposals

    folder = save_grounding_dino(tmp_path / "detector")
    detector = TransformersDetector(folder)
    names = ["red bus", "cat", "white house", "small dog", "large blue car"]
    monkeypatch.setattr(proposals, "PROMPT_TOKENS", 6)
    assert detector._prompts(names) == [[0, 1], [2, 3], [4]]
    image = Image.open(coloured / "0.png")
    found = detector(image, names)
    assert detector.num_prompts(names) == 3 and len(found.boxes) > 12
    asked_for_part = (found.class_scores > 0).sum(1) < len(names)
    assert asked_for_part.any()
    with pytest.raises(EvaluationError, match="needs 3 prompts for 3 classes .* use --confidence box"):
        monkeypatch.setattr(proposals, "PROMPT_TOKENS", 3)
        options = {"detector": folder, "class_names": write_names(coloured), "confidence": "class"}
        evaluate(FakeModel(), "detection", coloured / "lvis.json", images=coloured, **options)


class ChunkedDetector:
    """Scores the classes of ``chunks`` apart, each time on the same boxes, as prompts of a grounding model do."""

    def __init__(self, chunks, boxes, class_scores):
        self.chunks, self.boxes, self.class_scores = chunks, boxes, class_scores

    def num_prompts(self, names):
        return len(self.chunks)

    def __call__(self, image, names):
        rows = []
        for chunk in self.chunks:
            row = torch.zeros_like(self.class_scores)
            row[:, chunk] = self.class_scores[:, chunk]
            rows.append(row)
        return Proposals.of_class_scores(*merged(self.boxes.repeat(len(self.chunks), 1), torch.cat(rows)))


def test_two_prompts_fuse_as_one_where_their_boxes_are_the_same(coloured, monkeypatch):
    boxes = torch.tensor([[0.04, 0.12, 0.46, 0.9], [0.54, 0.12, 0.96, 0.9], [0.2, 0.3, 0.4, 0.5]], dtype=torch.float64)
    class_scores = torch.tensor([[0.2, 0.7, 0.1], [0.3, 0.1, 0.6], [0.05, 0.1, 0.02]], dtype=torch.float64)
    scores = {}
    for confidence in ("box", "auto"):
        for name, chunks in (("one", [[0, 1, 2]]), ("two", [[0, 1], [2]])):
            chunked = ChunkedDetector(chunks, boxes, class_scores)
            monkeypatch.setattr("pipeline.evaluation.tasks.detection.TransformersDetector", lambda *_, own=chunked: own)
            options = {"detector": coloured, "confidence": confidence}
            scores[name] = evaluate(FakeModel(), "detection", coloured / "lvis.json", **options)["scores"]
        assert scores["one"] == scores["two"]
        assert scores["two"]["fused"]["ap"] > scores["two"]["detector"]["ap"]


def test_a_box_competes_in_classes_that_its_prompt_did_not_hold():
    part = Proposals.of_class_scores(torch.rand(2, 4), torch.tensor([[0.49, 0.2, 0.0], [0.0, 0.0, 0.3]]))
    assert torch.equal(part.confidence("auto"), part.scores) and part.confidence("class").shape == (2, 3)
    whole = Proposals.of_class_scores(torch.rand(1, 4), torch.tensor([[0.49, 0.2, 0.1]]))
    assert whole.confidence("auto").shape == (1, 3) and whole.confidence("box").shape == (1,)
    p = torch.tensor([[0.1, 0.1, 0.8]])  # the model's, over all classes
    scores, winner = fuse(torch.tensor([0.49]), torch.tensor([0]), p, 0.5, 0.5)
    assert winner.item() == 2 and scores.item() == pytest.approx((0.49 * 0.8) ** 0.5)


def test_a_set_without_proposals_and_folders_without_a_detector_are_refused(coloured, tmp_path):
    with pytest.raises(EvaluationError, match="--detector a folder, or --proposals"):
        evaluate(FakeModel(), "detection", coloured / "lvis.json")
    with pytest.raises(EvaluationError, match="holds no config.json"):
        evaluate(FakeModel(), "detection", coloured / "lvis.json", detector=tmp_path)
