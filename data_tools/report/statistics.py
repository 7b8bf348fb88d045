"""Counts over a folder of shards: what is in the records, how they were made, and what was left out on the way.

Images are not read: of each tar only headers and records. Memory does not grow with the number of samples.
"""

from __future__ import annotations

import heapq
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.execution.reports import StepReport, read_report
from data_tools.execution.shard_work import REPORTS
from data_tools.execution.shards import tar_shards
from data_tools.negatives.plain import judge_for
from data_tools.phrases.interface import found_phrases
from data_tools.report.choice import Chosen, rank_of
from data_tools.report.stills import at_frame, middle_frame
from data_tools.text.language import SPACELESS
from pipeline.base.border import BorderError
from pipeline.base.languages import primary
from pipeline.data.records import Fault, walk_records
from pipeline.data.schema import Sample

MAX_ATTRIBUTE_REGIONS = 5000  # whose negatives are taken apart; shares are then good to one per cent
# Of a whole tar, where other faults are of one sample.
DAMAGE = frozenset({"empty_shard", "damaged_header", "truncated_shard"})
LENGTH_UNIT = "words, or characters where there are no spaces"
MAX_NAMES = 10_000  # categories counted; an open vocabulary would grow without end


@dataclass
class Histogram:
    """Counts in bins: ``edges[i] <= value < edges[i + 1]``; the last bin is open to the right."""

    title: str
    unit: str
    edges: tuple[float, ...]
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * len(self.edges)

    def add(self, value: float) -> None:
        self.counts[max(0, bisect_right(self.edges, value) - 1)] += 1

    @property
    def total(self) -> int:
        return sum(self.counts)


def _histograms() -> dict[str, Histogram]:
    lengths = (0, 5, 10, 15, 20, 30, 40, 60, 80, 120, 160, 240)
    return {
        "regions": Histogram("Regions an image", "regions", (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30)),
        "negatives": Histogram("Negatives a region", "negatives", tuple(range(12))),
        "area": Histogram("Area of the boxes", "% of the image", (0, 0.1, 0.3, 1, 3, 5, 10, 20, 40, 60, 80)),
        "score": Histogram("Confidence of the boxes", "score", tuple(n / 10 for n in range(10))),
        "short": Histogram("Length of the short captions", LENGTH_UNIT, lengths),
        "long": Histogram("Length of the long captions", LENGTH_UNIT, lengths),
        "phrase": Histogram(
            "Length of the phrases",
            LENGTH_UNIT,
            (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30),
        ),
        "patches": Histogram(
            "Size of the images", "patches of 16×16 pixels", (0, 128, 256, 576, 784, 1024, 2048, 4096)
        ),
    }


