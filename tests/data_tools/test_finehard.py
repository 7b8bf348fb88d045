"""The FineHARD importer: every item finds its image by URL, and every loss has a name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.sources import finehard_index
from data_tools.sources.finehard_index import item_spans
from tests.data_tools.test_coco import samples_of, write_image
from tests.shared_data import shared


def import_all(root: Path, out: Path, *options: str) -> int:
    arguments = ["build", "finehard", "--annotations", str(root / "FineHARD" / "jsonfiles")]
    arguments += ["--url-keys", str(root / "FineHARD" / "url2key_jsons"), "--images", str(root / "downloads")]
    return main([*arguments, "--out", str(out), "--workers", "0", *options])


def region(**changes) -> dict:
    entry = {"bbox": [0.1, 0.1, 0.6, 0.6, 0.9], "short_expr": "a red cup", "long_expr": "a red cup on a table"}
    entry |= {"flag_short_neg": 1, "short_expr_negs": {str(i): f"a cup in colour {i}" for i in range(1, 11)}}
    return entry | changes


class Release:
    """A small release with its downloads; the key of a download is never the release's."""

    def __init__(self, root: Path) -> None:
        self.root, self.items = root, []

    def add(self, number: int, *regions: dict, downloaded: bool = True, **changes) -> dict:
        item = {"f_path": f"coyo_image_3/00001/{number:09d}.jpg", "caption": "a long text", "short_caption": "short"}
        self.items.append(item | {"bbox_info": list(regions)} | changes)
        if downloaded:
            place = self.root / "downloads" / "coyo_image_3" / "00000" / f"{len(self.items):09d}"
            write_image(place.with_suffix(".jpg"), number)
            note = {"key": place.name, "url": f"http://example.org/{number}.jpg", "status": "success"}
            place.with_suffix(".json").write_text(json.dumps(note), encoding="utf-8")
        return self.items[-1]

    def write(self) -> None:
        keys = {f"http://example.org/{i}.jpg": f"{i:09d}" for i in range(100)}
        for name, content in (("jsonfiles/part-0", self.items), ("url2key_jsons/url2key_coyo_image_3", keys)):
            path = self.root / "FineHARD" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        (self.root / "downloads").mkdir(exist_ok=True)


@pytest.fixture
def release(tmp_path):
    return Release(tmp_path)


