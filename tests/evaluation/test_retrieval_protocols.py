"""Retrieval by the published protocols, on miniatures of the real files: text path, prompt, language and limits."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from pipeline.evaluation import EvaluationError, evaluate
from tests.evaluation.fake import FakeModel, noisy, text_vector


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


@pytest.mark.parametrize("protocol", ["fgclip", "fgclip2"])
def test_coco_captions_are_the_first_five_without_a_prompt(protocol, pictures):
    model = FakeModel()
    model.short_prefix = lambda language: "a photo of "
    texts = [[f"caption {number} of {image}" for number in range(7 if image == 0 else 5)] for image in range(3)]
    content = {
        "images": [{"id": image, "file_name": f"{image}.jpg"} for image in range(3)],
        "annotations": [{"image_id": i, "caption": text} for i, group in enumerate(texts) for text in group],
    }
    path = pictures / "captions_val2017.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    result = evaluate(model, "retrieval", path, protocol=protocol)
    assert result["settings"]["protocol"]["name"] == f"{protocol}:coco"
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


def retrieval_set(folder, form):
    """Two images in the published form of a set, a third row damaged: (data, texts of the two, captions an image)."""
    zh = form in ("coco-cn", "flickr30k-cna")
    texts = (
        [["红色的巴士停在路边", "路边的红色巴士"], ["两棵绿树"]] if zh else [["a red bus", "the bus"], ["two trees"]]
    )
    if form == "flickr30k":
        images = [{"filename": f"{n}.jpg", "split": "test", "sentences": [{"raw": t} for t in group]}
                  for n, group in enumerate(texts)]  # fmt: skip
        images.append({"filename": "2.jpg", "split": "test", "sentences": [{"raw": "  "}]})
        images.append({"filename": "3.jpg", "split": "train", "sentences": [{"raw": "of another split"}]})
        path = folder / "dataset_flickr30k.json"
        path.write_text(json.dumps({"images": images}), encoding="utf-8")
        return path, texts
    if form == "sharegpt4v":
        texts = [[group[0]] for group in texts]
        turn = [{"from": "human", "value": "Describe the image."}]
        rows = [{"image": f"{n}.jpg", "conversations": [*turn, {"from": "gpt", "value": group[0]}]}
                for n, group in enumerate(texts)]  # fmt: skip
        rows.append({"image": "gone.jpg", "conversations": [*turn, {"from": "gpt", "value": "its image is gone"}]})
        path = folder / "share-captioner.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        return path, texts
    if form == "dci":
        texts = [[group[0]] for group in texts]
        path = folder / "annotations"
        path.mkdir()
        for n, group in enumerate(texts):
            record = {"image": f"{n}.jpg", "short_caption": "never read", "extra_caption": group[0]}
            (path / f"{n}.json").write_text(json.dumps(record), encoding="utf-8")
        (path / "2.json").write_text(json.dumps({"image": "2.jpg", "short_caption": "no extra one"}), encoding="utf-8")
        return path, texts
    number = "zhm#" if form == "coco-cn" else ""
    lines = [f"{n}#{number}{k}\t{text}" for n, group in enumerate(texts) for k, text in enumerate(group)]
    path = folder / f"{form.replace('-', '_')}_test.txt".replace("flickr30k_cna", "flickr30k_cn").replace(
        "coco_cn", "coco-cn"
    )
    path.write_text("\n".join([*lines, f"2#{number}0\t "]) + "\n", encoding="utf-8")
    return path, texts


@pytest.mark.parametrize(
    ("protocol", "form"),
    [("fgclip2", form) for form in ("flickr30k", "sharegpt4v", "dci", "coco-cn", "flickr30k-cna")]
    + [("fgclip", form) for form in ("flickr30k", "sharegpt4v", "dci")],
)
def test_every_retrieval_set_in_its_published_form_scores_as_by_hand(protocol, form, pictures):
    model = FakeModel()
    model.short_prefix = lambda language: "a photo of "
    path, texts = retrieval_set(pictures, form)
    result = evaluate(model, "retrieval", path, images=pictures, protocol=protocol, max_skipped_share=0.5)
    settings = result["settings"]
    kind = "long" if form in ("sharegpt4v", "dci") else "short"
    assert settings["protocol"]["from"] == f"{protocol}:{form}" and model.kinds_asked == {kind}
    assert settings["protocol"]["changed"] == {"max_skipped_share": 0.5}
    assert settings["short_prefix"] == "" and settings["language"] == ("zh" if form.endswith(("cn", "cna")) else "en")
    assert sum(result["accounting"][0]["skipped"].values()) == 1
    flat = [text for group in texts for text in group]
    owner = [number for number, group in enumerate(texts) for _ in group]
    expected = pair_recall(pictures, ["0.jpg", "1.jpg"], flat, owner, kind)
    assert (result["scores"]["i2t_r1"], result["scores"]["t2i_r1"]) == pytest.approx(expected)


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
