"""All scores on the embedded scenes in one pass over their images: FG sets, caption retrieval, object classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.base.constants import LANGUAGES
from pipeline.evaluation.class_names import class_embeddings
from pipeline.evaluation.features import EncodeSettings, SetFeatures, encode_set, encode_texts, usable_rows
from pipeline.evaluation.formats.fgovd import read_fgovd
from pipeline.evaluation.formats.items import RegionRow, RegionSet
from pipeline.evaluation.formats.scenes import object_rows, scene_classes, scene_templates
from pipeline.evaluation.formats.shards import ShardFolder, read_shards
from pipeline.evaluation.measures import Facts, fact, share_fact
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.scenes import SceneOptions
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import Accounting
from pipeline.evaluation.tasks.fgovd import attribute_scores, chances, row_hits
from pipeline.evaluation.tasks.retrieval import recall_facts, recalls

FG_SETS = ("hard", "medium", "easy", "trivial")


def run(model: EvaluationModel, options: SceneOptions, settings: EncodeSettings, ranks: Ranks) -> dict[str, Any]:
    """The task on a folder that data_tools scenes wrote.

    The scores are fractions: ``hard``, ``medium``, ``easy``, ``trivial`` (over all rows), ``boxes_top1`` (over all
    objects, against the class names of the object's language), ``t2i_r1`` and ``i2t_r1`` (long captions among the first
    ``retrieval_images`` images of a language; the mean of the languages); the same under ``by_language`` (each apart),
    and the region scores under ``seen`` and ``unseen`` combinations.
    """
    path = options.one_data()
    folder = read_shards(path)
    rows = _Rows(folder, path, options.parts)
    images = [sample.image for sample in folder.samples]
    features = encode_set(model, images, rows.all, settings=settings, ranks=ranks, label="scenes")
    scores: dict[str, Any] = {"by_language": {}, "seen": {}, "unseen": {}}
    facts: Facts = {}
    accounts: list[Accounting] = []
    if "fgovd" in options.parts:
        accounts += _score_fgovd(model, rows, features, scores, facts, ranks)
    if "boxes" in options.parts:
        accounts.append(_score_boxes(model, rows, features, scores, facts, ranks))
    if "retrieval" in options.parts:
        accounts.append(_score_retrieval(model, folder, features, scores, facts, options.retrieval_images, ranks))
    for account in accounts:
        account.check(options.max_skipped_share)
    return {
        "scores": scores,
        "facts": facts,
        "settings": {
            "data": str(path),
            "retrieval": f"long captions, first {options.retrieval_images} images of a language, each apart; mean of "
            "the languages",
            "boxes": "region embedding against the classes of the object's language, each the mean of its prompts",
            "fgovd": "1 true phrase against its wrong ones; a tie is a miss",
        },
        "accounting": [account.to_json() for account in accounts],
    }


class _Rows:
    """The rows of all parts in one list, so that every box is pooled in one pass. ``part[name]`` is a part's slice."""

    def __init__(self, folder: ShardFolder, path: Path, parts: Sequence[str]) -> None:
        self.images = [sample.image for sample in folder.samples]
        self.all: list[RegionRow] = []
        self.part: dict[str, tuple[range, RegionSet]] = {}
        number_of = {image.key: number for number, image in enumerate(self.images)}
        by_key = folder.by_key()
        if "fgovd" in parts:
            for name in FG_SETS:
                regions = read_fgovd(path / "fgovd" / f"{name}.jsonl", lambda p: by_key.get(_key(p)))
                renumbered = [replace(row, image=number_of[regions.images[row.image].key]) for row in regions.rows]
                self._add(name, RegionSet(regions.images, renumbered, regions.accounting))
        if "boxes" in parts:
            self.classes = scene_classes(folder, path)
            self._add("boxes", object_rows(folder, self.classes))
            self.templates = scene_templates(path)

    def _add(self, name: str, regions: RegionSet) -> None:
        self.part[name] = (range(len(self.all), len(self.all) + len(regions.rows)), regions)
        self.all += regions.rows

    def usable(self, name: str, features: SetFeatures) -> tuple[list[RegionRow], Tensor, Accounting]:
        """A part's rows that can be scored, and their regions; the others are counted."""
        span, regions = self.part[name]
        keep = usable_rows(self.all, span, features, self.images, regions.accounting)
        return [self.all[number] for number in keep], features.regions[keep], regions.accounting


def _key(image_path: str) -> str:
    return image_path.rpartition("/")[2].partition(".")[0]


