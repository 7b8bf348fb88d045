"""SC-CLIP's eight sets on a random CLIP, in the layouts as published: each pixel of an independent computation."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from pipeline.evaluation import EvaluationError, evaluate
from pipeline.evaluation.models.load import load_model
from pipeline.evaluation.scclip import Calibration
from tests.evaluation.fake import noisy
from tests.evaluation.test_models import save_tokenizer

NAMES = [["a red", "the red"], ["green"], ["blue", "photo of the blue", "circle"], ["square"]]
WORDS = ["word1", "word2 word3"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A random CLIP of 224 pixels: three blocks, patches of 32."""
    folder = tmp_path_factory.mktemp("clip224")
    vocabulary = save_tokenizer(folder, clip=True)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(vocabulary), "max_position_embeddings": 16}
    text |= {"eos_token_id": len(vocabulary) - 1, "bos_token_id": 1, "pad_token_id": 0}
    vision = {**sizes, "image_size": 224, "patch_size": 32}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    with torch.no_grad():
        for parameter in model.parameters():  # spread, so that cosines differ by more than rounding
            parameter.mul_(3.0)
    model.save_pretrained(folder)
    return load_model(folder)


@pytest.fixture()
def voc(tmp_path):
    """Three images of VOC's layout with 21 classes, the last one's label damaged; lists and templates as published."""
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / part).mkdir(parents=True)
    stems = ["2007_000033", "2007_000042", "2007_000061"]
    for number, (stem, size) in enumerate(zip(stems, [(120, 90), (70, 110), (64, 64)], strict=True)):
        noisy(number, size).save(tmp_path / "JPEGImages" / f"{stem}.jpg", quality=100)
        label = np.random.default_rng(number).integers(0, 5, (size[1], size[0])).astype(np.uint8)
        label[:4] = 255
        Image.fromarray(label).save(tmp_path / "SegmentationClass" / f"{stem}.png")
    (tmp_path / "SegmentationClass" / f"{stems[2]}.png").write_bytes(b"not a picture")
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")
    names = NAMES + [[f"word{number}"] for number in range(4, 20)]
    lines = [", ".join(WORDS), *(", ".join(synonyms) for synonyms in names)]
    (tmp_path / "cls_voc21.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "templates.txt").write_text("a photo of a {}\nthe {}\n", encoding="utf-8")
    return tmp_path, stems[:2], [WORDS, *names]


@torch.no_grad()
def label_map(model, path, names, scale=50.0, threshold=0.15, area_share=0.1, short_side=336):
    """The protocol, written out: background is class 0 (``threshold`` 0: there is none)."""
    queries, class_of = [], []
    for number, synonyms in enumerate(names):
        for name in synonyms:
            prompts = model.encode_texts([f"a photo of a {name}", f"the {name}"], "region")
            queries.append(F.normalize(prompts.mean(0), dim=0))
            class_of.append(number)
    queries, class_of = torch.stack(queries), torch.tensor(class_of)
    image = Image.open(path).convert("RGB")
    ratio = short_side / min(image.size)
    width, height = int(image.width * ratio + 0.5), int(image.height * ratio + 0.5)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False).round().clamp(0, 255)
    pixels = (pixels / 255 - model.mean) / model.std
    total, count = torch.zeros(len(queries), height, width), torch.zeros(height, width)
    for row in range(max(height - 224 + 111, 0) // 112 + 1):
        for column in range(max(width - 224 + 111, 0) // 112 + 1):
            bottom, right = min(row * 112 + 224, height), min(column * 112 + 224, width)
            top, left = max(bottom - 224, 0), max(right - 224, 0)
            features = model._features(torch.zeros(1, 0), *calibrated(model, pixels[..., top:bottom, left:right]))
            unit = F.normalize(features.dense[0], dim=-1)
            logits = (unit @ queries.T).T.reshape(1, -1, 7, 7)
            total[:, top:bottom, left:right] += F.interpolate(logits, (224, 224), mode="bilinear")[0]
            count[top:bottom, left:right] += 1
    logits = F.interpolate((total / count)[None], (image.height, image.width), mode="bilinear")[0]
    probabilities = (scale * logits).softmax(0)
    best = torch.stack([probabilities[class_of == number].max(0).values for number in range(len(names))])
    area = torch.stack([(best.argmax(0) == number).sum() for number in range(1, len(names))])
    if area_share:
        best[1:] *= (area > area_share * area.sum())[:, None, None]
    predicted = best.argmax(0)
    predicted[best.max(0).values < threshold] = 0
    return predicted.numpy(), area


def calibrated(model, pixels):
    from pipeline.evaluation.scclip import calibrated_patches

    tower = model.module.vision_model
    mask, shapes = model._grid(pixels)
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    patches = calibrated_patches(
        list(tower.encoder.layers), hidden, lambda block, states: block(states, None), mask=mask.bool(), grids=shapes,
        has_class_token=True, settings=Calibration(),
    )  # fmt: skip
    return patches, pixels


def test_voc21_is_segmented_as_the_protocol_says_pixel_by_pixel(clip, voc, tmp_path):
    folder, stems, names = voc
    options = {
        "protocol": "scclip:voc21",
        "class_names": folder / "cls_voc21.txt",
        "templates": str(folder / "templates.txt"),
        "predictions": tmp_path / "maps",
        "max_skipped_share": 0.4,
    }
    result = evaluate(clip, "segmentation", folder, **options)
    assert result["accounting"][0]["skipped"] == {"unreadable_label": 1}
    settings = result["settings"]
    assert (settings["window"], settings["stride"], settings["logit_scale"]) == (224, 112, 50)
    assert (settings["background_threshold"], settings["area_threshold"]) == (0.15, 0.1)
    num_dropped, hits = 0, np.zeros(21)
    unions = np.zeros(21)
    for stem in stems:
        expected, area = label_map(clip, folder / "JPEGImages" / f"{stem}.jpg", names)
        written = np.array(Image.open(tmp_path / "maps" / f"{stem}.png"))
        assert (written == expected).all(), f"{stem}: {(written != expected).sum()} pixels differ"
        num_dropped += int((area[area > 0] <= 0.1 * area.sum()).sum())
        truth = np.array(Image.open(folder / "SegmentationClass" / f"{stem}.png"))
        known = truth != 255
        for number in range(21):
            hits[number] += ((truth == number) & (expected == number) & known).sum()
            unions[number] += (((truth == number) | (expected == number)) & known).sum()
    assert num_dropped > 0  # some class is dropped for its area
    assert result["scores"]["miou"] == pytest.approx((hits[unions > 0] / unions[unions > 0]).mean())
    assert result["settings"]["protocol"]["changed"].keys() == {"templates", "max_skipped_share"}


def test_voc20_has_no_background_and_no_threshold(clip, voc, tmp_path):
    folder, stems, names = voc
    lines = (folder / "cls_voc21.txt").read_text(encoding="utf-8").splitlines()
    (folder / "cls_voc20.txt").write_text("\n".join(lines[1:]), encoding="utf-8")
    options = {"class_names": folder / "cls_voc20.txt", "templates": str(folder / "templates.txt")}
    options |= {"predictions": tmp_path / "maps", "max_skipped_share": 0.4, "protocol": "scclip:voc20"}
    result = evaluate(clip, "segmentation", folder, **options)
    assert result["settings"]["logit_scale"] == 40 and "background" not in result["scores"]["iou"]
    path = folder / "JPEGImages" / f"{stems[0]}.jpg"
    expected, _ = label_map(clip, path, names[1:], 40.0, 0.0, 0.0)
    assert (np.array(Image.open(tmp_path / "maps" / f"{stems[0]}.png")) == expected + 1).all()


@dataclass(frozen=True)
class Published:
    """A set as its publishers lay it out, and the row's numbers as SC-CLIP's configuration gives them."""

    list_name: str
    image: str
    label: str
    num_lines: int  # of the list of names
    background: bool  # the list's first line stands for the background, label 0
    first: int  # the label of the first class that is not background
    scale: float = 40.0
    threshold: float = 0.0
    short_side: int = 336
    listing: str = ""


SETS = {
    "context60": Published(
        "cls_context60.txt", "JPEGImages/2008_000002.jpg", "SegmentationClassContext/2008_000002.png", 60, True, 1,
        threshold=0.15, listing="ImageSets/SegmentationContext/val.txt",
    ),
    "context59": Published(
        "cls_context59.txt", "JPEGImages/2008_000002.jpg", "SegmentationClassContext/2008_000002.png", 59, False, 1,
        listing="ImageSets/SegmentationContext/val.txt",
    ),
    "coco-object": Published(
        "cls_coco_object.txt", "images/val2017/000000000139.jpg",
        "annotations/val2017/000000000139_instanceTrainIds.png", 81, True, 1, scale=55.0, threshold=0.35,
    ),
    "coco-stuff": Published(
        "cls_coco_stuff.txt", "images/val2017/000000000139.jpg",
        "annotations/val2017/000000000139_labelTrainIds.png", 171, False, 0,
    ),
    "ade20k": Published(
        "cls_ade20k.txt", "images/validation/ADE_val_00000001.jpg",
        "annotations/validation/ADE_val_00000001.png", 150, False, 1,
    ),
    "cityscapes": Published(
        "cls_city_scapes.txt", "leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png",
        "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelTrainIds.png", 19, False, 0, short_side=560,
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", sorted(SETS))
def test_the_other_sets_are_segmented_as_published_pixel_by_pixel(clip, row, tmp_path):
    published = SETS[row]
    for part in (published.image, published.label, *([published.listing] if published.listing else [])):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
    # Square, so that few windows cover it; VOC's images above are wider and higher.
    noisy(3, (70, 70)).save(tmp_path / published.image, **({"quality": 100} if ".jpg" in published.image else {}))
    # Few classes with words that the tokenizer knows, in both languages; the others are one unknown word to it.
    known = [["word1"], ["a red", "the red"], ["blue", "photo of the blue", "circle"], ["红 色", "的 圆"], ["square"]]
    names = known + [[f"nothing{number}"] for number in range(len(known), published.num_lines)]
    lines = [("，" if "红 色" in synonyms else ", ").join(synonyms) for synonyms in names]
    (tmp_path / published.list_name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "templates.txt").write_text("a photo of a {}\nthe {}\n", encoding="utf-8")
    # What label 0 is: background, no class (ADE20K, Context59), or the first class; 255 is never counted.
    label = np.random.default_rng(4).integers(0, 6, (70, 70)).astype(np.uint8)
    label[:3] = 255
    Image.fromarray(label).save(tmp_path / published.label)
    if published.listing:
        (tmp_path / published.listing).write_text("2008_000002\n2008_000003\n", encoding="utf-8")  # one is missing
    options = {"class_names": tmp_path / published.list_name, "templates": str(tmp_path / "templates.txt")}
    options |= {"predictions": tmp_path / "maps", "protocol": f"scclip:{row}", "max_skipped_share": 0.6}
    result = evaluate(clip, "segmentation", tmp_path, **options)
    assert result["accounting"][0]["skipped"] == ({"missing_image": 1} if published.listing else {})
    used = result["settings"]
    assert (used["logit_scale"], used["short_side"]) == (published.scale, published.short_side)
    expected, _ = label_map(
        clip, tmp_path / published.image, names, published.scale, published.threshold, 0.0, published.short_side
    )
    values = expected if published.background else expected + published.first
    (written,) = (np.array(Image.open(path)) for path in (tmp_path / "maps").rglob("*.png"))
    assert len(np.unique(values)) > 1 and (written == values).all(), f"{(written != values).sum()} pixels differ"
    counted = (label != 255) & ((label != 0) | published.background | (published.first == 0))
    classes = range(published.num_lines) if published.background else range(published.first, published.first + 171)
    pairs = [((label == c) & counted, (values == c) & counted) for c in classes]
    overlaps = [(true & found).sum() / (true | found).sum() for true, found in pairs if (true | found).any()]
    assert result["scores"]["miou"] == pytest.approx(np.mean(overlaps))


def test_the_list_of_synonyms_is_asked_for_and_checked(clip, voc):
    folder, _, _ = voc
    with pytest.raises(EvaluationError, match=r"scclip:voc21 needs --class-names: cls_voc21.txt of github.com"):
        evaluate(clip, "segmentation", folder, protocol="scclip:voc21")
    with pytest.raises(EvaluationError, match="say which of scclip:voc21"):
        evaluate(clip, "segmentation", folder, protocol="scclip", class_names=folder / "cls_voc21.txt")
    (folder / "few.txt").write_text("人, 行人\n杯子\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"has 2 lines; the set has 20 classes: one a line \(or one more"):
        evaluate(clip, "segmentation", folder, class_names=folder / "few.txt")
    assert json.dumps(clip.settings())
