"""A suite over models: every row that can be measured, kept on disk as it is done, and one table."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from pipeline.base.border import BorderError, one_line, read_object, validated
from pipeline.base.files import write_json, write_text
from pipeline.evaluation.features import EncodeSettings
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.models.load import load_model
from pipeline.evaluation.options.base import TaskOptions
from pipeline.evaluation.options.work import WorkOptions
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.registry import find_task
from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.run import evaluate_options
from pipeline.evaluation.suites.report import Line, as_json, latex, lines_of, markdown
from pipeline.evaluation.suites.specification import Suite, SuiteRow

Results = dict[tuple[str, str], dict[str, Any]]


def run_suite(suite: Suite, models: Sequence[str], out: Path, work: WorkOptions) -> tuple[list[Line], int]:
    """Measure what is not yet there, write ``table.md``, ``table.tex`` and ``table.json`` into ``out``.

    A row whose files are missing is named in the table and skipped; one that fails is named and the others go on.

    Returns:
        the table's lines (of all ranks the same), and how many rows failed.
    """
    ranks = Ranks.from_environment()
    settings = EncodeSettings(batch_size=work.batch_size, num_threads=work.threads, cache_folder=work.cache)
    results: Results = {}
    for path in models:
        model = load_model(path, device=ranks.device(work.device), dtype=work.dtype)
        for row in suite.rows:
            if not row.missing:
                results[row.name, path] = _measure(model, path, row, out, settings, ranks)
    lines = lines_of(suite, models, results)
    if ranks.is_main:
        write_text(out / "table.md", markdown(suite, models, lines))
        write_text(out / "table.tex", latex(suite, models, lines))
        write_json(out / "table.json", as_json(suite, models, lines))
    ranks.close()
    return lines, sum("problem" in result for result in results.values())


def _measure(
    model: EvaluationModel, path: str, row: SuiteRow, out: Path, settings: EncodeSettings, ranks: Ranks
) -> dict[str, Any]:
    """The row's result: the kept one, or a new one that is kept. A failure is not kept."""
    try:
        options = row.options()
        kept = out / "results" / f"{_key(model, row.task, options)}.json"
        # one answer for all: ranks could see a shared folder differently
        there = ranks.gather(_kept(kept) if ranks.is_main else None)[0]
        if there is not None:
            return there
        if ranks.is_main:
            print(f"suite: {row.name}: {path}", file=sys.stderr, flush=True)
        result = evaluate_options(model, find_task(row.task), options, settings=settings, ranks=ranks)
    except (EvaluationError, OSError) as error:
        problem = one_line(error, 1000)
        if ranks.is_main:
            print(f"suite: {row.name}: {path}: error: {problem}", file=sys.stderr, flush=True)
        return {"problem": problem}
    result = {"row": row.name, "model": path, **result}
    if ranks.is_main:
        write_json(kept, result)
    return result


class _Scored(TypedDict):
    scores: dict[str, Any]


_RESULT: TypeAdapter[_Scored] = TypeAdapter(_Scored)  # the table asks for the scores alone


def _kept(path: Path) -> dict[str, Any] | None:
    """A result of an earlier run; None where there is none, or a damaged one, which is measured again."""
    try:
        result = read_object(path)
        validated(_RESULT, result, str(path))
        return result
    except (OSError, BorderError):
        return None


def _key(model: EvaluationModel, task: str, options: TaskOptions) -> str:
    """Names what a result depends on: weights, task, options, and the files as they are now."""
    values = options.model_dump(mode="json")
    files = []
    for value in values.values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and Path(one).is_file():
                status = Path(one).stat()
                files.append([one, status.st_size, status.st_mtime_ns])
    text = json.dumps([model.fingerprint(), task, values, files], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
