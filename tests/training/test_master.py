"""bf16 weights: the master, what does not train and the scalars stay float32, and gradients add up in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.base.ranks import read_rank_info
from pipeline.config import Stage1Settings, Stage2Settings
from pipeline.data.batch import Batch
from pipeline.data.slices import Division
from pipeline.model import FGCLIP2, Embeddings
from pipeline.model.attention import project_together
from pipeline.training.cached import backward_of_slice, losses_of_slice
from pipeline.training.losses import StageLosses
from tests.model.material import small_model
from tests.ranks import run_ranks
from tests.training.slices import micro_batches
from tests.training.test_cached import images_of, model_of, worst_of

ROOT = Path(__file__).resolve().parents[2]
PARTS = 8  # micro-batches: in bf16 their sum would be off by about 1 %
TOLERANCE = 1e-5  # of a tensor's largest entry
FRAMES = 2  # of clips, whose regions go through the temporal weights
SCALARS = ("logit_scale", "logit_bias", "logit_scale_finegraind", "logit_scale_hardneg")

Kind = tuple[int, int, int]  # stage, ZeRO, frames of a sample


@dataclass(frozen=True)
class Found:
    """What a rank saw under one ZeRO stage."""

    begins_exact: bool  # the master, and what does not train, are the float32 start
    is_bf16: bool  # every weight that computes
    scales_exact: bool
    worst_gradient: tuple[float, str]  # against the float64 sum of every rank's and micro-batch's bf16 gradient
    worst_norm: float
    applied: bool
    rounded_alike: bool  # after an update the weights are the master, rounded
    master_moves_finer: bool
    frozen_stay: bool
    scalars_follow: bool
    total: float


def settings_of(stage: int, zero: int) -> Stage1Settings:
    train = {
        "precision": "bf16",
        "weights": "bf16",
        "deepspeed_config": str(ROOT / f"launch/zero{zero}.json"),
        "global_batch_size": 10,
    }
    return (Stage1Settings if stage == 1 else Stage2Settings).model_validate({"train": train})


def apart(hidden: Tensor, layers: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """``project_together`` under ZeRO 3, which gathers weights by module."""
    return tuple(layer(hidden) for layer in layers)


def reference_gradients(model: FGCLIP2, batches: list[Batch], settings: Stage1Settings) -> dict[str, Tensor]:
    """The mean over ranks, in float64, of the sums of all micro-batches' gradients; without DeepSpeed."""
    found: dict[str, Tensor] = {}

    def forward(batch: Batch, number: int) -> Embeddings:
        return model(batch, regions=settings.trains_regions)

    def backward(total: Tensor, is_last: bool) -> None:
        total.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] = found.get(name, 0.0) + parameter.grad.double()
                parameter.grad = None

    computed = losses_of_slice(forward, batches, len(batches), StageLosses(settings))
    backward_of_slice(computed, forward, backward)
    for gradient in found.values():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return {name: gradient.reshape(-1) for name, gradient in found.items()}


def observe(kinds: list[Kind]) -> dict[Kind, Found]:
    """Collective: what this rank finds of each kind."""
    return {kind: _observe(*kind) for kind in kinds}


