"""Caption sets for retrieval: COCO and Flickr30k JSON, Chinese text lists, DCI, ShareGPT4V, DOCCI and its like, shards.

Every reader yields ``(image name, text, place)``; ``collect`` finds the images and keeps the account. A format is
chosen by name, or recognised by ``recognise``.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.evaluation.formats.items import Caption, CaptionSet, ImageItem
from pipeline.evaluation.formats.paths import read_json, text_lines
from pipeline.evaluation.formats.shards import read_shards
from pipeline.evaluation.results import Accounting, EvaluationError

Row = tuple[str | None, Any, str]  # image name, text, place in the file

# Names under which lists of images and captions keep them; the first that a row has is read.
IMAGE_FIELDS = ("image_file", "image", "img_path", "image_path", "file_name", "filename", "f_path", "image_id", "id")
LONG_FIELDS = ("long_caption", "description", "caption_long", "captions", "caption", "text", "raw")
SHORT_FIELDS = ("short_caption", "captions", "caption", "text", "raw", "description")
LIST_LINE = re.compile(r"^(?P<image>[^\s#]+)(?:#(?:[A-Za-z]+#)?\d+)?[\t ]+(?P<text>.*)$")


def coco_rows(path: Path, kind: str, split: str) -> Iterator[Row]:
    """COCO captions JSON: ``images`` and ``annotations``. Flickr30k in COCO's form reads the same."""
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations"} <= set(content):
        raise EvaluationError(f"{path} has no images and annotations; COCO captions JSON has both")
    names = {image["id"]: image.get("file_name") or str(image["id"]) for image in content["images"]}
    for number, annotation in enumerate(content["annotations"]):
        name = names.get(annotation.get("image_id"))
        yield name, annotation.get("caption"), f"{path.name}: annotations[{number}]"


def karpathy_rows(path: Path, kind: str, split: str) -> Iterator[Row]:
    """Karpathy's dataset_flickr30k.json and dataset_coco.json: ``images`` with ``sentences``, by split."""
    for number, image in enumerate(read_json(path)["images"]):
        if image.get("split", split) == split:
            name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
            for sentence in image["sentences"]:
                yield name, sentence.get("raw"), f"{path.name}: images[{number}]"


def text_list_rows(path: Path, kind: str, split: str) -> Iterator[Row]:
    """COCO-CN's and Flickr30k-CNA's lists: ``IMAGE#NUMBER<tab or space>caption`` a line; ``#zhb#0`` as well."""
    for number, line in enumerate(text_lines(path), start=1):
        match = LIST_LINE.match(line.strip())
        place = f"{path.name}:{number}"
        yield (match["image"], match["text"], place) if match else (line.strip(), "", place)


def dci_rows(path: Path, kind: str, split: str) -> Iterator[Row]:
    """Densely Captioned Images: a folder with one JSON an image; long is ``short_caption`` and ``extra_caption``."""
    files = sorted(path.glob("*.json")) if path.is_dir() else []
    if not files:
        raise EvaluationError(f"{path} holds no *.json; give DCI's annotations folder")
    for file in files:
        record = read_json(file)
        short, extra = record.get("short_caption") or "", record.get("extra_caption") or ""
        text = "\n".join(part.strip() for part in (short, extra) if part.strip()) if kind == "long" else short
        yield record.get("image") or file.stem, text, file.name


def sharegpt4v_rows(path: Path, kind: str, split: str) -> Iterator[Row]:
    """ShareGPT4V: a list of conversations; the first answer is the caption."""
    for number, record in enumerate(read_json(path)):
        answers = [turn.get("value") for turn in record.get("conversations", []) if turn.get("from") == "gpt"]
        yield record.get("image"), answers[0] if answers else None, f"{path.name}: [{number}]"