def _enter(
    scores: dict[str, Any], facts: Facts, name: str, rows: list[RegionRow], hits: Tensor, chance: Sequence[float]
) -> None:
    """Enter the mean of ``hits`` overall, by language and by seen/unseen; ``chance``: of each row."""
    scores[name] = hits.double().mean().item() if len(hits) else 0.0
    facts[name] = share_fact(hits, chance)
    for tag, groups in (("language", scores["by_language"]), ("combination", scores)):
        for value in sorted({row.tags[tag] for row in rows if row.tags.get(tag) is not None}):
            chosen = torch.tensor([row.tags.get(tag) == value for row in rows])
            groups.setdefault(value, {})[name] = hits[chosen].double().mean().item()
            group = f"by_language/{value}" if tag == "language" else value
            of_these = [one for one, is_chosen in zip(chance, chosen.tolist(), strict=True) if is_chosen]
            facts[f"{group}/{name}"] = share_fact(hits[chosen], of_these)


def _score_fgovd(
    model: EvaluationModel, rows: _Rows, features: SetFeatures, scores: dict[str, Any], facts: Facts, ranks: Ranks
) -> list[Accounting]:
    usable = {name: rows.usable(name, features) for name in FG_SETS}
    texts = [text for part, _, _ in usable.values() for row in part for text in row.texts]
    if not texts:
        return [accounting for _, _, accounting in usable.values()]
    embeds, row_of = encode_texts(model, texts, "region", ranks)
    for name, (part, regions, accounting) in usable.items():
        if part:
            hits, ties = row_hits(part, regions, embeds, row_of)
            _enter(scores, facts, name, part, hits, chances(part))
            for attribute, (value, known) in attribute_scores(part, regions, embeds, row_of).items():
                scores.setdefault("by_attribute", {}).setdefault(attribute, {})[name] = value
                facts[f"by_attribute/{attribute}/{name}"] = known
            accounting.note("ties_counted_as_misses", name, int(ties.sum()))
        accounting.unit = f"FG-OVD rows ({name})"
    return [accounting for _, _, accounting in usable.values()]


def _score_boxes(
    model: EvaluationModel, rows: _Rows, features: SetFeatures, scores: dict[str, Any], facts: Facts, ranks: Ranks
) -> Accounting:
    part, regions, accounting = rows.usable("boxes", features)
    hits = torch.zeros(len(part), dtype=torch.bool)
    for language in sorted({row.tags["language"] for row in part}):  # one order on all ranks
        classes = class_embeddings(model, rows.classes[language], rows.templates[language], "region", ranks)
        mine = torch.tensor([number for number, row in enumerate(part) if row.tags["language"] == language])
        label = torch.tensor([part[number].label for number in mine.tolist()])
        hits[mine] = (regions[mine] @ classes.T).argmax(1) == label
    chance = [1 / len(rows.classes[row.tags["language"]]) for row in part]
    _enter(scores, facts, "boxes_top1", part, hits, chance)
    return accounting


def _score_retrieval(
    model: EvaluationModel,
    folder: ShardFolder,
    features: SetFeatures,
    scores: dict[str, Any],
    facts: Facts,
    max_images: int,
    ranks: Ranks,
) -> Accounting:
    accounting = Accounting("images of the retrieval sets")
    of_language: dict[str, dict[str, float]] = {}
    for language in LANGUAGES:
        numbers: list[int] = []
        texts: list[str] = []
        for number, (image, sample) in enumerate((one.image, one.sample) for one in folder.samples):
            if sample.language != language or len(numbers) == max_images:
                continue
            if number in features.faults:
                accounting.skip(features.faults[number], image.key)
            elif sample.long_caption is None:
                accounting.skip("no_long_caption", image.key)
            else:
                accounting.take()
                numbers.append(number)
                texts.append(sample.long_caption)
        if numbers:
            embeds, row_of = encode_texts(model, texts, "long", ranks)
            rows = embeds[[row_of[text] for text in texts]]
            owner = torch.arange(len(numbers))
            of_language[language] = recalls(features.embeds[numbers], rows, owner)
            known = recall_facts(owner, len(numbers))
            facts.update({f"by_language/{language}/{name}": one for name, one in known.items()})
            for name, one in known.items():  # the mean of sets is no share of rows, so it has no interval
                whole = facts.setdefault(name, fact(0, 0.0, "mean"))
                whole["n"] += one["n"]
                whole["chance"] += one["chance"]
            scores["by_language"].setdefault(language, {}).update(of_language[language])
    for name in next(iter(of_language.values()), {}):
        scores[name] = sum(one[name] for one in of_language.values()) / len(of_language)
        facts[name]["chance"] /= len(of_language)
    return accounting
