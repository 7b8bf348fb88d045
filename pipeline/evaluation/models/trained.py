"""A model of this project, of whichever family, behind the interface of evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.base.constants import PATCH_BUDGETS
from pipeline.data.tokenizer import Tokenizer
from pipeline.evaluation.models.fgclip1 import FGCLIP1Evaluation
from pipeline.evaluation.models.fgclip2 import FGCLIP2Evaluation
from pipeline.model import FGCLIP1, FGCLIP2, DualEncoder


def evaluation_of(
    module: DualEncoder,
    tokenizer: Tokenizer,
    *,
    patch_budgets: Sequence[int] = PATCH_BUDGETS,
    name: str = "model",
    prefixes: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> FGCLIP2Evaluation:
    """The evaluation model of a module's family; the arguments are those of FGCLIP2Evaluation."""
    if isinstance(module, FGCLIP1):
        return FGCLIP1Evaluation(module, tokenizer, name=name, prefixes=prefixes, notes=notes)
    if not isinstance(module, FGCLIP2):
        raise TypeError(f"a {type(module).__name__} is of no family that can be evaluated")
    return FGCLIP2Evaluation(module, tokenizer, patch_budgets=patch_budgets, name=name, prefixes=prefixes, notes=notes)
