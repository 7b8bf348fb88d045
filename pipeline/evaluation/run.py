"""The functions that run tasks: what the command line, suites, the training loop and other programs call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.evaluation.features import EncodeSettings
from pipeline.evaluation.formats.scenes import is_scene_folder
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.base import TaskOptions, make_options
from pipeline.evaluation.options.scenes import SCENE_PARTS
from pipeline.evaluation.protocols.rows import departures, rows_of
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.registry import Task, find_task
from pipeline.evaluation.results import EvaluationError


def evaluate(
    model: EvaluationModel,
    task: str,
    data: str | Path | Sequence[str | Path],
    *,
    settings: EncodeSettings | None = None,
    ranks: Ranks | None = None,
    **options: Any,
) -> dict[str, Any]:
    """One task on one set.

    Args:
        model: what ``load_model`` gives. ``options``: fields of the task's record in ``options/``.
    Returns:
        ``scores`` (fractions in 0..1), ``settings`` (all that influences them), ``accounting`` (a list: what became of
        every annotation row) and ``seconds``.
    Raises:
        EvaluationError: unknown task or option, data that cannot be read, a model that cannot do the task.
    """
    paths = [data] if isinstance(data, str | Path) else list(data)
    chosen = find_task(task)
    values = {"data": tuple(Path(path) for path in paths), **options}
    return evaluate_options(model, chosen, make_options(chosen.options(), task, values), settings=settings, ranks=ranks)


def evaluate_options(
    model: EvaluationModel,
    task: Task,
    options: TaskOptions,
    *,
    settings: EncodeSettings | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """:func:`evaluate` with the task's options as a record."""
    for path in options.data:
        if not path.exists():
            raise EvaluationError(f"{path} does not exist; give --data an existing file or folder")
    began = time.monotonic()
    inapplicable = []
    if options.patch_budgets and not model.has_patch_budgets and options.protocol:
        inapplicable = ["patch_budgets"]  # the published numbers of such models are at their own size too
    elif options.patch_budgets:
        model = model.with_patch_budgets(options.patch_budgets)
    with model.evaluating():
        result = task.code().run(model, options, settings or EncodeSettings(), ranks or Ranks())
    protocol = describe_protocol(options, inapplicable)
    result["settings"] = {"protocol": protocol, "model": model.settings()} | result["settings"]
    result["seconds"] = round(time.monotonic() - began, 2)
    return result


def describe_protocol(options: TaskOptions, inapplicable: Sequence[str] = ()) -> dict[str, Any]:
    """Whose protocol a result was measured by; with another choice of anything it is ``own settings``."""
    if options.protocol is None:
        return {"name": "own settings"}
    protocol, _, name = options.protocol.partition(":")
    row = next(row for row in rows_of(protocol) if row.name == name)
    defaults = type(options)(data=options.data).model_dump(mode="json")
    as_asked = type(options)(**{**row.options, "data": options.data}).model_dump(mode="json")
    changed = departures(replace(row, options=as_asked), options.model_dump(mode="json"), defaults)
    known: dict[str, Any] = {"from" if changed else "name": row.reference, "title": row.title, "source": row.source}
    if changed:
        known = {"name": "own settings", "changed": changed} | known
    if row.differs:
        known["differs"] = row.differs
    return known | ({"not_applicable": list(inapplicable)} if inapplicable else {})


def evaluate_several(
    model: EvaluationModel, tasks: Sequence[str], data: str | Path, ranks: Ranks | None = None
) -> dict[str, dict[str, Any]]:
    """Several tasks on one set with their defaults. On a folder of scenes, those of ``scenes`` share one pass.

    ``ranks`` share the work, and every one gets the whole result.

    Returns:
        result by task; the shared pass is called ``scenes``.
    """
    for task in tasks:
        find_task(task)
    results: dict[str, dict[str, Any]] = {}
    together = [task for task in tasks if task in SCENE_PARTS] if is_scene_folder(data) else []
    if together:
        results["scenes"] = evaluate(model, "scenes", data, ranks=ranks, parts=tuple(together))
    for task in tasks:
        if task not in together:
            results[task] = evaluate(model, task, data, ranks=ranks)
    return results
