"""Which module does which task, and the one function that runs them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.features import EncodeSettings
from pipeline.evaluation.models import EvaluationModel
from pipeline.evaluation.options import Options
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.scenes import SCENE_TASKS, is_scene_folder, scene_scores

# task -> (module with run(model, options, settings, ranks) -> result and the options that it READS, one line of help)
TASKS = {
    "fgovd": ("pipeline.evaluation.fgovd", "a region against one true phrase and altered ones (FG-OVD)"),
    "retrieval": ("pipeline.evaluation.retrieval", "image to text and text to image, recall at 1, 5, 10"),
    "boxes": ("pipeline.evaluation.boxes", "which class is in a box, top-1 and top-5"),
    "classification": ("pipeline.evaluation.classification", "zero-shot classes of whole images, top-1 and top-5"),
    "detection": ("pipeline.evaluation.detection", "a detector's boxes with fused scores: AP, rare, common, frequent"),
    "segmentation": ("pipeline.evaluation.segmentation", "classes of patches without training, mIoU"),
    "dense-maps": ("pipeline.evaluation.dense_maps", "similarity of every patch to a phrase, as pictures"),
}


def evaluate(
    model: EvaluationModel,
    task: str,
    data: str | Path | list[str | Path],
    *,
    settings: EncodeSettings | None = None,
    ranks: Ranks | None = None,
    **options: Any,
) -> dict[str, Any]:
    """One task on one set.

    Args:
        model: what ``load_model`` gives. ``options``: fields of :class:`Options`.
    Returns:
        ``scores`` (fractions in 0..1), ``settings`` (all that influences them), ``accounting`` (a list: what became of
        every annotation row) and ``seconds``.
    Raises:
        EvaluationError: unknown task or option, data that cannot be read, a model that cannot do the task.
    """
    paths = [data] if isinstance(data, str | Path) else list(data)
    chosen = Options.make(data=tuple(Path(path) for path in paths), **options)
    for path in chosen.data:
        if not path.exists():
            raise EvaluationError(f"{path} does not exist; give --data an existing file or folder")
    check_read([task], options)
    began = time.monotonic()
    with model.evaluating():
        module = importlib.import_module(TASKS[task][0])
        result = module.run(model, chosen, settings or EncodeSettings(), ranks or Ranks())
    result["settings"] = {"model": model.settings()} | result["settings"]
    result["seconds"] = round(time.monotonic() - began, 2)
    return result


def check_read(tasks: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse an option that none of the tasks reads, rather than let it change nothing in silence."""
    for task in tasks:
        if task not in TASKS:
            raise EvaluationError(f"task is {task!r}; it must be one of {', '.join(TASKS)}")
    read = {"data", "max_skipped_share"}.union(*(importlib.import_module(TASKS[task][0]).READS for task in tasks))
    for name in options:
        if name not in read:
            raise EvaluationError(f"{' and '.join(tasks)} does not read {name}; it reads {', '.join(sorted(read))}")


def evaluate_tasks(
    model: EvaluationModel,
    tasks: list[str],
    data: list[Path],
    *,
    settings: EncodeSettings | None = None,
    ranks: Ranks | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Several tasks on one set. On a folder of scenes, those that scenes score share one pass over the images.

    Returns:
        result by task; the shared pass is called ``scenes``.
    """
    Options.make(data=tuple(data), **options)  # a misspelt name is named with the nearest right one
    check_read(tasks, options)
    results: dict[str, dict[str, Any]] = {}
    on_scenes = [task for task in tasks if task in SCENE_TASKS] if len(data) == 1 and is_scene_folder(data[0]) else []
    if on_scenes:
        chosen = Options.make(data=tuple(data), **options)
        scores = scene_scores(
            model,
            None,
            data[0],
            tasks=on_scenes,
            retrieval_images=chosen.retrieval_images,
            settings=settings,
            ranks=ranks,
            max_skipped_share=chosen.max_skipped_share,
        )
        details = {name: scores.pop(name) for name in ("settings", "accounting", "seconds")}
        results["scenes"] = {"scores": scores} | details
    for task in tasks:
        if task not in on_scenes:
            read = importlib.import_module(TASKS[task][0]).READS
            own = {name: value for name, value in options.items() if name in read or name == "max_skipped_share"}
            results[task] = evaluate(model, task, list(data), settings=settings, ranks=ranks, **own)
    return results
