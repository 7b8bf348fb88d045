"""What the shard builder reads: annotation files, rows of tables, reports, journals, accounts, provenance."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from data_tools.execution.jobs import StopRun
from data_tools.execution.journal import Journal
from data_tools.execution.reports import read_report
from data_tools.execution.shards import Drop
from data_tools.model_server.limits import SharedLimits
from data_tools.report.page import page
from data_tools.report.statistics import collect
from data_tools.shards import Record, write_shard
from data_tools.sources.coco import make_record
from data_tools.sources.coco_files import read_entries
from data_tools.sources.images import ImageProblem
from data_tools.sources.table_rows import Columns, RowReader
from pipeline.base.border import BorderError, parse_json
from pipeline.data.schema import Sample, parse_sample
from tests.border.damage import Damage, damage_bytes, damage_document
from tests.border.formats import Format
from tests.border.formats.shards import sample_problem
from tests.data.shards import image_bytes, record

COCO = ("captions.json", "instances.json", "hard.json", "hard.jsonl")


def make_coco(folder: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(3)]
    (folder / "images").mkdir()
    for number in range(3):
        (folder / "images" / f"{number}.jpg").write_bytes(image_bytes(number))
    (folder / "outside.jpg").write_bytes(image_bytes(9))
    captions = [{"id": i, "image_id": i, "caption": f"图 {i}"} for i in range(3)]
    box = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [8, 8, 16, 16], "iscrowd": 0}
    categories = [{"id": 7, "name": "dog"}, {"id": 8, "name": "red dog"}, {"id": 9, "name": "红狗"}]
    public = {"image_id": 1, "category_id": 8, "neg_category_ids": [9, 7], "bbox": [8, 8, 16, 16]}
    row = {"img_path": "x/2.jpg", "bbox": [1, 1, 9, 9], "pos_expression": ["a dog"], "neg_expression": ["a cat", "猫"]}
    documents: list[Any] = [
        {"images": images, "annotations": captions},
        {"images": images, "annotations": [box], "categories": categories},
        {"images": images, "annotations": [public], "categories": categories},
    ]
    for name, document in zip(COCO, documents, strict=False):
        (folder / name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    (folder / COCO[3]).write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")


def damage_coco(rng: random.Random, base: Path) -> Damage:
    name = rng.choice(COCO)
    if rng.random() < 0.1:
        return Damage(
            COCO[0], [["set", ["images", 0, "file_name"], rng.choice(("../outside.jpg", "/etc/passwd", "\0"))]]
        )
    if rng.random() < 0.2:
        return damage_bytes(rng, name)
    return damage_document(rng, name, (base / name).read_bytes())


def read_coco(folder: Path) -> list[Record]:
    captions, instances, *fgovd = (folder / name for name in COCO)
    entries, _ = read_entries(captions, instances, fgovd)
    found = []
    for entry in entries:
        try:
            found.append(make_record(entry, folder / "images", "en", 0.9))
        except ImageProblem as problem:
            assert problem.kind
    return found


def check_records(found: list[Record]) -> str | None:
    for made in found:
        if made.image == image_bytes(9):
            return "an image from outside of the folder"
        try:
            sample = parse_sample(made.sample.to_bytes(), captions_required=False)
        except ValueError as error:
            return f"a record that cannot be read back: {error}"
        if problem := sample_problem(sample):
            return problem
    return None


def make_table(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(image_bytes(1))
    row = {"image": "a.jpg", "short_caption": "一只猫", "language": "zh", "boxes": [[1, 1, 9, 9]], "phrases": ["猫"]}
    row |= {"negatives": [["狗"]], "kind": ["cat"], "source": {"dataset": "x"}, "key": "k1"}
    (folder / "row.json").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")


def read_row(folder: Path) -> list[Record]:
    row = parse_json((folder / "row.json").read_bytes())
    if not isinstance(row, dict):
        raise BorderError("no row")  # the datasets package gives rows, whatever the file
    asked = {"boxes": "boxes", "phrases": "phrases", "negatives": "negatives", "categories": "kind"}
    columns = Columns.chosen(asked, [], list(row))
    result = RowReader(columns, "table", folder, None, (), "pixels", "xyxy").record(row, 0)
    return [] if isinstance(result, Drop) else [result]


STATE = ("reports/s-000000.json", "journal.jsonl", "spent/spent.json")


def make_state(folder: Path) -> None:
    sample = Sample(
        "en", 64, 48, "a dog", source={"phrases": [{"text": "a dog", "span": [0, 5], "from": "short_caption"}]}
    )
    write_shard(folder / "s-000000.tar", [Record("k", image_bytes(1), "jpg", sample)])
    made_by = {"input": {"bytes": 1}, "step": "x", "version": "1", "settings": {"model": "m"}}
    step = {"shard": "s-000000", "made_by": made_by, "samples_in": 2, "samples_out": 1, "counts": {"红": 1}}
    step |= {"dropped": [{"key": "a", "reason": "r", "detail": "d"}], "failed": [{"key": "b", "why": "w: x"}]}
    (folder / "reports").mkdir()
    (folder / STATE[0]).write_text(json.dumps({**step, "earlier": [step]}, ensure_ascii=False), encoding="utf-8")
    journal = Journal(folder / STATE[1], "print")
    for number in range(3):
        journal.put(f"k{number}", {"text": "一只猫"})
    journal.close()
    limits = SharedLimits(1, folder=folder / "spent")
    limits.charge_request()


def damage_state(rng: random.Random, base: Path) -> Damage:
    name = rng.choice(STATE)
    if rng.random() < 0.4:
        return damage_bytes(rng, name)
    return damage_document(rng, name, (base / name).read_bytes())


def read_state(folder: Path) -> str:
    """The journal loses damaged lines, the page counts damaged reports; the others are named."""
    with_journal = Journal(folder / STATE[1], "print")
    with_journal.put("new", 1)
    with_journal.close()
    assert Journal(folder / STATE[1], "print").get("new") == 1
    text = page(collect(folder, 1))
    SharedLimits(1, folder=folder / "spent").charge_request()
    read_report(folder / STATE[0])
    return text


def damage_provenance(rng: random.Random, base: Path) -> Damage:
    return damage_document(rng, "record.json", (base / "record.json").read_bytes())


def make_provenance(folder: Path) -> None:
    made = record(
        1, "zh", source={"phrases": [{"text": "红猫", "span": [0, 2], "from": "short_caption", "short": "猫"}]}
    )
    (folder / "record.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")


def read_provenance(folder: Path) -> str:
    sample = parse_sample((folder / "record.json").read_bytes())
    write_shard(folder / "s-000000.tar", [Record("k", image_bytes(1), "jpg", sample)])
    return page(collect(folder, 1))


NAMED = (BorderError, ValueError, OSError)
FORMATS = {
    "coco": Format("COCO and FG-OVD annotations", make_coco, damage_coco, read_coco, NAMED, check_records),
    "table": Format(
        "rows of tables",
        make_table,
        lambda rng, base: damage_document(rng, "row.json", (base / "row.json").read_bytes()),
        read_row,
        NAMED,
        check_records,
    ),
    "build_state": Format(
        "reports, journals, accounts of a build", make_state, damage_state, read_state, (BorderError, StopRun)
    ),
    "provenance": Format("provenance on the report page", make_provenance, damage_provenance, read_provenance, NAMED),
}
