"""COCO import: what is said stays as it is said, what is left out is counted, what is missing stops the command."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.__main__ import main
from data_tools.execution.shards import read_members
from pipeline.data.manifest import load_manifest
from pipeline.data.schema import Sample, parse_sample
from tests.shared_data import shared

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 9, "name": "traffic_light"}]


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")


def samples_of(out: Path) -> dict[str, Sample]:
    found = {}
    for path in sorted(out.glob("*.tar")):
        for key, members in read_members(path):
            Image.open(io.BytesIO(members["jpg"])).load()
            found[key] = parse_sample(members["json"], key=key, shard=path.name)
    return found


class Folder:
    """A small COCO folder that tests bend."""

    def __init__(self, root: Path, count: int = 4) -> None:
        self.root, self.count = root, count
        self.images = [{"id": i, "file_name": f"{i:04d}.jpg", "width": 64, "height": 48} for i in range(count)]
        self.captions = [
            {"id": 10 * i + j, "image_id": i, "caption": f"caption {j} of {i}\n"} for i in range(count) for j in (1, 0)
        ]
        self.instances = [
            {"id": i, "image_id": i, "category_id": 7, "bbox": [8, 8, 16, 16], "iscrowd": 0} for i in range(count)
        ]
        self.fgovd: list[dict] = []
        for i in range(count):
            write_image(root / "images" / f"{i:04d}.jpg", i)

    def build(self, *options: str) -> int:
        written = {
            "captions": {"images": self.images, "annotations": self.captions},
            "instances": {"images": self.images, "annotations": self.instances, "categories": CATEGORIES},
        }
        for name, content in written.items():
            (self.root / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        rows = "\n".join(json.dumps(row, ensure_ascii=False) for row in self.fgovd)
        (self.root / "hard.jsonl").write_text(rows, encoding="utf-8")
        arguments = ["build", "coco", "--images", str(self.root / "images"), "--out", str(self.root / "out")]
        arguments += ["--captions", str(self.root / "captions.json"), "--instances", str(self.root / "instances.json")]
        return main([*arguments, "--fgovd", str(self.root / "hard.jsonl"), "--workers", "0", *options])

    @property
    def out(self) -> Path:
        return self.root / "out"


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_first_caption_category_phrases_and_nothing_invented(folder):
    folder.instances[1] |= {"category_id": 9}
    assert folder.build("--samples-per-shard", "3") == 0
    samples = samples_of(folder.out)
    assert list(samples) == ["0000", "0001", "0002", "0003"]
    assert samples["0001"].short_caption == "caption 0 of 1"
    assert samples["0001"].source["captions"] == ["caption 0 of 1", "caption 1 of 1"]
    assert samples["0001"].long_caption is None
    region = samples["0001"].regions[0]
    assert (region.phrase, region.category, region.negatives, region.score) == (
        "traffic light",
        "traffic light",
        (),
        None,
    )
    assert region.box == (0.125, round(8 / 48, 6), 0.375, 0.5)
    assert list(load_manifest(folder.out).samples) == [3, 1]


def test_fgovd_rows_give_phrase_and_negatives_to_the_same_box_and_others_stand_alone(folder):
    row = {"img_path": "images/0000.jpg", "bbox": [8.2, 8, 16, 16], "pos_expression": ["A brown dog."]}
    row |= {"neg_expression": [f"A {c} dog." for c in ("red", "blue")], "width": 64, "height": 48}
    folder.fgovd = [row, row | {"pos_expression": ["A second phrase."]}, row | {"bbox": [40, 30, 10, 10]}]
    assert folder.build() == 0
    first, second = samples_of(folder.out)["0000"].regions
    assert (first.phrase, first.category, first.negatives) == ("A brown dog.", "dog", ("A red dog.", "A blue dog."))
    assert (second.phrase, second.category) == ("A brown dog.", None)
    counted = samples_of(folder.out)["0000"].source["regions_counted"]
    assert counted == {"fgovd_box_taken": 1, "fgovd_matched": 1, "fgovd_own_box": 1}


def test_texts_without_words_cost_themselves_and_are_counted(folder):
    row = {"img_path": "images/0000.jpg", "bbox": [8.2, 8, 16, 16], "pos_expression": ["棕色的狗"]}
    folder.fgovd = [row | {"neg_expression": ["红色的狗", "\n"]}, row | {"pos_expression": [" "], "neg_expression": []}]
    assert folder.build() == 0
    sample = samples_of(folder.out)["0000"]
    assert sample.regions[0].phrase == "棕色的狗" and sample.regions[0].negatives == ("红色的狗",)
    without = {name: count for name, count in sample.source["regions_counted"].items() if "words" in name}
    assert without == {"fgovd_negative_without_words": 1, "fgovd_phrase_without_words": 1}


def test_boxes_are_cut_at_the_edges_and_useless_ones_counted(folder, capsys):
    boxes = {
        "cut": [-8, 40, 32, 16],
        "flat": [5, 5, 0, 9],
        "outside": [70, 5, 9, 9],
        "short": [1, 2],
        "nan": [1, 2, float("nan"), 4],
    }
    folder.instances = [
        {"id": i, "image_id": 0, "category_id": 7, "bbox": box, "iscrowd": 0} for i, box in enumerate(boxes.values())
    ]
    folder.instances.append({"id": 99, "image_id": 0, "category_id": 7, "bbox": [0, 0, 64, 48], "iscrowd": 1})
    assert folder.build() == 0
    (region,) = samples_of(folder.out)["0000"].regions
    assert region.box == (0, round(40 / 48, 6), 0.375, 1)
    counted = "box_malformed 2, box_outside 1, box_without_area 1, crowd 1"
    assert counted in capsys.readouterr().out


def test_chinese_captions_and_names(folder):
    for annotation in folder.captions:
        annotation["caption"] = f"第{annotation['image_id']}张照片，一只小狗"
    folder.fgovd = [
        {"img_path": "0002.jpg", "bbox": [8, 8, 16, 16], "pos_expression": ["棕色的狗"], "neg_expression": ["红色的狗"]}
    ]
    assert folder.build("--language", "zh") == 0
    sample = samples_of(folder.out)["0002"]
    assert (sample.language, sample.short_caption) == ("zh", "第2张照片，一只小狗")
    assert (sample.regions[0].phrase, sample.regions[0].negatives) == ("棕色的狗", ("红色的狗",))


def test_missing_images_stop_the_command_above_the_limit_before_anything_is_written(folder, capsys):
    (folder.root / "images" / "0001.jpg").unlink()
    assert folder.build() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "1 of 4 images are missing (25.0%)" in error and "0001.jpg" in error and "--max-missing-share" in error
    assert not folder.out.exists()
    assert folder.build("--max-missing-share", "0.3") == 0
    assert list(samples_of(folder.out)) == ["0000", "0002", "0003"]
    assert "missing_image 1" in capsys.readouterr().out


def test_unreadable_images_and_wrong_sizes_are_named_and_the_rest_is_kept(folder, capsys):
    whole = (folder.root / "images" / "0001.jpg").read_bytes()
    (folder.root / "images" / "0001.jpg").write_bytes(whole[: len(whole) // 2])
    write_image(folder.root / "images" / "0002.jpg", 2, (48, 64))
    assert folder.build("--max-missing-share", "0.5") == 0
    assert list(samples_of(folder.out)) == ["0000", "0003"]
    report = json.loads((folder.out / "reports" / "coco-000000.json").read_text(encoding="utf-8"))
    assert {drop["key"]: drop["reason"] for drop in report["dropped"]} == {
        "0001": "unreadable_image",
        "0002": "size_mismatch",
    }
    assert folder.build() == 2
    assert "2 of 4 images are missing or unusable (50.0%)" in capsys.readouterr().err


def test_a_finished_shard_is_kept_and_a_lost_one_made_again_to_the_byte(folder):
    assert folder.build("--samples-per-shard", "2") == 0
    kept, lost = sorted(folder.out.glob("*.tar"))
    before, untouched = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert folder.build("--samples-per-shard", "2") == 0
    assert lost.read_bytes() == before and kept.stat().st_mtime_ns == untouched


def test_a_resized_image_keeps_its_boxes_and_lvis_names_are_found(folder):
    write_image(folder.root / "images" / "0003.jpg", 3, (32, 24))
    folder.images[3] = {"id": 3, "coco_url": "http://example.org/val2017/0003.jpg", "width": 64, "height": 48}
    assert folder.build() == 0
    sample = samples_of(folder.out)["0003"]
    assert (sample.width, sample.height) == (32, 24)
    assert sample.regions[0].box == (0.125, round(8 / 48, 6), 0.375, 0.5)


@pytest.mark.parametrize(
    ("bend", "words"),
    [
        (lambda f: f.captions.clear(), "no image"),
        (lambda f: f.instances[0].update(category_id=1000), "category 1000"),
        (lambda f: f.images[0].update(file_name="x/0001.jpg"), "share the key"),
        (lambda f: f.fgovd.append({"img_path": "a"}), "line 1"),
    ],
)
def test_damaged_annotations_are_one_line_errors(folder, capsys, bend, words):
    bend(folder)
    assert folder.build() == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_coco_mini_comes_whole_with_its_fgovd_rows(tmp_path):
    data = shared("data/coco-mini")
    arguments = ["build", "coco", "--images", str(data), "--captions", str(data / "captions.json")]
    arguments += ["--instances", str(data / "instances.json"), "--out", str(tmp_path), "--workers", "0"]
    arguments += ["--fgovd", *(str(data / "fgovd" / f"{name}.jsonl") for name in ("hard", "medium", "easy", "trivial"))]
    assert main([*arguments, "--samples-per-shard", "100"]) == 0
    samples = samples_of(tmp_path)
    assert len(samples) == 238 and all(len(sample.source["captions"]) == 5 for sample in samples.values())
    assert sum(len(region.negatives) == 10 for sample in samples.values() for region in sample.regions) == 101
    crowds = sum(sample.source["regions_counted"].get("crowd", 0) for sample in samples.values())
    own = sum(sample.source["regions_counted"].get("fgovd_own_box", 0) for sample in samples.values())
    assert crowds == 24 and sum(len(sample.regions) for sample in samples.values()) == 2163 - crowds + own
    assert main(["verify", str(tmp_path), "--workers", "0"]) == 0


@pytest.mark.parametrize("name", ["../outside.jpg", "{root}/outside.jpg", "images/../../outside.jpg"])
def test_images_from_outside_of_the_folder_are_not_packed(folder, capsys, name):
    write_image(folder.root / "outside.jpg", 9)
    folder.images[0]["file_name"] = name.format(root=folder.root)
    assert folder.build("--max-missing-share", "0.3") == 0
    assert len(samples_of(folder.out)) == 3 and "missing_image 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 1.5}, "images[0].width is 1.5"),
        ({"width": -1}, "images[0].width is -1"),
        ({"file_name": ["a"]}, "images[0].file_name is ['a']"),
        ({"file_name": None}, "neither file_name nor coco_url"),
        ({"id": None}, "images[0].id"),
    ],
)
def test_a_damaged_value_is_named_with_file_place_and_rule(folder, capsys, change, words):
    folder.images[0] |= change
    assert folder.build() == 2
    error = capsys.readouterr().err
    assert words in error and ".json" in error and error.count("\n") == 1
    assert not list(folder.root.rglob("*.tar"))


@pytest.mark.parametrize("bbox", [[8, 8, 16], "box", None, [10**400, 0, 1, 1], [1, 2, {}, 4], [float("nan")] * 4])
def test_a_damaged_box_costs_that_box(folder, bbox):
    folder.instances[0]["bbox"] = bbox
    assert folder.build() == 0
    samples = samples_of(folder.out)
    assert len(samples) == 4 and not samples["0000"].regions and samples["0001"].regions
    assert samples["0000"].source["regions_counted"] == {"box_malformed": 1}