def left_out(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "left_out.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_miniature_gives_23_of_24_images_and_names_three_bad_boxes(tmp_path):
    root = shared("data/finehard-mini")
    assert import_all(root, tmp_path) == 0
    samples = samples_of(tmp_path)
    items = {}
    for path in sorted((root / "FineHARD" / "jsonfiles").glob("*.json")):
        for item in json.loads(path.read_text(encoding="utf-8")):
            items[item["f_path"].replace("/00000/", "-").removesuffix(".jpg")] = item
    lost = left_out(tmp_path)
    boxes = [entry for entry in lost if "region" in entry]
    assert len(items) == 24 and len(samples) == 23 and len(boxes) == 3
    (dead,) = [entry for entry in lost if "region" not in entry]
    assert dead["kind"] == "dead_link" and set(items) - set(samples) == {dead["key"]}
    assert sorted(entry["kind"] for entry in boxes) == ["box_outside", "box_without_area", "box_without_area"]
    for key, sample in samples.items():  # nothing else is lost
        bad = {entry["region"] for entry in boxes if entry["key"] == key}
        kept = [entry for number, entry in enumerate(items[key]["bbox_info"]) if number not in bad]
        assert (sample.short_caption, sample.long_caption) == (items[key]["short_caption"], items[key]["caption"])
        assert [r.phrase for r in sample.regions] == [e["short_expr"] for e in kept]
        assert [list(r.negatives) for r in sample.regions] == [
            list(e.get("short_expr_negs", {}).values()) for e in kept
        ]
        assert [(*r.box, r.score) for r in sample.regions] == [tuple(e["bbox"]) for e in kept]
    report = json.loads((tmp_path / "import.json").read_text(encoding="utf-8"))
    assert (report["items"], report["matched"], report["items_left_out"]) == (24, 23, {"dead_link": 1})
    assert report["regions_left_out"] == {"box_outside": 1, "box_without_area": 2}


def test_chinese_items_flags_and_missing_fields_stay_what_they_are(release, tmp_path):
    negatives = {str(i): f"{i}号颜色的杯子" for i in range(1, 11)}
    chinese = region(short_expr="红色的杯子", long_expr="桌上红色的杯子", short_expr_negs=negatives)
    release.add(1, chinese, region(flag_short_neg=0), is_cn=True, caption="很长的描述", short_caption="")
    release.add(2, region(short_expr="", bbox=[-0.004, 0.2, 0.5, 1.003]), bbox_note=None)
    release.write()
    assert import_all(tmp_path, tmp_path / "out") == 0
    first, second = samples_of(tmp_path / "out").values()
    assert (first.language, first.long_caption, first.short_caption) == ("zh", "很长的描述", None)
    assert first.regions[0].negatives == tuple(negatives.values()) and first.regions[0].long_phrase == "桌上红色的杯子"
    assert first.regions[1].negatives == (), "flagged as not usable"
    (only,) = second.regions
    assert (only.phrase, only.long_phrase, only.negatives, only.score) == ("a red cup on a table", None, (), None)
    assert only.box == (0, 0.2, 0.5, 1), "rounding over the edge is cut"
    assert second.language == "en"


def test_every_kind_of_loss_has_its_name(release, tmp_path):
    release.add(1, region())
    release.add(2, downloaded=False)
    release.add(1000, region())
    release.add(1, region())
    release.add(3, region(bbox=[0.1, 0.2]), region(short_expr=None, long_expr=None), "no object", region())
    release.add(4, caption=None, short_caption=" ")
    release.items.append({"caption": "no path"})
    release.add(5)
    release.write()
    damaged = tmp_path / "downloads" / "coyo_image_3" / "00000" / f"{len(release.items):09d}.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    assert import_all(tmp_path, tmp_path / "out") == 0
    samples = samples_of(tmp_path / "out")
    assert list(samples) == ["coyo_image_3-000000001", "coyo_image_3-000000003"]
    assert len(samples["coyo_image_3-000000003"].regions) == 1
    lost = left_out(tmp_path / "out")
    assert sorted(entry["kind"] for entry in lost if "region" not in entry) == [
        "bad_item", "bad_item", "dead_link", "duplicate_item", "unknown_key", "unreadable_image",
    ]  # fmt: skip
    regions = [entry["kind"] for entry in lost if "region" in entry]
    assert regions == ["box_malformed", "region_without_phrase", "box_malformed"]


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_spans_of_an_annotation_file_hold_every_item_once_whatever_the_block_size(tmp_path, monkeypatch, block):
    monkeypatch.setattr(finehard_index, "BLOCK_CHARACTERS", block)
    items = [{"f_path": f"{i}.jpg", "caption": '红色"]}, {[' * (i % 4), "n": [i, {"a": []}]} for i in range(23)]
    for indent in (None, 2):
        path = tmp_path / f"{indent}.json"
        path.write_text(json.dumps(items, ensure_ascii=indent is None, indent=indent), encoding="utf-8")
        spans = list(item_spans(path, 5))
        assert [span.count for span in spans] == [5, 5, 5, 5, 3]
        assert [item for span in spans for item in span.items()] == items


def test_wrong_input_is_a_one_line_error(release, tmp_path, capsys):
    release.add(1)
    release.write()
    path = tmp_path / "FineHARD" / "jsonfiles" / "part-0.json"
    whole = path.read_text(encoding="utf-8")
    for content, words in ((whole[:-40], "cut or damaged"), ('{"a": 1}', "must be a JSON array")):
        path.write_text(content, encoding="utf-8")
        assert import_all(tmp_path, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert words in error and "part-0.json" in error and error.count("\n") == 1
    path.unlink()
    assert import_all(tmp_path, tmp_path / "out") == 2
    assert "holds no *.json" in capsys.readouterr().err