@dataclass
class Statistics:
    """What `collect` found; ``attributes`` counts the negatives of ``attribute_regions`` regions by what changed."""

    folder: str
    shards: int = 0
    samples: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    attributes: Counter[str] = field(default_factory=Counter)
    attribute_regions: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, Histogram] = field(default_factory=_histograms)
    made_by: list[dict[str, Any]] = field(default_factory=list)  # the chain of steps, oldest first
    chosen: list[Chosen] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Count a record; a clip's regions as in the middle one of the frames where they are."""
        if sample.frames is not None:
            self.fields["clips"] += 1
            self.fields["frames of clips"] += sample.num_frames
            seen = at_frame(sample, None)
            self.fields["regions absent in every frame"] += len(sample.regions) - len(seen.regions)
            sample = seen
        self.samples += 1
        self.languages[sample.language] += 1
        bins = self.histograms
        bins["patches"].add((sample.width // 16) * (sample.height // 16))
        for name in ("short_caption", "long_caption"):
            caption = getattr(sample, name)
            if caption is not None:
                self.fields[f"{name}s"] += 1
                bins[name.partition("_")[0]].add(text_length(caption, sample.language))
        bins["regions"].add(len(sample.regions))
        self.fields["phrases in captions"] += len(found_phrases(sample))
        for region in sample.regions:
            self.fields["regions"] += 1
            self.fields["regions with negatives"] += bool(region.negatives)
            self.fields["negatives"] += len(region.negatives)
            self.fields["long phrases"] += region.long_phrase is not None
            x1, y1, x2, y2 = region.image_box
            bins["area"].add(100 * (x2 - x1) * (y2 - y1))
            bins["negatives"].add(len(region.negatives))
            bins["phrase"].add(text_length(region.phrase, sample.language))
            if region.score is not None:
                bins["score"].add(region.score)
            if region.category is not None and (len(self.categories) < MAX_NAMES or region.category in self.categories):
                self.categories[region.category] += 1

    def add_attributes(self, sample: Sample) -> None:
        for region in sample.regions:
            if region.negatives:
                validator = judge_for(sample.language, region.phrase)
                self.attribute_regions += 1
                for text in region.negatives:
                    self.attributes["+".join(sorted(validator.changed_attributes(text)))] += 1

    def dropped(self) -> Counter[str]:
        """Samples left out on the way, by ``step: reason``."""
        return self._counter("dropped")

    def _counter(self, name: str) -> Counter[str]:
        counts: Counter[str] = Counter()
        for step in self.made_by:
            counts.update({f"{step['step']}: {what}": number for what, number in step[name].items()})
        return counts

    def to_json(self) -> dict[str, Any]:
        return {
            "shards": self.shards,
            "samples": self.samples,
            "languages": dict(self.languages),
            "fields": dict(self.fields),
            "categories": len(self.categories),
            "negatives_by_attribute": dict(self.attributes.most_common()),
            "negatives_by_attribute_from_regions": self.attribute_regions,
            "unreadable": dict(self.faults),
            "steps": self.made_by,
        }


def text_length(text: str, language: str) -> int:
    """Words, or characters in languages that put no spaces between words."""
    return sum(not char.isspace() for char in text) if primary(language) in SPACELESS else len(text.split())


def collect(folder: str | Path, num_samples: int = 0, seed: int = 0) -> Statistics:
    """Read all records of a folder of shards; ``num_samples`` of them are chosen to be looked at, by language.

    Raises:
        ValueError: there are no shards. OSError: one is damaged.
    """
    statistics = Statistics(str(folder))
    looked_at: dict[str, list] = {}  # language -> heap of the samples with the smallest ranks
    attributes: list[tuple[int, int, Sample]] = []
    shards = tar_shards(folder)

    def on_fault(fault: Fault) -> None:
        if fault.kind in DAMAGE:
            raise OSError(
                f"shard {fault.shard} is damaged ({fault.message}); run: python -m data_tools verify {folder}"
            )
        statistics.faults[fault.kind] += 1

    for shard in shards:
        for found, sample in walk_records(shard.path, on_fault, captions_required=False, clips=True):
            statistics.add(sample)
            rank = rank_of(seed, found.key, bool(sample.regions), any(r.negatives for r in sample.regions))
            heap = looked_at.setdefault(sample.language, [])
            image, extension, still = middle_frame(found, sample)
            chosen = Chosen(shard.path, found.key, image.offset, image.size, extension, still)
            _keep(heap, num_samples, (-rank, statistics.samples, chosen))
            if any(region.negatives for region in sample.regions):
                _keep(attributes, MAX_ATTRIBUTE_REGIONS, (-rank, statistics.samples, sample))
    statistics.shards = len(shards)
    for _, _, sample in sorted(attributes, key=lambda item: item[:2], reverse=True):
        if statistics.attribute_regions < MAX_ATTRIBUTE_REGIONS:
            statistics.add_attributes(sample)
    statistics.made_by = read_reports(Path(folder), statistics.faults)
    statistics.chosen = _share(looked_at, num_samples)
    return statistics


def _keep(heap: list, limit: int, item: tuple) -> None:
    if limit > len(heap):
        heapq.heappush(heap, item)
    elif limit:
        heapq.heappushpop(heap, item)


def _share(looked_at: dict[str, list], num_samples: int) -> list[Chosen]:
    """The languages in turn, as long as each has samples left."""
    queues = [sorted(heap, key=lambda item: item[:2], reverse=True) for _, heap in sorted(looked_at.items())]
    chosen: list[Chosen] = []
    while len(chosen) < num_samples and any(queues):
        for queue in queues:
            if queue and len(chosen) < num_samples:
                chosen.append(queue.pop(0)[2])
    return chosen


def read_reports(folder: Path, faults: Counter[str]) -> list[dict[str, Any]]:
    """The steps that made the shards, oldest first, their counts added up over all shards.

    A damaged report adds to ``faults`` and is passed over.
    """
    steps: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / REPORTS).glob("*.json")):
        try:
            report = read_report(path)
        except BorderError:
            faults["damaged_report"] += 1
            continue
        for number, one in enumerate([*report["earlier"], report]):
            _add_step(steps, number, one)
    return list(steps.values())


def _add_step(steps: dict[str, dict[str, Any]], number: int, report: StepReport) -> None:
    made_by = report["made_by"]
    settings = made_by.get("settings") or {}
    identity = json.dumps([number, made_by.get("step"), made_by.get("version"), settings], sort_keys=True)
    empty = {"samples_in": 0, "samples_out": 0, "dropped": {}, "failed": {}, "counts": {}}
    step = steps.setdefault(
        identity,
        {"step": made_by.get("step", "read"), "version": made_by.get("version"), "settings": settings, **empty},
    )
    step["samples_in"] += report["samples_in"]
    step["samples_out"] += report["samples_out"]
    reasons: dict[str, Sequence[str]] = {
        "dropped": [drop["reason"] for drop in report["dropped"]],
        "failed": [failure["why"].partition(":")[0] for failure in report["failed"]],
    }
    for name, found in reasons.items():
        step[name] = dict(Counter(step[name]) + Counter(found))
    step["counts"] = dict(Counter(step["counts"]) + Counter(report["counts"]))
