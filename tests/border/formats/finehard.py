"""The FineHARD release and the notes of its downloads."""

from __future__ import annotations

import json
import random
from pathlib import Path

from data_tools.execution.shards import Drop
from data_tools.shards import Record
from data_tools.sources.finehard import FineHardShard
from data_tools.sources.finehard_index import DownloadIndex, build_index, item_spans
from tests.border.damage import Damage, damage_bytes, damage_document
from tests.border.formats import Format
from tests.border.formats.building import check_records
from tests.data.shards import image_bytes

ITEMS, KEYS = "jsonfiles/part-0.json", "url2key/url2key_coyo_image_3.json"
NOTE = "downloads/00000/{:09d}.json"
ITEMS_PER_SPAN = 2


def make_release(folder: Path) -> None:
    items = []
    region = {"bbox": [0.1, 0.1, 0.6, 0.6, 0.9], "short_expr": "a red cup", "long_expr": "a red cup on a table"}
    region |= {"flag_short_neg": 1, "short_expr_negs": {str(i): f"a cup in colour {i}" for i in range(1, 4)}}
    chinese = region | {"short_expr": "红色的杯子", "short_expr_negs": {"1": "蓝色的杯子"}, "bbox": [0, 0.2, 0.5, 1]}
    (folder / "downloads/00000").mkdir(parents=True)
    for number in range(3):
        item = {"f_path": f"coyo_image_3/00001/{number:09d}.jpg", "caption": "一段长的描述", "short_caption": "short"}
        items.append(item | {"is_cn": number == 1, "bbox_info": [region, chinese]})
        note = folder / NOTE.format(number)
        note.with_suffix(".jpg").write_bytes(image_bytes(number))
        note.write_text(json.dumps({"url": f"http://x.org/{number}.jpg", "status": "success", "error_message": None}))
    (folder / "outside.jpg").write_bytes(image_bytes(9))
    keys = {f"http://x.org/{number}.jpg": f"{number:09d}" for number in range(3)}
    for name, content in ((ITEMS, items), (KEYS, keys)):
        (folder / name).parent.mkdir()
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def damage_release(rng: random.Random, base: Path) -> Damage:
    name = rng.choice((ITEMS, ITEMS, ITEMS, KEYS, NOTE.format(rng.randrange(3))))
    if rng.random() < 0.2:
        return damage_bytes(rng, name)
    return damage_document(rng, name, (base / name).read_bytes())


def read_release(folder: Path) -> list[Record]:
    """The items that could be used; a case in which one could not counts as named."""
    database = folder / "index.sqlite"
    build_index(database, folder / "url2key", folder / "downloads")
    index, records, drops = DownloadIndex(database, folder / "downloads"), [], []
    for span in item_spans(folder / ITEMS, ITEMS_PER_SPAN):
        for made in FineHardShard("x", span, index).records():
            (drops if isinstance(made, Drop) else records).append(made)
    left_out = [entry for made in records for entry in made.sample.source.get("regions_left_out", [])]
    problem = check_records(records)
    if problem is None and (drops or left_out):
        raise ValueError("; ".join([f"{one.reason}: {one.detail}" for one in drops] + [one["why"] for one in left_out]))
    return records


NAMED = (ValueError, OSError)
FORMATS = {
    "finehard": Format(
        "FineHARD's items", make_release, damage_release, read_release, (ValueError, OSError), check_records
    )
}
