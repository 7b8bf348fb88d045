"""Average precision by faster-coco-eval, for COCO's rules and LVIS's (federated, with rare, common and frequent)."""

from __future__ import annotations

from typing import Any

from pipeline.evaluation.results import EvaluationError


def is_lvis(ground_truth: dict[str, Any]) -> bool:
    """LVIS files say of each image which classes were checked; COCO files do not."""
    images = ground_truth["images"]
    return bool(images) and "neg_category_ids" in images[0]


def average_precision(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], image_ids: list[Any]
) -> dict[str, float]:
    """``{"ap", "ap50", "ap75"}`` and, for LVIS, ``{"ap_rare", "ap_common", "ap_frequent"}``; fractions.

    A group of classes that the truth does not hold is left out.

    Args:
        ground_truth: a COCO or LVIS file's content. detections: COCO results rows. image_ids: those evaluated.
    Raises:
        EvaluationError: the library is not installed, or no evaluated image has a box.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise EvaluationError("detection needs faster-coco-eval; pip install 'fine-grained-vlm[evaluation]'") from error
    lvis = is_lvis(ground_truth)
    names = ("ap", "ap50", "ap75") + (("ap_rare", "ap_common", "ap_frequent") if lvis else ())
    if not detections:
        return dict.fromkeys(names, 0.0)
    filled = [{"iscrowd": 0} | annotation for annotation in ground_truth["annotations"]]  # LVIS leaves iscrowd out
    truth = COCO(ground_truth | {"annotations": filled}, use_deepcopy=True)
    evaluator = COCOeval_faster(truth, truth.loadRes(detections), "bbox", lvis_style=lvis)
    evaluator.params.imgIds = list(image_ids)
    if lvis:
        evaluator.params.maxDets = [300]
    evaluator.run()
    stats = [float(value) for value in evaluator.all_stats]
    values = stats[:3] + (stats[-3:] if lvis else [])
    scores = {name: value for name, value in zip(names, values, strict=True) if value >= 0}  # -1: no such class there
    if "ap" not in scores:
        raise EvaluationError("none of the evaluated images has a box; average precision needs some")
    return scores
