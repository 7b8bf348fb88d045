"""Score a model.

examples:
  python -m pipeline.evaluation scenes runs/demo/stage2 --data runs/demo/data/test --json scores.json
  python -m pipeline.evaluation retrieval DIR --data captions_val2017.json --images val2017
  python -m pipeline.evaluation boxes --help
  torchrun --nproc_per_node 8 -m pipeline.evaluation retrieval DIR --data captions.json --images val2017 --device cuda

MODEL is a run's folder, a Hugging Face folder of FG-CLIP 2 (ours or public), or a siglip2, siglip or clip folder of
transformers. The table goes to the terminal; --json writes scores, settings and the account of every annotation row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.base.commands import run_command
from pipeline.base.files import write_json
from pipeline.evaluation.arguments import add_arguments, flags_of, given
from pipeline.evaluation.options.base import TaskOptions, make_options, unread
from pipeline.evaluation.options.work import WorkOptions
from pipeline.evaluation.protocols.command import main as protocols_main
from pipeline.evaluation.registry import TASKS, Task, find_task
from pipeline.evaluation.results import EvaluationError, flat_scores
from pipeline.evaluation.suites.command import main as suite_main

PROGRAM = "python -m pipeline.evaluation"
COMMANDS = {"suite": suite_main, "protocols": protocols_main}  # that are no tasks


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, 2 for bad input, or 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(
        lambda: _answer(words),
        (ValueError, OSError),
        interrupted="interrupted; with --cache the same command goes on where it was",
    )


def _answer(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0 if words else 2
    if words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    task = _task_of(words)
    options, work, model = _parsed(words[0], task, words[1:])
    return score(words[0], task, model, options, work)


def overview() -> str:
    """What ``--help`` without a task prints."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    tasks = "\n".join(f"  {name:<15} {task.summary}" for name, task in TASKS.items())
    return (
        f"usage: {PROGRAM} TASK MODEL --data SET [options]\n\n{first}\n\ntasks (each has its own --help):\n{tasks}\n"
        f"  {'suite':<15} many sets and models, one table\n"
        f"  {'protocols':<15} the published protocols, each set's command and what it needs\n"
        f"\n{rest.rstrip()}"
    )


def build_parser(name: str, task: Task) -> argparse.ArgumentParser:
    """The parser of one task: its own options, and those of all tasks."""
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {name}",
        description=f"{task.summary[:1].upper()}{task.summary[1:]}.",
        epilog=f"example:\n  {PROGRAM} {name} {task.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a run's folder, or a model folder of transformers")
    shared = parser.add_argument_group("all tasks")
    add_arguments(shared, TaskOptions)
    own = parser.add_argument_group(name)
    add_arguments(own, task.options(), leave_out=frozenset(TaskOptions.model_fields))
    add_arguments(parser.add_argument_group("work"), WorkOptions)
    return parser


def _task_of(words: list[str]) -> Task:
    """The first word's task. The form of before, MODEL --task TASK, is answered with that of now."""
    asked = [after for word, after in zip(words, words[1:], strict=False) if word == "--task"]
    asked += [word.partition("=")[2] for word in words if word.startswith("--task=")]
    if asked:
        model = words[1] if words[0] in TASKS else words[0]
        together = sorted({*asked, *({words[0]} & set(TASKS))})
        forms = [f"{PROGRAM} {task} {model}" for task in together]
        hint = f"; on scenes, all in one pass: {PROGRAM} scenes {model}" if len(forms) > 1 else ""
        raise EvaluationError(f"--task is gone: the task stands first. Write {', then '.join(forms)}{hint}")
    return find_task(words[0])


def _parsed(name: str, task: Task, words: list[str]) -> tuple[TaskOptions, WorkOptions, str]:
    namespace, unknown = build_parser(name, task).parse_known_args(words)
    if unknown:
        raise EvaluationError(_unknown(name, task, unknown))
    options = make_options(task.options(), name, given(namespace, task.options()))
    return options, make_options(WorkOptions, name, given(namespace, WorkOptions)), namespace.model


def _unknown(name: str, task: Task, unknown: list[str]) -> str:
    """Why the words are not understood: no flag, an old flag, another task's, or a misspelt one."""
    flag = next((word.partition("=")[0] for word in unknown if word.startswith("--")), None)
    if flag is None:
        return f"{' '.join(unknown)!r} is too much; write {PROGRAM} {name} MODEL --data SET"
    pairs = task.options().renamed.items()
    renamed = {f"--{old}".replace("_", "-"): f"--{new}".replace("_", "-") for old, new in pairs}
    others = [other for other, one in TASKS.items() if flag in flags_of(one.options())]
    if others and flag not in renamed:
        return f"{name} does not read {flag}; {' and '.join(others)} {'does' if len(others) == 1 else 'do'}"
    return unread(name, flag, [*flags_of(task.options()), *flags_of(WorkOptions)], renamed)


def score(name: str, task: Task, model_path: str, options: TaskOptions, work: WorkOptions) -> int:
    """Load the model, run the task, print and write what came out."""
    # Not at the top: they import torch, and --help must stay quick.
    from pipeline.evaluation.features import EncodeSettings
    from pipeline.evaluation.measures import score_lines
    from pipeline.evaluation.models.load import load_model, run_folder_of
    from pipeline.evaluation.ranks import Ranks
    from pipeline.evaluation.run import evaluate_options

    settings = EncodeSettings(batch_size=work.batch_size, num_threads=work.threads, cache_folder=work.cache)
    ranks = Ranks.from_environment()
    model = load_model(model_path, device=ranks.device(work.device), dtype=work.dtype)
    result = evaluate_options(model, task, options, settings=settings, ranks=ranks)
    ranks.close()
    if not ranks.is_main:
        return 0
    print(f"{name}  ({model_path})  protocol: {result['settings']['protocol']['name']}")
    print("\n".join(score_lines(flat_scores(result["scores"]), result.get("facts", {}))))
    for account in result["accounting"]:
        print(_account_line(account))
    content: dict[str, Any] = {"checkpoint": model_path, "results": {name: result}}
    if name == "scenes":  # the demo's programs read these names at the top
        content |= result["scores"]
    if work.json_file:
        write_json(work.json_file, content)
    if run_folder_of(model_path) is not None and not work.no_tracking:
        from pipeline.tracking.scores import log_scores

        files = [work.json_file] if work.json_file else []
        facts = {f"{name}/{score}": known for score, known in result.get("facts", {}).items()}
        log_scores(model_path, {name: result["scores"]}, data=options.data, files=files, facts=facts)
    return 0


def _account_line(account: dict[str, Any]) -> str:
    parts = [f"{account['evaluated']} of {account['rows']} {account['unit']} evaluated"]
    parts += [f"{count} skipped: {reason}" for reason, count in account["skipped"].items()]
    parts += [f"{count} noted: {what}" for what, count in account["notes"].items()]
    return "  " + "; ".join(parts)
