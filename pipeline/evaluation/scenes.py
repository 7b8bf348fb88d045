"""All scores on the embedded scenes in one pass over their images: FG sets, caption retrieval, object classes.

``scene_scores`` is what the demo and the training loop call; the command line uses it for a folder of scenes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.evaluation.class_names import REGION_TEMPLATES, class_embeddings
from pipeline.evaluation.features import EncodeSettings, SetFeatures, encode_set, encode_texts
from pipeline.evaluation.fgovd import row_hits, usable_rows
from pipeline.evaluation.formats.fgovd import read_fgovd
from pipeline.evaluation.formats.items import ImageItem, RegionRow, RegionSet
from pipeline.evaluation.formats.segmentation import SegmentationSet
from pipeline.evaluation.formats.shards import ShardFolder, read_shards
from pipeline.evaluation.models import DEFAULT_LEVELS, EvaluationModel, FGCLIP2Evaluation
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import Accounting, EvaluationError
from pipeline.evaluation.retrieval import recalls

FG_SETS = ("hard", "medium", "easy", "trivial")
SCENE_TASKS = ("fgovd", "retrieval", "boxes")
SCENE_FORMATS = {"auto": "shape", "scenes-shape": "shape", "scenes-colour": "colour"}  # what the masks' classes are


def is_scene_folder(folder: str | Path) -> bool:
    """Shards with FG-OVD files beside them: what ``data_tools scenes`` writes as its test split."""
    return (Path(folder) / "fgovd").is_dir() and any(Path(folder).glob("*.tar"))


def scene_scores(
    model: Any,
    tokenizer: Any,
    test_folder: str | Path,
    *,
    levels: Sequence[int] = DEFAULT_LEVELS,
    tasks: Sequence[str] = SCENE_TASKS,
    retrieval_images: int = 200,
    settings: EncodeSettings | None = None,
    ranks: Ranks | None = None,
    max_skipped_share: float = 0.01,
) -> dict[str, Any]:
    """Scores of ``model`` (an FGCLIP2 with its ``tokenizer``, or an EvaluationModel) on the scenes' test folder.

    Returns:
        fractions in 0..1: ``hard``, ``medium``, ``easy``, ``trivial`` (over all rows), ``boxes_top1`` (over all
        objects, against the class names of the object's language), ``t2i_r1`` and ``i2t_r1`` (long captions among the
        first ``retrieval_images`` images of a language; the mean of the languages); the same under ``by_language``
        (each apart), and the region scores under ``seen`` and ``unseen`` combinations. ``accounting`` and
        ``settings`` say what was measured.
    Raises:
        EvaluationError: the folder is no scene folder, or more rows than ``max_skipped_share`` cannot be used.
    """
    began = time.monotonic()
    if not isinstance(model, EvaluationModel):
        model = FGCLIP2Evaluation(model, tokenizer, levels=levels)
    unknown = [task for task in tasks if task not in SCENE_TASKS]
    if unknown:
        raise EvaluationError(f"task {unknown[0]!r} is not scored on scenes; choose from {', '.join(SCENE_TASKS)}")
    folder = read_shards(test_folder)
    rows = _Rows(folder, Path(test_folder), tasks)
    with model.evaluating():
        features = encode_set(
            model, [s.image for s in folder.samples], rows.all, settings=settings, ranks=ranks, label="scenes"
        )
        scores: dict[str, Any] = {"by_language": {}, "seen": {}, "unseen": {}}
        accounts = []
        if "fgovd" in tasks:
            accounts += _score_fgovd(model, rows, features, scores, ranks)
        if "boxes" in tasks:
            accounts.append(_score_boxes(model, rows, features, scores, ranks))
        if "retrieval" in tasks:
            accounts.append(_score_retrieval(model, folder, features, scores, retrieval_images, ranks))
    for account in accounts:
        account.check(max_skipped_share)
    scores["accounting"] = [account.to_json() for account in accounts]
    scores["settings"] = {
        "model": model.settings(),
        "retrieval": f"long captions, first {retrieval_images} images of a language, each apart; mean of the languages",
        "boxes": "region embedding against the classes of the object's language, each the mean of its prompts",
        "fgovd": "1 true phrase against its wrong ones; a tie is a miss",
    }
    scores["seconds"] = round(time.monotonic() - began, 2)
    return scores


class _Rows:
    """The rows of all tasks in one list, so that every box is pooled in one pass. ``part[name]`` is a task's slice."""

    def __init__(self, folder: ShardFolder, path: Path, tasks: Sequence[str]) -> None:
        self.folder = folder
        self.all: list[RegionRow] = []
        self.part: dict[str, tuple[range, RegionSet]] = {}
        number = {sample.image.key: at for at, sample in enumerate(folder.samples)}
        images = folder.by_key()
        if "fgovd" in tasks:
            for name in FG_SETS:
                found = read_fgovd(path / "fgovd" / f"{name}.jsonl", lambda p: images.get(_key(p)))
                renumbered = [replace(row, image=number[found.images[row.image].key]) for row in found.rows]
                self._add(name, RegionSet(found.images, renumbered, found.accounting))
        if "boxes" in tasks:
            self.classes = scene_classes(folder, path)
            self._add("boxes", _object_rows(folder, self.classes))
            self.templates = scene_templates(path)

    def _add(self, name: str, found: RegionSet) -> None:
        self.part[name] = (range(len(self.all), len(self.all) + len(found.rows)), found)
        self.all += found.rows

    def usable(self, name: str, features: SetFeatures) -> tuple[list[RegionRow], torch.Tensor, Accounting]:
        """A task's rows that can be scored, and their regions; the others are counted."""
        span, found = self.part[name]
        keep = usable_rows(self.all, span, features, [one.image for one in self.folder.samples], found.accounting)
        return [self.all[at] for at in keep], features.regions[keep], found.accounting


