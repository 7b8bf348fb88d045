"""Caption sets for retrieval: COCO and Flickr30k JSON, text lists, DCI, ShareGPT4V, Urban1k, DOCCI, shards.

Every reader yields ``(image name, text, place)``; ``collect`` finds the images and keeps the account. A format is
chosen by name, or recognised by ``recognise``.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.base.border import one_line, shown
from pipeline.evaluation.formats.items import Caption, CaptionSet, ImageItem
from pipeline.evaluation.formats.language import language_of, the_one_language
from pipeline.evaluation.formats.paths import EXTENSIONS, read_json
from pipeline.evaluation.formats.shards import read_shards
from pipeline.evaluation.formats.tables import caption_rows, is_json_list, json_records, read_table
from pipeline.evaluation.results import Accounting, EvaluationError

CaptionRow = tuple[str | None, Any, str]  # image name, text, place in the file
URBAN_TEXTS, URBAN_IMAGES = ("caption", "captions", "text", "texts"), ("image", "images")


def coco_rows(path: Path, kind: str, split: str) -> Iterator[CaptionRow]:
    """COCO captions JSON: ``images`` and ``annotations``. Flickr30k in COCO's form reads the same."""
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations"} <= set(content):
        raise EvaluationError(f"{path} has no images and annotations; COCO captions JSON has both")
    names = {image["id"]: image.get("file_name") or str(image["id"]) for image in content["images"]}
    for number, annotation in enumerate(content["annotations"]):
        name = names.get(annotation.get("image_id"))
        yield name, annotation.get("caption"), f"{path.name}: annotations[{number}]"


def karpathy_rows(path: Path, kind: str, split: str) -> Iterator[CaptionRow]:
    """Karpathy's dataset_flickr30k.json and dataset_coco.json: ``images`` with ``sentences``, by split."""
    for number, image in enumerate(read_json(path)["images"]):
        if image.get("split", split) == split:
            name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
            for sentence in image["sentences"]:
                yield name, sentence.get("raw"), f"{path.name}: images[{number}]"


def dci_rows(path: Path, kind: str, split: str) -> Iterator[CaptionRow]:
    """Densely Captioned Images: a folder with one JSON an image; long is the ``extra_caption`` alone, as published."""
    files = sorted(path.glob("*.json")) if path.is_dir() else []
    if not files:
        raise EvaluationError(f"{path} holds no *.json; give DCI's annotations folder")
    for file in files:
        record = read_json(file)
        text = record.get("extra_caption" if kind == "long" else "short_caption")
        yield record.get("image") or file.stem, text, file.name


def sharegpt4v_rows(path: Path, kind: str, split: str) -> Iterator[CaptionRow]:
    """ShareGPT4V: a list of conversations; the first answer is the caption."""
    for number, record in enumerate(read_json(path)):
        answers = [turn.get("value") for turn in record.get("conversations", []) if turn.get("from") == "gpt"]
        yield record.get("image"), answers[0] if answers else None, f"{path.name}: [{number}]"


def urban1k_rows(path: Path, kind: str, split: str) -> Iterator[CaptionRow]:
    """Urban1k: a folder of images and one of texts, ``image/1.jpg`` and ``caption/1.txt``."""
    texts = next((path / name for name in URBAN_TEXTS if (path / name).is_dir()), None)
    images = next((path / name for name in URBAN_IMAGES if (path / name).is_dir()), None)
    if texts is None or images is None:
        raise EvaluationError(f"{path} has no folders image and caption; give Urban1k's own folder")
    for file in sorted(texts.glob("*.txt"), key=lambda file: (len(file.stem), file.stem)):
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise EvaluationError(f"{file} is not UTF-8 ({error}); convert it first") from error
        yield f"{images.name}/{file.stem}", " ".join(text.split()), f"{texts.name}/{file.name}"


