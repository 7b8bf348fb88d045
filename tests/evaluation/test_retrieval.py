"""Retrieval keeps to the plain definition of recall, in every format that the sets come in."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from pipeline.evaluation import EvaluationError, evaluate
from pipeline.evaluation.formats.captions import READERS, read_captions, recognise
from pipeline.evaluation.formats.paths import ImageFinder
from pipeline.evaluation.tasks.retrieval import ranks_of_matches, recalls
from tests.evaluation.fake import FakeModel, noisy, text_vector
from tests.shared_data import shared

NAMES = ["a.jpg", "b.jpg", "c.jpg"]
TEXTS = [["a red bus", "the bus is red"], ["two green trees"], ["蓝色的天空", "a blue sky"]]


def plain_recalls(images, texts, owner, k):
    """Recall by sorting every row, one at a time."""
    hits_i2t = [
        any(owner[t] == i for t in sorted(range(len(texts)), key=lambda t: -float(images[i] @ texts[t]))[:k])
        for i in range(len(images))
    ]
    hits_t2i = [
        owner[t] in sorted(range(len(images)), key=lambda i: -float(images[i] @ texts[t]))[:k]
        for t in range(len(texts))
    ]
    return sum(hits_i2t) / len(hits_i2t), sum(hits_t2i) / len(hits_t2i)


@pytest.fixture()
def folder(tmp_path):
    for seed, name in enumerate(NAMES):
        noisy(seed).save(tmp_path / name, quality=95)
    return tmp_path


def test_recall_is_that_of_sorting_each_row():
    generator = torch.Generator().manual_seed(0)
    owner = torch.randint(0, 40, (130,), generator=generator)
    owner[:40] = torch.arange(40)
    images = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(images[owner] + torch.randn(130, 8, generator=generator), dim=1)
    found = recalls(images, texts, owner)
    for k in (1, 5, 10):
        i2t, t2i = plain_recalls(images, texts, owner.tolist(), k)
        assert found[f"i2t_r{k}"] == pytest.approx(i2t) and found[f"t2i_r{k}"] == pytest.approx(t2i)


def test_a_collapsed_model_finds_nothing():
    same = torch.ones(5, 4) / 2
    found = recalls(same, same, torch.arange(5))
    assert found["i2t_r1"] == found["t2i_r1"] == 0.0


def test_images_without_a_caption_do_not_count():
    images = torch.eye(3)
    i2t, t2i = ranks_of_matches(images, images[[0, 2]], torch.tensor([0, 2]))
    assert i2t.tolist() == [0, -1, 0] and t2i.tolist() == [0, 0]


def written(folder, form):
    """The same three images and five captions in one format; returns the path to give as --data."""
    pairs = [(name, text) for name, texts in zip(NAMES, TEXTS, strict=True) for text in texts]
    if form == "coco":
        content = {
            "images": [{"id": at, "file_name": name} for at, name in enumerate(NAMES)],
            "annotations": [{"image_id": NAMES.index(name), "caption": text} for name, text in pairs],
        }
    elif form == "flickr30k":
        content = {
            "images": [
                {"filename": name, "split": "test", "sentences": [{"raw": text} for text in texts]}
                for name, texts in zip(NAMES, TEXTS, strict=True)
            ]
            + [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "not of this split"}]}]
        }
    elif form == "sharegpt4v":
        turns = [[{"from": "human", "value": "Describe."}, {"from": "gpt", "value": text}] for _, text in pairs]
        content = [{"image": name, "conversations": turn} for (name, _), turn in zip(pairs, turns, strict=True)]
    elif form in ("coco-cn", "flickr30k-cna"):
        lines = [
            f"{name.removesuffix('.jpg')}#{'zhm#' if form == 'coco-cn' else ''}{at}\t{text}"
            for at, (name, text) in enumerate(pairs)
        ]
        path = folder / "list.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path
    elif form == "dci":
        path = folder / "annotations"
        path.mkdir()
        for at, (name, text) in enumerate(pairs):
            record = {"image": name, "short_caption": "not the long one", "extra_caption": text}
            (path / f"{at}.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
        return path
    else:
        field = {"docci": "description", "list": "captions"}.get(form, "caption")
        rows = [{"image_file": name, field: text, "split": "test"} for name, text in pairs]
        path = folder / f"{form}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path
    path = folder / f"{form}.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", sorted(set(READERS) - {"urban1k"}))
def test_every_format_gives_the_same_pairs_and_the_plain_result(form, folder):
    path = written(folder, form)
    found = read_captions(path, form, "long", "test", ImageFinder(folder, path))
    texts = [text.replace("\n", " ") for text in (caption.text for caption in found.captions)]
    assert texts == [text for group in TEXTS for text in group]
    assert [found.images[caption.image].path.name for caption in found.captions] == [
        "a.jpg",
        "a.jpg",
        "b.jpg",
        "c.jpg",
        "c.jpg",
    ]

    model = FakeModel()
    result = evaluate(model, "retrieval", path, images=folder, format=form, text_kind="long")
    prepared = [model.prepare(Image.open(folder / name)) for name in NAMES]
    images = model.encode_images(prepared).embeds
    vectors = torch.stack([text_vector(caption.text, "long") for caption in found.captions])
    i2t, t2i = plain_recalls(images, vectors, [0, 0, 1, 2, 2], 1)
    assert result["scores"]["i2t_r1"] == pytest.approx(i2t) and result["scores"]["t2i_r1"] == pytest.approx(t2i)
    assert result["accounting"][0]["rows"] == result["accounting"][0]["evaluated"] == 5


def test_forms_are_recognised_without_being_named(folder):
    for form in ("coco", "flickr30k", "sharegpt4v", "dci"):
        assert recognise(written(folder, form)) == form
    assert recognise(written(folder, "flickr30k-cna")) == "flickr30k-cna"
    assert recognise(written(folder, "docci")) == "list"
    with pytest.raises(EvaluationError, match="--format"):
        recognise(folder / "a.jpg")
    with pytest.raises(EvaluationError, match="is not of format flickr30k"):
        read_captions(written(folder, "coco"), "flickr30k", "short", "test", ImageFinder(folder, folder))


def test_csv_lists_and_names_without_an_ending_are_read(folder):
    path = folder / "captions.csv"
    path.write_text("image,caption\na,a red bus\nb,两棵绿树\n", encoding="utf-8-sig")
    found = read_captions(path, "list", "short", "test", ImageFinder(folder, path))
    assert [(found.images[c.image].path.name, c.text) for c in found.captions] == [
        ("a.jpg", "a red bus"),
        ("b.jpg", "两棵绿树"),
    ]


def test_every_row_is_accounted_for(folder):
    (folder / "c.jpg").write_bytes(b"\xff\xd8 not an image")
    rows = [
        ("a.jpg", "a red bus"),
        ("gone.jpg", "a ship"),
        ("b.jpg", "  "),
        ("b.jpg", None),
        ("c.jpg", "x"),
        ("b.jpg", "绿"),
    ]
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps({"image": n, "caption": t}) + "\n" for n, t in rows), encoding="utf-8")
    account = evaluate(FakeModel(), "retrieval", path, max_skipped_share=0.9)["accounting"][0]
    assert account["rows"] == 6 and account["evaluated"] == 2
    assert account["skipped"] == {"missing_image": 1, "empty_caption": 1, "no_caption": 1, "broken_image": 1}
    with pytest.raises(EvaluationError, match="4 of 6 captions.*max-skipped-share"):
        evaluate(FakeModel(), "retrieval", path)


def test_images_can_be_chosen_and_what_is_left_out_is_noted(folder):
    path = written(folder, "coco")
    (folder / "ids.txt").write_text("a.jpg\nc\n", encoding="utf-8")
    result = evaluate(FakeModel(), "retrieval", path, image_ids=folder / "ids.txt")
    assert result["settings"]["num_images"] == 2 and result["settings"]["num_captions"] == 4
    assert result["accounting"][0]["notes"] == {"captions_outside_the_chosen_ones": 1}
    assert evaluate(FakeModel(), "retrieval", path, max_images=1)["settings"]["num_captions"] == 2


def test_the_text_path_follows_the_set_and_the_prefix_only_short_texts(folder):
    model = FakeModel()
    short = evaluate(model, "retrieval", written(folder, "coco"), short_prefix="a photo of ")
    assert model.kinds_asked == {"short"} and short["settings"]["short_prefix"] == "a photo of "
    model = FakeModel()
    long = evaluate(model, "retrieval", written(folder, "sharegpt4v"), short_prefix="a photo of ")
    assert model.kinds_asked == {"long"} and long["settings"]["short_prefix"] == ""


def test_coco_mini_captions_give_the_plain_result():

    root = shared("data/coco-mini")
    model = FakeModel()
    result = evaluate(model, "retrieval", root / "captions.json", images=root / "images", max_images=60)
    assert result["accounting"][0]["skipped"] == {}
    content = json.loads((root / "captions.json").read_text(encoding="utf-8"))
    names = {image["id"]: image["file_name"] for image in content["images"]}
    order = list(dict.fromkeys(a["image_id"] for a in content["annotations"]))[:60]
    captions = [a for a in content["annotations"] if a["image_id"] in order]
    images = torch.cat(
        [model.encode_images([model.prepare(Image.open(root / "images" / names[i]))]).embeds for i in order]
    )
    texts = torch.stack([text_vector(a["caption"].strip(), "short") for a in captions])
    i2t, t2i = plain_recalls(images, texts, [order.index(a["image_id"]) for a in captions], 10)
    assert result["scores"]["i2t_r10"] == pytest.approx(i2t, abs=1e-9)
    assert result["scores"]["t2i_r10"] == pytest.approx(t2i, abs=1e-9)
