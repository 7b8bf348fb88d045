"""The tasks by name: where each one's options and its code are. Both are imported when they are needed."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from types import ModuleType

from pipeline.evaluation.options.base import TaskOptions
from pipeline.evaluation.results import EvaluationError


@dataclass(frozen=True)
class Task:
    """``module`` is the name in both ``options/`` and ``tasks/``; ``options_name`` the class in the former."""

    module: str
    options_name: str
    summary: str
    example: str

    def options(self) -> type[TaskOptions]:
        """The record of its options; imports no torch."""
        return getattr(importlib.import_module(f"pipeline.evaluation.options.{self.module}"), self.options_name)

    def code(self) -> ModuleType:
        """The module with ``run(model, options, settings, ranks)``."""
        return importlib.import_module(f"pipeline.evaluation.tasks.{self.module}")


TASKS = {
    "retrieval": Task(
        "retrieval",
        "RetrievalOptions",
        "image to text and text to image, recall at 1, 5, 10",
        "runs/my/stage2 --data captions_val2017.json --images val2017 --json scores.json",
    ),
    "fgovd": Task(
        "fgovd",
        "FGOVDOptions",
        "a region against one true phrase and altered ones (FG-OVD)",
        "DIR --data fgovd/hard.jsonl --data fgovd/easy.jsonl --images coco",
    ),
    "boxes": Task(
        "boxes",
        "BoxOptions",
        "which class is in a box, top-1 and top-5",
        "DIR --data instances_val2017.json --images val2017 --cache features",
    ),
    "classification": Task(
        "classification",
        "ClassificationOptions",
        "zero-shot classes of whole images, top-1 and top-5",
        "DIR --data imagenet/val --class-names imagenet/names.txt",
    ),
    "detection": Task(
        "detection",
        "DetectionOptions",
        "a detector's boxes with fused scores: AP, rare, common, frequent",
        "DIR --data lvis_v1_val.json --images coco --detector grounding-dino-tiny",
    ),
    "segmentation": Task(
        "segmentation",
        "SegmentationOptions",
        "classes of patches without training, mIoU",
        "DIR --data VOC2012 --format voc --calibrate",
    ),
    "clip-retrieval": Task(
        "clip_retrieval",
        "ClipRetrievalOptions",
        "clip to text and text to clip, recall at 1, 5, 10",
        "runs/my/stage2 --data shards/clips/test --language en",
    ),
    "clip-regions": Task(
        "clip_regions",
        "ClipRegionOptions",
        "a region of a clip against one true phrase and altered ones, in looks or in motion",
        "runs/my/stage2 --data data/clips/test --json scores.json",
    ),
    "anomaly": Task(
        "anomaly",
        "AnomalyOptions",
        "abnormal frames of videos from prompts: AUC and AP over frames",
        "DIR --data Temporal_Anomaly_Annotation_for_Testing_Videos.txt --videos Videos --protocol anomaly",
    ),
    "dense-maps": Task(
        "dense_maps",
        "DenseMapOptions",
        "similarity of every patch to a phrase, as pictures",
        'DIR --data photo.jpg --phrase "a red circle" --phrase 红色的圆 --out maps',
    ),
    "text-similarity": Task(
        "text_similarity",
        "TextSimilarityOptions",
        "near-alike texts against each other through each text path",
        "DIR --data texts.txt --out matrices",
    ),
    "scenes": Task(
        "scenes",
        "SceneOptions",
        "fgovd, retrieval and boxes of the demo's scenes in one pass over the images",
        "runs/demo/stage2 --data runs/demo/data/test --json scores.json",
    ),
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        EvaluationError: there is none; the nearest name is the remedy.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it must be one of {', '.join(TASKS)}"
        raise EvaluationError(f"task is {name!r}; {hint}")
    return TASKS[name]