READERS: dict[str, Callable[[Path, str, str], Iterator[CaptionRow]]] = {
    "coco": coco_rows,
    "flickr30k": karpathy_rows,
    "coco-cn": caption_rows,
    "flickr30k-cna": caption_rows,
    "dci": dci_rows,
    "sharegpt4v": sharegpt4v_rows,
    "urban1k": urban1k_rows,
    "docci": caption_rows,
    "lit-cn": caption_rows,
    "dci-cn": caption_rows,
    "docci-cn": caption_rows,
    "list": caption_rows,
}
# Formats whose captions are long ones
LONG_FORMATS = ("dci", "sharegpt4v", "urban1k", "docci", "lit-cn", "dci-cn", "docci-cn")
LONG_TEXT_WORDS = 48  # assumption: the short path's 64 positions hold about so many English words


def recognise(path: Path) -> str:
    """The format of a file or folder, by its form and content; the suffix decides nothing.

    Raises:
        EvaluationError: no form that is known; the remedy names the formats.
    """
    if path.is_dir():
        if any(path.glob("*.tar")):
            return "shards"
        if any((path / name).is_dir() for name in URBAN_TEXTS):
            return "urban1k"
        if any(path.glob("*.json")):
            return "dci"
    elif path.suffix.lower() in EXTENSIONS:
        pass
    elif is_json_list(path) or path.suffix.lower() == ".json":
        content = _first_json(path)
        if isinstance(content, dict) and "annotations" in content:
            return "coco"
        if isinstance(content, dict) and content.get("images") and _has(content["images"], "sentences"):
            return "flickr30k"
        if isinstance(content, list) and content:
            return "sharegpt4v" if isinstance(content[0], dict) and _has(content, "conversations") else "list"
        if isinstance(content, dict):
            return "list"
    else:
        return "flickr30k-cna" if read_table(path).numbered else "list"
    raise EvaluationError(f"{path} has no known form of captions; give --format one of shards, {', '.join(READERS)}")


def _has(rows: object, field: str) -> bool:
    """Whether the first of some rows is an object with ``field``."""
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and field in rows[0]


def _first_json(path: Path) -> Any:
    """The whole content, or the first line's where every line is an object of its own."""
    try:
        return read_json(path)
    except EvaluationError:
        return json_records(path)


def kind_of(pairs: CaptionSet, form: str) -> tuple[str, str]:
    """``(short or long, what tells so)`` of a set for which neither was asked.

    A Chinese list with one caption an image is one of long captions (LIT-CN, DCI-CN, DOCCI-CN); otherwise a list of one
    caption an image goes by the length of its texts.
    """
    if form in LONG_FORMATS:
        return "long", f"the format {form}"
    if form != "list" or not pairs.captions or len(pairs.captions) > len(pairs.images):
        return "short", f"the format {form}" if form != "list" else "several captions an image"
    texts = [caption.text for caption in pairs.captions]
    if language_of(texts) == "zh":
        return "long", "a Chinese list with one caption an image"
    words = sorted(len(text.split()) for text in texts)[len(texts) // 2]
    return ("long" if words > LONG_TEXT_WORDS else "short"), f"the median of {words} words a caption"


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
        if not isinstance(name, str):
            accounting.skip("unknown_image", place)
        elif not isinstance(text, str):
            accounting.skip("no_caption", place)
        elif not text.strip():
            accounting.skip("empty_caption", place)
        elif (item := find(name)) is None:
            accounting.skip("missing_image", f"{place}: {shown(name)}")
        else:
            if item.key not in numbers:
                numbers[item.key] = len(pairs.images)
                pairs.images.append(item)
            pairs.captions.append(Caption(numbers[item.key], text.strip()))
            accounting.take()
    return pairs


def _checked_rows(path: Path, form: str, kind: str, split: str) -> Iterator[CaptionRow]:
    """The reader's rows; a file of another form is an error that names it."""
    try:
        yield from READERS[form](path, kind, split)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, csv.Error) as error:
        raise EvaluationError(
            f"{path} is not of format {form} ({type(error).__name__}: {one_line(error)}); name --format"
        ) from error


def shard_captions(folder: Path, kind: str, language: str) -> tuple[CaptionSet, str]:
    """The captions of one language of a folder of shards, and the language; the other's samples are no rows."""
    shards = read_shards(folder)
    language = the_one_language(language, (one.sample.language for one in shards.samples), str(folder))
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
    return pairs, language