def list_rows(path: Path, kind: str, split: str) -> Iterator[Row]:
    """Lists of one image and its caption(s) a row, as JSONL, JSON, CSV or TSV: DOCCI, LIT-CN, Flickr30k as a list."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        with open(path, encoding="utf-8-sig", newline="") as file:
            records: Iterable[Any] = list(csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ","))
    elif suffix == ".json":
        content = read_json(path)
        records = (
            content if isinstance(content, list) else next((v for v in content.values() if isinstance(v, list)), [])
        )
    else:
        records = [_json_line(path, number, line) for number, line in enumerate(text_lines(path), start=1)]
    fields = LONG_FIELDS if kind == "long" else SHORT_FIELDS
    for number, record in enumerate(records, start=1):
        place = f"{path.name}: row {number}"
        if not isinstance(record, dict):
            yield None, None, place  # counted as a row without an image
            continue
        if record.get("split", split) != split:
            continue
        name = next((str(record[field]) for field in IMAGE_FIELDS if record.get(field)), None)
        texts = next((record[field] for field in fields if record.get(field)), None)
        for text in texts if isinstance(texts, list) else [texts]:
            yield name, text, place


def _json_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{path}:{number} is not JSON ({error}); a JSONL file has one object a line") from error


READERS: dict[str, Callable[[Path, str, str], Iterator[Row]]] = {
    "coco": coco_rows,
    "flickr30k": karpathy_rows,
    "coco-cn": text_list_rows,
    "flickr30k-cna": text_list_rows,
    "dci": dci_rows,
    "sharegpt4v": sharegpt4v_rows,
    "docci": list_rows,
    "lit-cn": list_rows,
    "list": list_rows,
}
LONG_FORMATS = ("dci", "sharegpt4v", "docci", "lit-cn")  # their captions are long ones


def recognise(path: Path) -> str:
    """The format of a file or folder, by its form.

    Raises:
        EvaluationError: no form that is known; the remedy names the formats.
    """
    if path.is_dir():
        if any(path.glob("*.tar")):
            return "shards"
        if any(path.glob("*.json")):
            return "dci"
    elif path.suffix.lower() == ".txt":
        return "flickr30k-cna"
    elif path.suffix.lower() in (".jsonl", ".csv", ".tsv"):
        return "list"
    elif path.suffix.lower() == ".json":
        content = read_json(path)
        if isinstance(content, dict) and "annotations" in content:
            return "coco"
        if isinstance(content, dict) and content.get("images") and "sentences" in content["images"][0]:
            return "flickr30k"
        if isinstance(content, list) and content:
            return "sharegpt4v" if "conversations" in content[0] else "list"
    raise EvaluationError(f"{path} has no known form of captions; give --format one of shards, {', '.join(READERS)}")


def read_captions(path: Path, form: str, kind: str, split: str, find: Callable[[str], ImageItem | None]) -> CaptionSet:
    """The captions of ``path`` in format ``form``; ``kind`` short or long chooses among a row's texts.

    Reasons of skipped rows: ``missing_image``, ``unknown_image``, ``no_caption``, ``empty_caption``.
    """
    if form not in READERS:
        raise EvaluationError(f"format is {form!r}; for captions it must be one of shards, {', '.join(READERS)}")
    accounting = Accounting("captions")
    numbers: dict[str, int] = {}
    pairs = CaptionSet([], [], accounting)
    for name, text, place in _checked_rows(path, form, kind, split):
        if name is None:
            accounting.skip("unknown_image", place)
        elif not isinstance(text, str):
            accounting.skip("no_caption", place)
        elif not text.strip():
            accounting.skip("empty_caption", place)
        elif (item := find(name)) is None:
            accounting.skip("missing_image", f"{place}: {name}")
        else:
            if item.key not in numbers:
                numbers[item.key] = len(pairs.images)
                pairs.images.append(item)
            pairs.captions.append(Caption(numbers[item.key], text.strip()))
            accounting.take()
    return pairs


def _checked_rows(path: Path, form: str, kind: str, split: str) -> Iterator[Row]:
    """The reader's rows; a file of another form is an error that names it."""
    try:
        yield from READERS[form](path, kind, split)
    except (KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(
            f"{path} is not of format {form} ({type(error).__name__}: {error}); name --format"
        ) from error


def shard_captions(folder: Path, kind: str, language: str) -> CaptionSet:
    """The captions of one language of a folder of shards; samples of the other one are no rows of this set."""
    shards = read_shards(folder)
    pairs = CaptionSet([], [], Accounting("captions"))
    for reason, place in shards.faults:
        pairs.accounting.skip(reason, place)
    for one in shards.samples:
        if one.sample.language != language:
            continue
        text = one.sample.long_caption if kind == "long" else one.sample.short_caption
        if text is None:
            pairs.accounting.skip(f"no_{kind}_caption", one.image.key)
            continue
        pairs.captions.append(Caption(len(pairs.images), text))
        pairs.images.append(one.image)
        pairs.accounting.take()
    return pairs
