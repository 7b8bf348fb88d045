"""The losses of a stage, weighted and added up as the settings say, with the state that they carry from step to step.

A value is per rank and its mean over ranks is the global one (see pipeline/objectives/collectives.py). The batch at
hand is a rank's share of the global batch, whatever the number of micro-batches (cached.py), or with
``train.accumulation=separate`` its share of one micro-batch. τ and the memory bank move once an optimizer step.

Shape letters: B images, N valid regions of this rank, H regions with negatives, K negatives, U texts, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config import GlobalLossSettings, RegionLossSettings, Stage1Settings, Stage2Settings
from pipeline.data.batch import Batch
from pipeline.data.facts import KINDS, LossRows, loss_rows
from pipeline.objectives.cmr import cmr_loss
from pipeline.objectives.collectives import Rows, gather_numbers, in_float32
from pipeline.objectives.fgt import fgt_loss
from pipeline.objectives.fgv import fgv_loss
from pipeline.objectives.global_sigmoid import global_sigmoid_loss
from pipeline.objectives.global_softmax import global_softmax_loss
from pipeline.objectives.hard_inbatch import hard_inbatch_loss
from pipeline.objectives.margin import AdaptiveMargin
from pipeline.objectives.memory_bank import MemoryBank
from pipeline.objectives.teacher import teacher_loss
from pipeline.objectives.tic import tic_loss
from pipeline.training.health import logit_health
from pipeline.training.regions import RankRegions, select

if TYPE_CHECKING:
    from pipeline.model import Embeddings, Scales

Group: TypeAlias = dist.ProcessGroup | None


@dataclass
class LossOutput:
    """What one batch gives. ``total`` is to be differentiated; the rest is for the record."""

    total: Tensor  # []
    parts: dict[str, Tensor]  # unweighted, detached, of this rank; an objective of weight 0 is not computed
    counters: dict[str, Tensor]  # "fgv/regions" …, of this rank: the sum over ranks is the global count
    health: Mapping[str, float] = field(default_factory=dict)  # logits of this rank's rows, where asked for


@dataclass
class ObjectiveState:
    """What the objectives carry from one optimizer step to the next; it belongs in every checkpoint."""

    margin: AdaptiveMargin
    bank: MemoryBank
    bank_used: int = 0  # rows of the bank that were candidates in the newest L_FGV

    def advance(self, optimizer_step: int) -> None:
        """Call once after every optimizer step, on every rank; ``optimizer_step`` counts those done, this one too."""
        self.margin.advance()
        self.bank.advance(optimizer_step)

    def to(self, device: torch.device) -> None:
        """Move τ to where the losses are computed: a copy in the middle of a step would make the host wait."""
        self.margin.to(device)

    def metrics(self) -> dict[str, float]:
        """τ, and the bank's size and filling, to be logged."""
        return {
            "cmr/margin": float(self.margin.value),
            "memory_bank/size": float(self.bank.size),
            "memory_bank/filled": float(self.bank.filled),
            "memory_bank/used": float(self.bank_used),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"margin": self.margin.state_dict(), "memory_bank": self.bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        self.margin.load_state_dict(state["margin"])
        self.bank.load_state_dict(state["memory_bank"], device)


class StageLosses:
    """Stage 1: L_global on short and long captions. Stage 2: the four region losses (and X, where weighted) too.

    Must be called on every rank of ``group`` with that rank's share of the batch: every rank joins every collective,
    with however few rows. A term without members is 0 with gradient 0, and its counters are 0.
    """

    def __init__(self, settings: Stage1Settings, group: Group = None, host_group: Group = None) -> None:
        """``host_group``: the same ranks over gloo, where they exchange their numbers of rows; None: ``group``."""
        self.global_loss: GlobalLossSettings = settings.global_loss
        self.is_softmax = settings.global_loss_kind == "softmax"
        self.teacher_weight = settings.teacher.weight
        self.region_loss = settings.region_loss if isinstance(settings, Stage2Settings) else None
        self.group, self.host_group = group, group if host_group is None else host_group
        region = self.region_loss or RegionLossSettings()
        self.state = ObjectiveState(
            AdaptiveMargin(region.cmr_margin_max), MemoryBank(region.memory_bank_size, region.memory_bank_start_step)
        )

    def __call__(
        self,
        embeddings: Embeddings,
        batch: Batch,
        *,
        counts: Sequence[Sequence[int]] | None = None,
        with_health: bool = False,
        taught: Embeddings | None = None,
    ) -> LossOutput:
        """The losses of one batch.

        Args:
            counts: ``batch.facts.counts`` of every rank; None: they are gathered here.
            with_health: also range and spread of the logits (costs a little, and reads them back).
            taught: the teacher's embeddings of the same rows, on every rank or on none; None: without L_teacher.
        """
        with _without_tf32():
            return self._losses(embeddings, batch, counts, with_health, taught)

    def _losses(
        self,
        embeddings: Embeddings,
        batch: Batch,
        counts: Sequence[Sequence[int]] | None,
        with_health: bool,
        taught: Embeddings | None,
    ) -> LossOutput:
        taking_part = self._taking_part(embeddings, batch, counts)
        terms = self._global_terms(embeddings, taking_part)
        regions = None
        if self.region_loss is not None:
            regions = RankRegions.of(embeddings, batch, taking_part.numbers)
            terms += self._region_terms(regions, embeddings, self.region_loss, taking_part)
        if taught is not None:
            terms += self._teacher_terms(embeddings, taught, batch, regions, taking_part)
        total = embeddings.image.float().sum() * 0 + sum(weight * loss for _, weight, loss, _ in terms)
        if self.region_loss is not None:
            total = total + embeddings.region_anchor  # keeps the heads in the graph where this rank has no region
        counters = {f"{name}/{key}": torch.as_tensor(v) for name, _, _, some in terms for key, v in some.items()}
        if regions is not None:
            counters["regions/valid"] = torch.as_tensor(len(regions.region))
            counters["regions/invalid"] = torch.as_tensor(regions.num_invalid)
        health = logit_health(embeddings, batch, regions) if with_health else {}
        return LossOutput(total, {name: loss.detach() for name, _, loss, _ in terms}, counters, health)

    def _taking_part(self, embeddings: Embeddings, batch: Batch, counts: Sequence[Sequence[int]] | None) -> _TakingPart:
        if batch.facts is None:
            numbers, own = loss_rows(batch, embeddings.region_valid)
        else:
            numbers, own = batch.facts.rows, batch.facts.counts
        everyone = gather_numbers(own, self.host_group) if counts is None else counts
        by_kind = zip(KINDS, zip(*everyone, strict=True), strict=True)
        return _TakingPart(numbers, {kind: Rows.known(of_ranks, self.group) for kind, of_ranks in by_kind})

    def _global_terms(self, embeddings: Embeddings, taking_part: _TakingPart) -> list[_Term]:
        settings, numbers = self.global_loss, taking_part.numbers
        terms: list[_Term] = []
        for name, weight, text, present, rows in (
            ("global_short", settings.short_weight, embeddings.short, numbers.short, taking_part.rows["short"]),
            ("global_long", settings.long_weight, embeddings.long, numbers.long, taking_part.rows["long"]),
        ):
            if weight:
                pairs = (select(embeddings.image, present), select(text, present))
                loss, counts = self._global_loss(*pairs, embeddings.scales, rows)
                terms.append((name, weight, loss, counts))
        return terms

    def _global_loss(self, image: Tensor, text: Tensor, scales: Scales, rows: Rows) -> tuple[Tensor, dict[str, int]]:
        settings = self.global_loss
        where: dict[str, Any] = {"chunk_size": settings.chunk_size, "rows": rows, "group": self.group}
        if self.is_softmax:
            return global_softmax_loss(image, text, scales.global_scale, **where)
        return global_sigmoid_loss(
            image, text, scales.global_scale, scales.global_bias, exchange=settings.exchange, **where
        )

    def _region_terms(
        self, regions: RankRegions, embeddings: Embeddings, settings: RegionLossSettings, taking_part: _TakingPart
    ) -> list[_Term]:
        scales, group, rows = embeddings.scales, self.group, taking_part.rows
        terms: list[_Term] = []
        if settings.fgv_weight:
            fgv = self._fgv(regions, scales.finegrained, settings, rows["region"])
            terms.append(("fgv", settings.fgv_weight, *fgv))
        if settings.fgt_weight:
            fgt = fgt_loss(regions.hard_cosine, regions.hard_mask, scales.hardneg, rows=rows["hard"], group=group)
            terms.append(("fgt", settings.fgt_weight, *fgt))
        if settings.tic_weight:
            tic = tic_loss(
                regions.text,
                num_texts=settings.tic_num_texts,
                exclude_above=settings.tic_exclude_above,
                exclusion=settings.tic_exclusion,
                scope=settings.tic_scope,
                rows=rows["region"],
                group=group,
            )
            terms.append(("tic", settings.tic_weight, *tic))
        if settings.cmr_weight:
            similarity = regions.hard_cosine
            if settings.cmr_similarity == "scaled_logit":
                similarity = similarity * scales.hardneg
            cmr = cmr_loss(similarity, regions.hard_mask, self.state.margin.value, group=group)
            self.state.margin.observe(cmr.margin_sum_and_count)
            terms.append(("cmr", settings.cmr_weight, cmr.loss, cmr.counts))
        if settings.hard_inbatch_weight:
            hard_inbatch = hard_inbatch_loss(
                regions.hard_region,
                regions.hard_text,
                regions.hard_mask,
                regions.hard_hash,
                scales.hardneg,
                scope=settings.hard_inbatch_scope,
                same_phrase_is_negative=settings.fgv_same_phrase_is_negative,
                altered=taking_part.numbers.altered,
                rows=(rows["hard"], rows["altered"]),
                group=group,
            )
            terms.append(("hard_inbatch", settings.hard_inbatch_weight, *hard_inbatch))
        return terms

    def _teacher_terms(
        self,
        embeddings: Embeddings,
        taught: Embeddings,
        batch: Batch,
        regions: RankRegions | None,
        taking_part: _TakingPart,
    ) -> list[_Term]:
        numbers, rows = taking_part.numbers, taking_part.rows
        pairs = {
            name: tuple(select(tensor, present) for tensor in (embeddings.image, own, taught.image, theirs))
            for name, own, theirs, present in (
                ("short", embeddings.short, taught.short, numbers.short),
                ("long", embeddings.long, taught.long, numbers.long),
            )
        }
        if regions is not None:
            theirs = RankRegions.of(taught, batch, numbers)
            pairs["region"] = (regions.region, regions.text, theirs.region, theirs.text)
        return [
            (f"teacher_{name}", self.teacher_weight, *teacher_loss(*tensors, rows=rows[name], group=self.group))
            for name, tensors in pairs.items()
        ]

    def _fgv(
        self, regions: RankRegions, scale: Tensor, settings: RegionLossSettings, rows: Rows
    ) -> tuple[Tensor, dict[str, Any]]:
        bank = self.state.bank
        self.state.bank_used = bank.filled
        loss, counts = fgv_loss(
            regions.region,
            regions.text,
            regions.text_hash,
            scale,
            scope=settings.fgv_scope,
            same_phrase_is_negative=settings.fgv_same_phrase_is_negative,
            bank=bank.rows,
            rows=rows,
            group=self.group,
        )
        if bank.size:
            region, text = in_float32(regions.region, regions.text)
            bank.observe(rows.gather(region), rows.gather(text), rows.gather(regions.text_hash))
        return loss, counts


@contextmanager
def _without_tf32() -> Iterator[None]:
    """All of a loss's products, also those of its gradients, are computed in its forward (see collectives)."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@dataclass(frozen=True)
class _TakingPart:
    """Which of this rank's rows take part, and how many of each kind every rank has."""

    numbers: LossRows
    rows: dict[str, Rows]


_Term = tuple[str, float, Tensor, dict[str, Any]]  # name, weight, this rank's value, this rank's counts