def _key(image_path: str) -> str:
    return image_path.rpartition("/")[2].partition(".")[0]


def _object_rows(folder: ShardFolder, names: dict[str, list[str]]) -> RegionSet:
    """One row an object; ``label`` counts into the class names of its language (``tags["language"]``)."""
    accounting, rows = Accounting("objects"), []
    for reason, where in folder.faults:
        accounting.skip(reason, where)
    for image, found in enumerate(folder.samples):
        language = found.sample.language
        for number, region in enumerate(found.sample.regions):
            where = f"{found.image.key}: regions[{number}]"
            if region.category is None:
                accounting.skip("no_category", where)
            elif region.category not in names[language]:
                accounting.skip("unknown_class", f"{where}: {region.category}")
            else:
                accounting.take()
                tags = {"language": language, "combination": _combination(found.sample.source, number)}
                rows.append(RegionRow(image, region.box, label=names[language].index(region.category), tags=tags))
    return RegionSet([found.image for found in folder.samples], rows, accounting)


def _summary(path: Path) -> dict[str, Any]:
    """scenes.json, beside the shards or above; empty where there is none."""
    for place in (path / "scenes.json", path.parent / "scenes.json"):
        if place.is_file():
            return json.loads(place.read_text(encoding="utf-8"))
    return {}


def scene_templates(path: Path) -> dict[str, list[str]]:
    """Prompts of an object's class by language: scenes.json's, every attribute in every combination, or the name."""
    return REGION_TEMPLATES | _summary(path).get("region_templates", {})


def scene_classes(folder: ShardFolder, path: Path) -> dict[str, list[str]]:
    """Class names by language: scenes.json's, or those the shards name. Their order is that of the labels."""
    if classes := _summary(path).get("classes"):
        return classes
    names: dict[str, list[str]] = {"en": [], "zh": []}
    for found in folder.samples:
        names[found.sample.language] += [r.category for r in found.sample.regions if r.category is not None]
    return {language: sorted(set(found)) for language, found in names.items()}


