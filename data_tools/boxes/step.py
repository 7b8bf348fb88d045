"""The box step: find each phrase of ``source.phrases`` in the image, and make regions of the boxes that pass."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from data_tools.boxes.choose import BoxLimits, Detection, choose_boxes
from data_tools.execution.steps import Drop, Record, Shard, Step
from data_tools.phrases.interface import found_phrases
from pipeline.data.images import ImageFault, decode_image
from pipeline.data.schema import Region

if TYPE_CHECKING:  # both load torch, which --help does without
    from data_tools.boxes.detectors import Detector
    from data_tools.boxes.similarity import RegionTextFilter


class BoxStep(Step):
    """Regions of samples that have phrases; regions that are there already stay unless ``replace_existing``.

    A batch is one forward pass of the detector, padded to its largest image, so results may differ in the last bits
    with the batch: its size is part of the settings.
    """

    name, version = "boxes", "1"

    def __init__(
        self,
        detector: Detector,
        limits: BoxLimits,
        *,
        batch_size: int = 8,
        similarity: RegionTextFilter | None = None,
        replace_existing: bool = False,
    ) -> None:
        self.detector, self.limits, self.batch_size = detector, limits, batch_size
        self.similarity, self.replace_existing = similarity, replace_existing

    def settings(self) -> dict[str, Any]:
        return {
            **self.detector.settings(),
            **asdict(self.limits),
            **(self.similarity.settings() if self.similarity else {}),
            "batch_size": self.batch_size,
            "replace_existing": self.replace_existing,
        }

    def open(self, worker: int) -> None:
        self.detector.open(worker)
        if self.similarity is not None:
            self.similarity.open(worker)

    def close(self) -> None:
        self.detector.close()

    def apply(self, records: list[Record], shard: Shard) -> list[Record | Drop]:
        results: list[Record | Drop] = list(records)
        images: dict[int, Image] = {}
        for number, record in enumerate(records):
            if record.sample.frames is not None:
                shard.count("clips_left_as_they_are")  # a detector sees no tracks
            elif not phrases_of(record):
                shard.count("samples_without_phrases")
            elif self.replace_existing or not record.sample.regions:
                try:
                    images[number] = decode_image(record.image)
                except ImageFault as fault:
                    results[number] = Drop(record.key, fault.kind, str(fault))
        if not images:
            return results
        phrases = [phrases_of(records[number]) for number in images]
        texts = [[phrase["phrase"] for phrase in some] for some in phrases]
        found = self.detector.detect(list(images.values()), texts, self.limits.min_score)
        for (number, image), some, detections in zip(images.items(), phrases, found, strict=True):
            results[number] = self._with_regions(records[number], image, some, detections, shard)
        return results

    def _with_regions(
        self, record: Record, image: Image, phrases: list[dict], detections: list[Detection], shard: Shard
    ) -> Record:
        chosen, left_out = choose_boxes(detections, image.width, image.height, self.limits)
        for what, number in left_out.items():
            shard.count(what, number)
        if self.similarity is not None and chosen:
            texts = [phrases[d.phrase]["phrase"] for d in chosen]
            alike = self.similarity.similarities(image, [d.box for d in chosen], texts)
            kept = [d for d, value in zip(chosen, alike, strict=True) if value >= self.similarity.min_similarity]
            shard.count("boxes_low_similarity", len(chosen) - len(kept))
            chosen = kept
        shard.count("boxes_kept", len(chosen))
        shard.count("phrases_without_box", len(phrases) - len({d.phrase for d in chosen}))
        regions = tuple(
            Region(
                box=d.box,
                phrase=phrases[d.phrase]["phrase"],
                long_phrase=phrases[d.phrase]["long_phrase"],
                score=round(d.score, 4),
            )
            for d in sorted(chosen, key=lambda d: (d.phrase, -d.score, d.box))
        )
        by = {"by": f"{self.name}/{self.version}", **self.detector.settings()}
        source = {**record.sample.source, "regions": by}
        return replace(record, sample=replace(record.sample, regions=regions, source=source))


def phrases_of(record: Record) -> list[dict[str, Any]]:
    """``{"phrase": …, "long_phrase": … or None}`` from the entries that the phrase step left, each phrase once.

    The detector is asked for the noun with its attributes; the clauses that hang on it are the long phrase.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in found_phrases(record.sample):
        phrase = entry.text if entry.short is None else entry.short
        found.setdefault(phrase, {"phrase": phrase, "long_phrase": None if entry.short is None else entry.text})
    return list(found.values())
