"""The objectives once more, as the equations stand: whole batch, one process, loops, autograd. For tests only."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import GlobalLossSettings, RegionLossSettings
from tests.objectives.toy import ToyImage, ToyModel, ToyRegion


@dataclass
class ReferenceState:
    """τ, and past (region, text, phrase) triples."""

    margin: float = 0.0
    bank: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)


def sigmoid_loss(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    if len(x) == 0:
        return x.sum() * 0
    signs = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return -F.logsigmoid(signs * (scale * x @ y.T + bias)).sum() / len(x)


def softmax_loss(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """``bias`` takes no part; it is here for its gradient, which must be 0."""
    if len(x) == 0:
        return x.sum() * 0 + bias * 0
    logits, target = scale * x @ y.T, torch.arange(len(x))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2 + bias * 0


def cross_entropy(logits: Tensor, target: int) -> Tensor:
    return -F.log_softmax(logits, dim=0)[target]


class Reference:
    """All losses of ``ranks``, the images of each rank (several only for the scope ``local_rank``)."""

    def __init__(self, model: ToyModel, settings: RegionLossSettings, global_loss: GlobalLossSettings) -> None:
        self.model, self.settings, self.global_loss, self.state = model, settings, global_loss, ReferenceState()

    def step(self, ranks: list[list[ToyImage]], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and parts of optimizer step ``number`` (from 1); moves τ and the bank."""
        model, scales, settings = self.model, self.model.scales(), self.settings
        images = [image for rank in ranks for image in rank]
        parts = {}
        for name in ("short", "long"):
            present = [image for image in images if getattr(image, name) is not None]
            features = torch.stack([image.feature for image in present] or [torch.zeros(7)])[: len(present)]
            captions = torch.stack([getattr(image, name) for image in present] or [torch.zeros(7)])[: len(present)]
            x, y = model.embed("image", features.to(model.image)), model.embed(name, captions.to(model.image))
            global_loss = softmax_loss if self.global_loss.kind == "softmax" else sigmoid_loss
            parts[f"global_{name}"] = global_loss(x, y, scales.global_scale, scales.global_bias)
        regions = [[region for image in rank for region in image.regions if region.valid] for rank in ranks]
        everyone = [region for rank in regions for region in rank]
        pools = {"all_ranks": [everyone], "local_rank": regions}
        zero = sum(p.sum() for p in model.parameters()) * 0
        parts["fgv"] = self._fgv(pools[settings.fgv_scope], len(everyone)) + zero
        parts["tic"] = self._tic(pools[settings.tic_scope]) + zero
        hard_pools = [[region for region in pool if region.negatives] for pool in pools[settings.hard_inbatch_scope]]
        parts["hard_inbatch"] = self._hard_inbatch(hard_pools) + zero
        hard = [region for region in everyone if region.negatives]
        parts["fgt"] = self._fgt(hard) + zero
        parts["cmr"] = self._cmr(hard) + zero
        if settings.memory_bank_size and number >= settings.memory_bank_start_step:
            phrases = [region.phrase for region in everyone]
            past = (self._regions(everyone).detach(), self._texts(phrases).detach(), phrases) if everyone else ()
            self.state.bank = (self.state.bank + list(zip(*past, strict=True)))[-settings.memory_bank_size :]
        weights = {name: getattr(settings, f"{name}_weight") for name in ("fgv", "fgt", "tic", "cmr", "hard_inbatch")}
        weights |= {"global_short": self.global_loss.short_weight, "global_long": self.global_loss.long_weight}
        parts = {name: value for name, value in parts.items() if weights[name]}
        return sum(weights[name] * value for name, value in parts.items()), parts

    def _regions(self, regions: list[ToyRegion]) -> Tensor:
        features = torch.stack([region.feature for region in regions]).to(self.model.image)
        return self.model.embed("region", features)

    def _texts(self, phrases: list[int]) -> Tensor:
        return self.model.embed("phrase", self.model.table[phrases])

    def _fgv(self, pools: list[list[ToyRegion]], count: int) -> Tensor | float:
        scale, total = self.model.scales().finegrained, 0.0
        for pool in filter(len, pools):
            r, t = self._regions(pool), self._texts([region.phrase for region in pool])
            for i, region in enumerate(pool):
                keep = [j for j, other in enumerate(pool) if j == i or self._differ(region.phrase, other.phrase)]
                past = [past for past in self.state.bank if self._differ(region.phrase, past[2])]
                texts = torch.stack([t[j] for j in keep] + [text for _, text, _ in past])
                regions = torch.stack([r[j] for j in keep] + [old for old, _, _ in past])
                total = total + cross_entropy(scale * texts @ r[i], keep.index(i))
                total = total + cross_entropy(scale * regions @ t[i], keep.index(i))
        return total / (2 * count) if count else 0.0

    def _differ(self, phrase: int, other: int) -> bool:
        return self.settings.fgv_same_phrase_is_negative or phrase != other

    def _tic(self, pools: list[list[ToyRegion]]) -> Tensor | float:
        values = []
        for pool in filter(len, pools):
            cosines = self._texts([region.phrase for region in pool])
            cosines = cosines @ cosines.T
            for i in range(len(pool)):
                others = [j for j in range(len(pool)) if j != i]
                near = [cosines[i, j] for j in others if cosines[i, j] <= self.settings.tic_exclude_above]
                if self.settings.tic_exclusion == "zero_similarity":
                    near += [torch.zeros_like(cosines[0, 0])] * (len(pool) - len(near))
                near = sorted(near, key=Tensor.item, reverse=True)[: self.settings.tic_num_texts]
                if near:
                    values.append(torch.stack(near).exp().sum().log())
        return sum(values) / len(values) if values else 0.0

    def _fgt(self, hard: list[ToyRegion]) -> Tensor | float:
        scale, total = self.model.scales().hardneg, 0.0
        for region in hard:
            texts = self._texts([region.short_phrase, *region.negatives])
            total = total + cross_entropy(scale * texts @ self._regions([region])[0], 0)
        return total / len(hard) if hard else 0.0

    def _cmr(self, hard: list[ToyRegion]) -> Tensor | float:
        scaled = self.settings.cmr_similarity == "scaled_logit"
        factor = self.model.scales().hardneg if scaled else 1.0
        if not hard:
            return 0.0
        leads = []
        for region in hard:
            similarity = factor * self._texts([region.short_phrase, *region.negatives]) @ self._regions([region])[0]
            leads += [similarity[0] - other for other in similarity[1:]]
        leads = torch.stack(leads)
        value = F.relu(self.state.margin - leads).mean()
        self.state.margin = leads.mean().item()
        if self.settings.cmr_margin_max is not None:
            self.state.margin = min(max(self.state.margin, 0.0), self.settings.cmr_margin_max)
        return value

    def _hard_inbatch(self, pools: list[list[ToyRegion]]) -> Tensor | float:
        scale, total, count = self.model.scales().hardneg, 0.0, sum(len(pool) for pool in pools)
        for pool in filter(len, pools):
            phrases = [region.short_phrase for region in pool] + [p for region in pool for p in region.negatives]
            r, t = self._regions(pool), self._texts(phrases)
            for i, region in enumerate(pool):
                own = region.short_phrase
                keep = [j for j, phrase in enumerate(phrases) if j == i or self._differ(own, phrase)]
                rows = [j for j in keep if j < len(pool)]
                total = total + cross_entropy(scale * t[keep] @ r[i], keep.index(i))
                total = total + cross_entropy(scale * r[rows] @ t[i], rows.index(i))
        return total / (2 * count) if count else 0.0
