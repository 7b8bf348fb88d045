"""Classification of whole images, and the pictures of dense maps."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pipeline.evaluation import EvaluationError, evaluate, pictures
from pipeline.evaluation.templates import IMAGE_TEMPLATES
from tests.evaluation.fake import FakeModel, noisy, solid, text_vector

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def plain_top1(model, images, labels, names, templates):
    """The class whose mean prompt is nearest, image by image."""
    classes = []
    for name in names:
        mean = torch.stack([text_vector(template.format(name), "short") for template in templates]).mean(0)
        classes.append(mean / mean.norm())
    right = 0
    for image, label in zip(images, labels, strict=True):
        embed = model.encode_images([model.prepare(image)]).embeds[0]
        right += max(range(len(names)), key=lambda at: float(embed @ classes[at])) == label
    return right / len(images)


@pytest.fixture()
def class_folders(tmp_path):
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(2):
            solid(colour).save(tmp_path / name / f"{number}.png")
    noisy(0).save(tmp_path / "red" / "2.png")
    return tmp_path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_class_folders_are_scored_as_by_hand(class_folders, language):
    names = list(COLOURS) if language == "en" else ["红色", "绿色", "蓝色"]
    mapping = dict(zip(COLOURS, names, strict=True))
    (class_folders / "names.json").write_text(json.dumps(mapping, ensure_ascii=False), encoding="utf-8")
    model = FakeModel()
    result = evaluate(
        model, "classification", class_folders, language=language, class_names=class_folders / "names.json"
    )
    files = sorted(class_folders.glob("*/*.png"))
    order = sorted(COLOURS)
    images, labels = [Image.open(f) for f in files], [order.index(f.parent.name) for f in files]
    expected = plain_top1(model, images, labels, [mapping[name] for name in order], IMAGE_TEMPLATES[language])
    assert result["scores"]["top1"] == pytest.approx(expected) and expected > 0.8
    assert result["scores"]["top5"] == 1.0
    assert result["settings"]["templates"] == list(IMAGE_TEMPLATES[language])
    assert result["accounting"][0]["evaluated"] == 7


def test_unknown_classes_and_broken_images_are_counted(class_folders):
    (class_folders / "names.txt").write_text("red\tred\ngreen\tgreen\n", encoding="utf-8")
    (class_folders / "red" / "0.png").write_bytes(b"no image")
    options = {"class_names": class_folders / "names.txt", "max_skipped_share": 0.5}
    account = evaluate(FakeModel(), "classification", class_folders, **options)["accounting"][0]
    assert account["skipped"] == {"unknown_class": 2, "broken_image": 1} and account["evaluated"] == 4


def write_clip_benchmark(folder, samples, names):
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(names), encoding="utf-8")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nthe {c}\n", encoding="utf-8")
    for shard in range(2):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for key, image, label in samples[shard::2]:
                data = io.BytesIO()
                if image is not None:
                    image.save(data, "WEBP", lossless=True)
                for extension, content in (("webp", data.getvalue()), ("cls", label)):
                    if content is not None and (extension != "webp" or image is not None):
                        member = tarfile.TarInfo(f"{key}.{extension}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))


def test_clip_benchmark_tars_are_scored_with_their_own_templates(tmp_path):
    samples = [(f"s{n}", solid(list(COLOURS.values())[n % 3]), str(n % 3 if n else 1).encode()) for n in range(6)]
    write_clip_benchmark(tmp_path, samples, list(COLOURS))
    result = evaluate(FakeModel(), "classification", tmp_path)
    labels = [1, 1, 2, 0, 1, 2]
    expected = plain_top1(
        FakeModel(), [image for _, image, _ in samples], labels, list(COLOURS), ["a photo of a {}.", "the {}"]
    )
    assert result["scores"]["top1"] == pytest.approx(expected) == pytest.approx(5 / 6)
    assert result["settings"]["templates"] == ["a photo of a {}.", "the {}"]


def test_clip_benchmark_faults_are_counted(tmp_path):
    samples = [
        ("good", solid(COLOURS["red"]), b"0"),
        ("no-image", None, b"0"),
        ("no-class", solid(COLOURS["red"]), None),
        ("unknown", solid(COLOURS["red"]), b"17"),
    ]
    write_clip_benchmark(tmp_path, samples, list(COLOURS))
    account = evaluate(FakeModel(), "classification", tmp_path, max_skipped_share=0.9)["accounting"][0]
    assert account["skipped"] == {"missing_image": 1, "missing_class": 1, "unknown_class": 1}
    with pytest.raises(EvaluationError, match="classnames.txt and train"):
        evaluate(FakeModel(), "classification", tmp_path, format="clip-benchmark", split="train")


def test_dense_maps_are_pictures_for_an_english_and_a_chinese_phrase(tmp_path):
    image = Image.new("RGB", (64, 32), (110, 110, 110))
    image.paste(COLOURS["red"], (0, 0, 32, 32))
    image.save(tmp_path / "scene.png")
    result = evaluate(
        FakeModel(), "dense-maps", tmp_path / "scene.png", phrases=("a red circle", "红色的圆"), out=tmp_path / "maps"
    )
    names = sorted(path.name for path in (tmp_path / "maps").glob("*.png"))
    assert names == ["scene-1-a-red-circle.png", "scene-2-红色的圆.png"]
    assert result["accounting"][0]["evaluated"] == 1
    index = json.loads((tmp_path / "maps" / "pictures.json").read_text(encoding="utf-8"))
    assert index["scene-2-红色的圆.png"]["phrase"] == "红色的圆"
    picture = np.array(Image.open(tmp_path / "maps" / names[0]).convert("RGB")).astype(int)
    start, half = pictures.LARGEST_SIDE + 4, pictures.LARGEST_SIDE // 2  # the map is right of the image and a gap
    right = (picture[40:, start + 20 : start + half - 20], picture[40:, start + half + 20 : start + 2 * half - 20])
    assert right[0][..., 0].mean() > right[1][..., 0].mean() + 30  # the red half glows warm, the other does not


def test_text_that_no_font_has_is_never_drawn_as_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.drawing.fonts._installed", lambda: ())
    monkeypatch.delenv("PICTURE_FONT", raising=False)
    written = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **kw: written.append(text))
    pictures.heat_picture(solid((9, 9, 9)), np.zeros((2, 2)), "红色的圆", 2)
    pictures.detection_picture(solid((9, 9, 9)), [((1, 1, 9, 9), "红色的圆 0.9")], tmp_path / "d.png")
    assert written == ["phrase 2, see the file name", "cosine 0.00 to 0.00", "1"]
    assert "红色的圆 0.9" in (tmp_path / "pictures.json").read_text(encoding="utf-8")


def test_dense_maps_need_phrases_and_a_folder(tmp_path):
    solid((9, 9, 9)).save(tmp_path / "a.png")
    for options, message in (
        ({}, "no phrase was given"),
        ({"phrases": ("a cat", " ")}, "is empty"),
        ({"phrases": ("a cat",)}, "no folder for the pictures"),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluate(FakeModel(), "dense-maps", tmp_path / "a.png", **options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="holds no image"):
        evaluate(FakeModel(), "dense-maps", tmp_path / "empty", phrases=("a",), out=tmp_path / "o")