def _observe(stage: int, zero: int, frames: int) -> Found:
    from deepspeed.utils import safe_get_full_grad

    from pipeline.training.engine import build_engine
    from pipeline.training.full_state import full_parameter, full_state_dict, prepare_moments
    from pipeline.training.health import gradient_norms
    from pipeline.training.master import refresh_scalars

    info, settings = read_rank_info(), settings_of(stage, zero)
    model = model_of(stage, frames)
    with torch.no_grad():
        model.logit_scale.fill_(2.3025851)  # not a bf16 number
    start = {name: parameter.detach().clone().reshape(-1) for name, parameter in model.named_parameters()}
    reference = model_of(stage, frames).bfloat16()
    engine = build_engine(model, settings, info, torch.device("cpu"))
    prepare_moments(engine)
    reference.load_state_dict({name: value.reshape_as(reference.get_parameter(name)) for name, value in start.items()})
    reference.exact_scalars = model.exact_scalars
    begun = full_state_dict(engine, info)
    scales = {name: float(model.exact_scalars[name]) for name in SCALARS}

    batches = micro_batches(images_of(0), Division(info.world_size, PARTS), info.rank, frames)
    with patch("pipeline.model.towers.project_together", apart if zero == 3 else project_together):
        wanted = reference_gradients(reference, batches, settings)

    def forward(batch: Batch, number: int) -> Embeddings:
        return engine(batch, regions=settings.trains_regions)

    def backward(total: Tensor, is_last: bool) -> None:
        engine.set_gradient_accumulation_boundary(is_last)
        engine.backward(total)

    computed = losses_of_slice(forward, batches, PARTS, StageLosses(settings))
    backward_of_slice(computed, forward, backward)
    norms = gradient_norms(engine)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = {name: safe_get_full_grad(parameter).reshape(-1).clone() for name, parameter in trained.items()}
    norm = torch.cat([wanted[name] for name in trained]).norm()
    for group in engine.optimizer.param_groups:
        group["lr"] = 1e-3
    engine.step()
    refresh_scalars(engine, info)
    ended = full_state_dict(engine, info)
    weights = {name: full_parameter(parameter) for name, parameter in model.named_parameters()}
    applied = engine.was_step_applied()
    return Found(
        begins_exact=all(torch.equal(begun[name].reshape(-1), start[name]) for name in start),
        is_bf16={parameter.dtype for parameter in model.parameters()} == {torch.bfloat16},
        scales_exact=scales == {name: float(start[name]) for name in SCALARS},
        worst_gradient=worst_of(gradients, {name: wanted[name] for name in trained}),
        worst_norm=abs(sum(value**2 for value in norms.values()) ** 0.5 / float(norm) - 1),
        applied=applied,
        rounded_alike=all(torch.equal(ended[name].bfloat16().float(), weights[name]) for name in ended),
        master_moves_finer=any(not torch.equal(ended[name], weights[name]) for name in trained),
        frozen_stay=all(torch.equal(ended[name].reshape(-1), start[name]) for name in start if name not in trained),
        scalars_follow=all(float(model.exact_scalars[name]) == float(ended[name]) for name in SCALARS),
        total=float(computed.output.total.detach()),
    )


QUICK: list[Kind] = [(2, 3, FRAMES)]
OTHERS: list[Kind] = [(1, 2, 1), (1, 3, 1), (2, 1, 1), (2, 2, FRAMES), (2, 3, 1)]  # in stage 1 some do not train


@pytest.fixture(scope="module", params=[QUICK, pytest.param(OTHERS, marks=pytest.mark.long)], ids=["zero3", "others"])
def found(request: pytest.FixtureRequest) -> list[dict[Kind, Found]]:
    return run_ranks(2, observe, request.param, timeout_seconds=240)


def test_what_the_cast_to_bf16_rounds_is_kept_in_float32(found: list[dict[Kind, Found]]):
    for kind, seen in ((kind, seen) for rank in found for kind, seen in rank.items()):
        assert seen.is_bf16 and seen.begins_exact and seen.scales_exact, kind
        assert seen.applied and seen.rounded_alike and seen.master_moves_finer, kind
        assert seen.frozen_stay and seen.scalars_follow, kind


def test_gradients_of_micro_batches_and_ranks_add_up_in_float32(found: list[dict[Kind, Found]]):
    """Micro-batch by micro-batch they are those of the same forward without DeepSpeed, to the bit."""
    for kind, seen in ((kind, seen) for rank in found for kind, seen in rank.items()):
        assert seen.worst_gradient[0] <= TOLERANCE, (kind, seen.worst_gradient)
        assert seen.worst_norm <= TOLERANCE, kind


def test_the_scalars_of_the_losses_are_float32_with_the_gradient_of_the_weight():
    model = small_model().bfloat16()
    with torch.no_grad():
        model.logit_scale.fill_(2.3025851)
    rounded = float(model.scales().global_scale.detach())
    assert abs(rounded - 10) > 0.03
    model.exact_scalars = {"logit_scale": torch.tensor([2.3025851])}
    scales = model.scales()
    assert scales.global_scale.dtype == torch.float32 and float(scales.global_scale.detach()) == pytest.approx(
        10, abs=1e-5
    )
    scales.global_scale.backward()
    assert float(model.logit_scale.grad) == pytest.approx(10, rel=1e-2)  # of e^s by s
