"""Open-vocabulary detection: a detector proposes boxes, the model names them, the two confidences are fused.

For every box, p = softmax over all class names of the region-text similarity, and the score of class c is
confidence^alpha * p_c^beta. The confidence is the box's own (FG-CLIP 2, appendix B), so that a box competes in all
classes, whichever its prompt held; or that of class c, where the detector scores every class of every box. The class
with the highest fused score wins; a tie goes to the detector's own class, so that alpha = 1, beta = 0 is the detector
itself. Reported: fused, the detector alone, the model alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipeline.evaluation.average_precision import average_precision, is_lvis
from pipeline.evaluation.class_names import class_embeddings, language_of_classes, read_class_names
from pipeline.evaluation.features import EncodeSettings, encode_set, read_image
from pipeline.evaluation.formats.detection import DetectionSet, read_detection, scene_detection
from pipeline.evaluation.formats.items import RegionRow
from pipeline.evaluation.formats.paths import expecting
from pipeline.evaluation.formats.scenes import is_scene_folder
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.detection import DetectionOptions
from pipeline.evaluation.pictures import detection_picture
from pipeline.evaluation.progress import ProgressLine
from pipeline.evaluation.proposals import Proposals, TransformersDetector, made_proposals, read_proposals
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.result_cache import ResultCache
from pipeline.evaluation.results import Accounting, EvaluationError
from pipeline.evaluation.templates import templates_of

CHUNK = 32  # images whose proposals and class scores exist at one time
NUM_PICTURES = 8
KINDS = ("fused", "detector", "model")


def fuse(confidence: Tensor, labels: Tensor, p: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """Fused scores and winning classes, [Q] each.

    Args:
        confidence: [Q] of the box, or [Q, C] of each class; labels: [Q], the detector's class; p: [Q, C].
    """
    confidence = confidence if confidence.ndim == 2 else confidence[:, None]
    fused = (confidence.double() ** alpha * p.double() ** beta).expand(-1, p.shape[1])
    best, winner = fused.max(1)
    own = fused.gather(1, labels[:, None]).squeeze(1)
    return best, torch.where(own == best, labels, winner)


def run(model: EvaluationModel, options: DetectionOptions, settings: EncodeSettings, ranks: Ranks) -> dict[str, Any]:
    """The task on COCO or LVIS instances with a detector or its results file, or on scenes with made proposals."""
    path = options.one_data()
    if is_scene_folder(path):
        dataset = scene_detection(path, options.language)
    else:
        names = read_class_names(options.class_names) if options.class_names else None
        with expecting(path, "COCO or LVIS instances"):
            dataset = read_detection(path, options.images, names, options.image_folder)
    dataset = dataset.limited(options.max_images)
    job = _Job(model, dataset, options, settings, ranks)
    rows, faults = job.detections()
    for number, reason in faults.items():
        dataset.drop_image(number, reason)
    dataset.accounting.check(options.max_skipped_share)
    ids = [image for number, image in enumerate(dataset.image_ids) if number not in faults]
    scores = {kind: average_precision(dataset.truth, rows[kind], ids) for kind in KINDS}
    if options.out is not None and ranks.is_main:
        _draw(dataset, rows["fused"], options.out, settings)
    return {
        "scores": scores,
        "settings": job.settings_shown(),
        "accounting": [one.to_json() for one in (dataset.accounting, *job.accounts)],
    }


@dataclass
class _Job:
    """Proposals, naming and fusion, chunk by chunk of images."""

    model: EvaluationModel
    dataset: DetectionSet
    options: DetectionOptions
    settings: EncodeSettings
    ranks: Ranks
    accounts: list[Accounting] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.temperature = self.options.temperature
        self.language = language_of_classes(self.options, self.dataset.classes)
        self.templates = templates_of(self.options, "region", self.language)
        self.propose = self._proposer()
        self.classes = class_embeddings(self.model, self.dataset.classes, self.templates, "region", self.ranks)

    def _proposer(self) -> Callable[[int], Proposals | str]:
        """Proposals of an image by its number; a reason where its file cannot be read."""
        options, dataset = self.options, self.dataset
        if options.proposals is not None:
            accounting = Accounting("proposals")
            self.accounts.append(accounting)
            with expecting(options.proposals, "COCO results"):
                of_image = read_proposals(options.proposals, dataset.sizes(), dataset.label_of, accounting)
            empty = Proposals(torch.zeros(0, 4).double(), torch.zeros(0).double(), torch.zeros(0, dtype=torch.long))
            return lambda number: of_image.get(dataset.image_ids[number], empty)
        if options.detector is not None:
            detector = TransformersDetector(options.detector, str(self.model.device))
            if options.confidence == "class" and (passes := detector.num_prompts(dataset.classes)) > 1:
                raise EvaluationError(
                    f"confidence is 'class', but this detector needs {passes} prompts for {len(dataset.classes)} "
                    "classes and scores a box for part of them only; use --confidence box"
                )

            def detect(number: int) -> Proposals | str:
                image = read_image(dataset.images[number], self.settings.max_megapixels)
                return image if isinstance(image, str) else detector(image, dataset.classes)

            return detect
        true_boxes = dataset.true_boxes
        if true_boxes is None:
            raise EvaluationError("no proposals; give --detector a folder, or --proposals a COCO results file")

        def make(number: int) -> Proposals:
            generator = torch.Generator().manual_seed(options.seed * 1_000_003 + number)
            boxes, labels = true_boxes[number]
            return made_proposals(boxes, labels, len(dataset.classes), generator)

        return make

    def settings_shown(self) -> dict[str, Any]:
        options = self.options
        made = f"made from the true boxes, seed {options.seed}"
        return {
            "data": str(options.one_data()),
            "proposals": str(options.detector or options.proposals or made),
            "alpha": options.alpha,
            "beta": options.beta,
            "temperature": self.temperature,
            "confidence": options.confidence,
            "image_folder": options.image_folder,
            "box_threshold": options.box_threshold,
            "max_detections": options.max_detections,
            "templates": self.templates,
            "classes": len(self.dataset.classes),
            "language": self.language,
            "rules": "LVIS" if is_lvis(self.dataset.truth) else "COCO",
            "library": "faster-coco-eval",
        }

    def detections(self) -> tuple[dict[str, list[dict[str, Any]]], dict[int, str]]:
        """COCO results rows by kind, in the order of the images, and the images that cannot be used; on all ranks."""
        count = len(self.dataset.images)
        starts = range(0, count, CHUNK)
        depends = [
            self.settings_shown(),
            [_file_identity(path) for path in (self.options.proposals, *self.options.data)],
        ]
        cache = ResultCache(self.settings.cache_folder, self.model, depends)
        report = ProgressLine(
            "detection images", count, self.settings.report_every_seconds if self.ranks.is_main else None
        )
        mine = {}
        for chunk in self.ranks.share(len(starts)):
            numbers = range(starts[chunk], min(starts[chunk] + CHUNK, count))
            key = [numbers.start, [self.dataset.images[number].identity for number in numbers]]
            mine[chunk] = cache.get(key, partial(self._chunk, numbers))
            report.advance(len(numbers))
        chunks = {chunk: part for share in self.ranks.gather(mine) for chunk, part in share.items()}
        rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        faults: dict[int, str] = {}
        unnamed = 0
        for chunk in sorted(chunks):
            for kind in KINDS:
                rows[kind] += chunks[chunk]["rows"][kind]
            faults |= {int(number): reason for number, reason in chunks[chunk]["faults"].items()}
            unnamed += chunks[chunk]["unnamed"]
        self.dataset.accounting.note("proposals_without_area_in_the_image_named_at_chance", "proposals", unnamed)
        return rows, faults

    def _chunk(self, numbers: range) -> dict[str, Any]:
        options, dataset = self.options, self.dataset
        proposed, faults = {}, {}
        for number in numbers:
            one = self.propose(number)
            if isinstance(one, str):
                faults[number] = one
            else:
                proposed[number] = one.strongest(options.box_threshold, options.max_detections)
        boxes = [
            RegionRow(number - numbers[0], tuple(box))
            for number, one in proposed.items()
            for box in one.boxes.clamp(0, 1).tolist()
        ]
        images = [dataset.images[number] for number in numbers]
        features = encode_set(self.model, images, boxes, settings=replace(self.settings, cache_folder=None))
        p = (features.regions @ self.classes.T / self.temperature).double().softmax(1)
        p[~features.region_valid] = 1 / len(dataset.classes)
        faults |= {numbers[0] + number: reason for number, reason in features.faults.items()}
        rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        start = 0
        for number, one in proposed.items():
            part = p[start : start + len(one.boxes)]
            start += len(one.boxes)
            if number in faults:
                continue
            confidence = one.confidence(options.confidence)
            for kind, alpha, beta in zip(KINDS, (options.alpha, 1.0, 0.0), (options.beta, 0.0, 1.0), strict=True):
                scores, labels = fuse(confidence, one.labels, part, alpha, beta)
                rows[kind] += dataset.result_rows(number, one.boxes, scores, labels)
        return {"rows": rows, "faults": faults, "unnamed": int((~features.region_valid).sum())}


def _file_identity(path: Path | None) -> str | None:
    """Tells a changed file from the same one without reading it."""
    if path is None:
        return None
    status = path.stat()
    return f"{path.name}|{status.st_size}|{status.st_mtime_ns}"


def _draw(dataset: DetectionSet, rows: list[dict[str, Any]], out: Path, settings: EncodeSettings) -> None:
    """Pictures of the first images with their strongest detections: as many as the image has true boxes."""
    of_image: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        of_image.setdefault(row["image_id"], []).append(row)
    names = {category: dataset.classes[label] for category, label in dataset.label_of.items()}
    for number, image_id in enumerate(dataset.image_ids[:NUM_PICTURES]):
        image = read_image(dataset.images[number], settings.max_megapixels)
        if isinstance(image, Image.Image):
            shown = sorted(of_image.get(image_id, []), key=lambda row: -row["score"])[: dataset.count_of(image_id)]
            boxes = [(row["bbox"], f"{names[row['category_id']]} {row['score']:.2f}") for row in shown]
            detection_picture(image, boxes, out / f"detection-{Path(dataset.images[number].key).stem}.png")
