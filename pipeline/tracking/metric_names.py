"""Stable names of metrics in a few groups, and which of them a tracking store shows.

A name is ``group/what``, one slash, because MLflow makes a section of its page of everything before the last slash:

====================  ================================================================================================
``loss/…``            the total, and every objective without its weight
``region/…``          stage 2's margin, memory bank, and how often the true phrase wins
``health/…``          learning rate, gradient norms, scales; norms, logits and cosines of the embeddings
``speed/…``           images a second, seconds a step, and what was seen so far: images, FLOPs, hours
``data/…``            waiting, replaced samples, members of each loss
``evaluation/…``      scores, as fractions
``system/…``          processors, memory, network and devices, by host
====================  ================================================================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

LOSSES = ("global_short", "global_long", "fgv", "fgt", "cmr", "tic", "hard_inbatch")
LEARNING_RATE = "learning_rate/"
_NAMES = {
    "loss": "loss/total",
    **{name: f"loss/{name}" for name in LOSSES},
    "cmr/margin": "region/cmr_margin",
    "gradient_norm": "health/gradient_norm",
    "skipped_steps": "health/skipped_steps",
    "step_seconds": "speed/step_seconds",
    "images_per_second": "speed/images_per_second",
    "samples_seen": "speed/samples_seen",
    "training_hours": "speed/training_hours",
    "training_flops": "speed/training_flops",
    "tokens_per_second": "speed/tokens_per_second",
    "model_flops_used": "speed/model_flops_used",
    "device_memory_gigabytes": "speed/device_memory_gigabytes",
    "data_wait_share": "data/wait_share",
    "positive_margins/pairs": "region/true_beats_altered",
    "positive_margins/fgt": "region/true_beats_all_altered",
    "positive_margins/fgv": "region/right_phrase_first",
}
# Beginnings of the names that the training loop, its objectives and evaluation give, and their groups.
_BEGINNINGS = {
    "memory_bank/": "region/memory_bank_",
    "count/": "data/count_",
    "replaced/": "data/replaced_",
    "score/": "evaluation/",
    "validation/": "evaluation/validation.",
    "teacher_": "loss/teacher_",
    "ranks/": "speed/ranks_",
    "evaluation/": "evaluation/",
    "system/": "system/",
}
GROUPS = ("loss", "region", "health", "speed", "data", "evaluation", "system")
# What a store gets unless all metrics are asked for; the rest stays in metrics.jsonl.
_USUAL = (
    "loss/",
    "region/cmr_margin",
    "region/true_beats",
    "region/right_phrase",
    "health/learning_rate",
    "health/gradient_norm",
    "health/skipped_steps",
    "health/scale_",
    "speed/",
    "data/wait_share",
    "data/replaced_",
    "evaluation/",
    "system/",
)
# What a reader of a comparison or a report looks at first; the rest is shown on request.
_FIRST = re.compile(
    r"loss/|region/(cmr_margin|true_beats|right_phrase)|(health/gradient_norm|speed/images_per_second|data/wait_share)$"
    r"|evaluation/(validation\.|[^.]+(\.[^.]+)?$)"
)
_TOO_MUCH = re.compile(r"health/gradient_norm_|evaluation/.*_r(5|10)$|evaluation/.*\bseen\.")


def grouped_name(name: str) -> str:
    """The full name of a metric; one that is grouped already stays as it is."""
    if name in _NAMES:
        return _NAMES[name]
    for beginning, group in _BEGINNINGS.items():
        if name.startswith(beginning):
            return group + name.removeprefix(beginning).replace("/", "." if group.startswith("evaluation/") else "_")
    group, slash, rest = name.partition("/")
    if slash and group in GROUPS:
        return f"{group}/{rest.replace('/', '_')}"
    return f"health/{name.replace('/', '_')}"


def grouped_metrics(values: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a step under their full names; learning rates that agree become one."""
    rates = {name: value for name, value in values.items() if name.startswith(LEARNING_RATE)}
    found = {grouped_name(name): value for name, value in values.items() if name not in rates}
    if rates:
        found["health/learning_rate"] = max(rates.values())
        if not all(math.isclose(value, found["health/learning_rate"]) for value in rates.values()):
            found |= {grouped_name(name): value for name, value in rates.items()}
    return found


def is_usual(name: str) -> bool:
    """Whether a tracking store gets this metric by default."""
    return name.startswith(_USUAL) and not _TOO_MUCH.match(name)


def unit_of(name: str) -> str:
    """What a metric counts, for axes and tables; "" for numbers without a unit."""
    what = name.partition("/")[2]
    units = {
        "step_seconds": "s",
        "images_per_second": "images/s",
        "samples_seen": "images",
        "training_hours": "h",
        "training_flops": "FLOPs",
        "wait_share": "share of the step",
    }
    if what in units:
        return units[what]
    return "fraction" if name.startswith("evaluation/") and not name.startswith("evaluation/validation.") else ""


def is_first(name: str) -> bool:
    """Whether a metric is among those that a reader looks at first; the others are diagnostics."""
    return _FIRST.match(name) is not None and not _TOO_MUCH.match(name)


def in_reading_order(names: Iterable[str]) -> list[str]:
    """What is looked at first before diagnostics; in both by group, and the total loss before its parts."""
    order = {group: number for number, group in enumerate(GROUPS)}
    parts = ("total", *LOSSES)

    def place(name: str) -> tuple[bool, int, int, str]:
        group, _, what = name.partition("/")
        part = parts.index(what) if what in parts else len(parts)
        return not is_first(name), order.get(group, len(order)), part, name

    return sorted(names, key=place)