def scene_masks(path: Path, form: str = "auto") -> tuple[SegmentationSet, dict[str, list[str]]]:
    """The scenes' masks as maps of shapes or of colours, and the prompts of a class by language.

    Each image is read with the class names of its language.

    Raises:
        EvaluationError: a form that is none of SCENE_FORMATS, or masks that nothing explains.
    """
    if form not in SCENE_FORMATS:
        raise EvaluationError(f"format is {form!r}; for scenes it must be one of {', '.join(SCENE_FORMATS)}")
    masks = _summary(path).get("masks")
    if masks is None:
        raise EvaluationError(f"{path} has no scenes.json that explains its masks; write it anew: data_tools scenes")
    of = masks[SCENE_FORMATS[form]]
    folder, accounting = read_shards(path), Accounting("images with masks")
    found = SegmentationSet([], [], of["classes"], [], "background", accounting, tuple(of["class_of_value"]))
    for reason, where in folder.faults:
        found.accounting.skip(reason, where)
    for one in folder.samples:
        if one.mask is None:
            found.accounting.skip("missing_mask", one.image.key)
            continue
        found.images.append(one.image)
        found.labels.append(one.mask)
        found.languages.append(one.sample.language)
        found.accounting.take()
    return found, of["templates"]


def _combination(source: dict[str, Any], number: int) -> str | None:
    """Of the object itself where the record tells, else of its image."""
    objects = source.get("objects", [])
    of_object = objects[number].get("combination") if number < len(objects) else None
    return of_object or source.get("combination")


def _grouped(scores: dict[str, Any], name: str, rows: list[RegionRow], hits: torch.Tensor) -> None:
    """Enter the mean of ``hits`` overall, by language and by seen/unseen."""
    scores[name] = hits.double().mean().item() if len(hits) else 0.0
    for tag, place in (("language", scores["by_language"]), ("combination", scores)):
        for value in sorted({row.tags.get(tag) for row in rows} - {None}):
            chosen = torch.tensor([row.tags.get(tag) == value for row in rows])
            place.setdefault(value, {})[name] = hits[chosen].double().mean().item()


def _score_fgovd(model, rows: _Rows, features: SetFeatures, scores: dict, ranks) -> list[Accounting]:
    usable = {name: rows.usable(name, features) for name in FG_SETS}
    texts = [text for part, _, _ in usable.values() for row in part for text in row.texts]
    if not texts:
        return [accounting for _, _, accounting in usable.values()]
    embeds, number = encode_texts(model, texts, "region", ranks)
    for name, (part, regions, accounting) in usable.items():
        if part:
            hits, ties = row_hits(part, regions, embeds, number)
            _grouped(scores, name, part, hits)
            accounting.note("ties_counted_as_misses", name, int(ties.sum()))
        accounting.unit = f"FG-OVD rows ({name})"
    return [accounting for _, _, accounting in usable.values()]


def _score_boxes(model, rows: _Rows, features: SetFeatures, scores: dict, ranks) -> Accounting:
    part, regions, accounting = rows.usable("boxes", features)
    names = rows.classes
    hits = torch.zeros(len(part), dtype=torch.bool)
    for language in sorted({row.tags["language"] for row in part}):  # one order on all ranks
        classes = class_embeddings(model, names[language], rows.templates[language], "region", ranks)
        at = torch.tensor([n for n, row in enumerate(part) if row.tags["language"] == language])
        label = torch.tensor([part[n].label for n in at.tolist()])
        hits[at] = (regions[at] @ classes.T).argmax(1) == label
    _grouped(scores, "boxes_top1", part, hits)
    return accounting


def _score_retrieval(model, folder: ShardFolder, features: SetFeatures, scores: dict, limit: int, ranks) -> Accounting:
    accounting = Accounting("images of the retrieval sets")
    found: dict[str, dict[str, float]] = {}
    for language in ("en", "zh"):
        images: list[ImageItem] = []
        numbers, texts = [], []
        for at, one in enumerate(folder.samples):
            if one.sample.language != language or len(numbers) == limit:
                continue
            if at in features.faults:
                accounting.skip(features.faults[at], one.image.key)
            elif one.sample.long_caption is None:
                accounting.skip("no_long_caption", one.image.key)
            else:
                accounting.take()
                numbers.append(at)
                texts.append(one.sample.long_caption)
                images.append(one.image)
        if numbers:
            embeds, number = encode_texts(model, texts, "long", ranks)
            rows = embeds[[number[text] for text in texts]]
            found[language] = recalls(features.embeds[numbers], rows, torch.arange(len(numbers)))
            scores["by_language"].setdefault(language, {}).update(found[language])
    for name in next(iter(found.values()), {}):
        scores[name] = sum(one[name] for one in found.values()) / len(found)
    return accounting
