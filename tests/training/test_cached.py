"""Micro-batches change nothing: every loss, every gradient, τ and the memory bank are those of the global batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.base.ranks import read_rank_info
from pipeline.config import Stage1Settings, Stage2Settings, TuneSettings
from pipeline.data.batch import Batch
from pipeline.data.join import join_for_losses
from pipeline.data.slices import Division
from pipeline.model import FGCLIP2, Embeddings
from pipeline.training.cached import backward_of_slice, losses_of_slice
from pipeline.training.losses import StageLosses
from pipeline.tuning.parts import choose_trained
from tests.model.material import small_model
from tests.objectives.toy import ToyImage, make_images
from tests.ranks import run_ranks, subgroups
from tests.training.slices import micro_batches

ROOT = Path(__file__).resolve().parents[2]
PARTS = (1, 2, 3, 8)  # with 8 of them some are empty
PARTS_OF_EXCHANGE = {"ring": PARTS, "gather": (1, 8)}
LAYERS = {"text_num_hidden_layers": 2, "vision_num_hidden_layers": 1}  # further layers are like these
TOLERANCE = 1e-5
REGION_LOSS = {"hard_inbatch_weight": 0.3, "memory_bank_size": 20, "memory_bank_start_step": 1}
FRAMES = 2  # of clips
STEPS = 2  # τ and the bank show in the second

Found = dict[str, Tensor]
Kind = tuple[int, int, str, bool]  # stage, ZeRO, precision, activations recomputed


def images_of(step: int) -> list[ToyImage]:
    """Ten images; those of the first rank of two or three have no region, one later image has regions without area."""
    regions = [0, 0, 0, 0, 0, 3, 1, 0, 4, 2]
    return make_images(10, seed=step + 1, regions=regions, absent_captions=(1, 6), invalid_regions=(6,))


def settings_of(stage: int, exchange: str = "ring", **train: Any) -> Stage1Settings:
    values: dict[str, Any] = {"global_loss": {"exchange": exchange, "chunk_size": 4}, "train": train}
    if stage == 1:
        return Stage1Settings.model_validate(values)
    return Stage2Settings.model_validate(values | {"region_loss": REGION_LOSS})


def model_of(stage: int, frames: int = 1) -> FGCLIP2:
    model = small_model(**LAYERS).train()
    if frames > 1:
        model.add_temporal(1, frames)
        torch.nn.init.normal_(model.temporal.projection.weight, std=0.2)  # as if it had trained
    if stage == 1:
        choose_trained(model, TuneSettings(), with_regions=False)
    return model


def averaged(found: Found, group: dist.ProcessGroup | None) -> Found:
    """The mean over ranks, which is what DeepSpeed makes of gradients."""
    flat = torch.cat([value.flatten() for value in found.values()])
    dist.all_reduce(flat, group=group)
    parts = (flat / dist.get_world_size(group)).split([value.numel() for value in found.values()])
    return {name: part.view_as(value) for (name, value), part in zip(found.items(), parts, strict=True)}


def steps_of(stage: int, exchange: str, parts: int, group: dist.ProcessGroup | None, frames: int = 1) -> list[Found]:
    """Two steps without an update: losses, counts, gradients, τ and bank, alike on all ranks of the group."""
    settings, model = settings_of(stage, exchange), model_of(stage, frames)
    losses, rank, steps = StageLosses(settings, group), dist.get_rank(group), []
    division = Division(dist.get_world_size(group), parts)

    def forward(batch: Batch, number: int) -> Embeddings:
        return model(batch, regions=settings.trains_regions)

    def backward(total: Tensor, is_last: bool) -> None:
        total.backward()

    for step in range(STEPS):
        model.zero_grad()
        batches = micro_batches(images_of(step), division, rank, frames)
        computed = losses_of_slice(forward, batches, parts, losses)
        difference = backward_of_slice(computed, forward, backward)
        losses.state.advance(step + 1)
        found = {"total": computed.output.total.detach(), **computed.output.parts}
        found |= {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
        found = averaged(found, group)
        counters = torch.stack([value.double() for value in computed.output.counters.values()])
        dist.all_reduce(counters, group=group)
        bank = losses.state.bank.rows
        found |= {"counters": counters, "margin": losses.state.margin.value, "difference": difference}
        steps.append(found | ({} if bank is None else {"bank": bank.region, "bank_text": bank.text}))
    return steps


def size_of(name: str, value: Tensor) -> float:
    """The largest entry; 1 for the bias of keys, whose gradient is 0: softmax does not see what is added to all."""
    return 1.0 if name.endswith("k_proj.bias") else float(value.abs().max()) if value.numel() else 0.0


def worst_of(found: Found, wanted: Found) -> tuple[float, str]:
    """The largest difference relative to a tensor's largest entry, and whose it is; infinite where names differ."""
    if set(found) != set(wanted):
        return math.inf, str(set(found) ^ set(wanted))
    differences = {
        name: float((found[name].double() - value.double()).abs().max()) if value.numel() else 0.0
        for name, value in wanted.items()
    }
    shares = ((d / max(size_of(name, wanted[name]), 1e-30), name) for name, d in differences.items())
    return max(shares)


@pytest.mark.parametrize("parts", [2, 3, 14])
def test_joined_micro_batches_hold_the_rows_of_the_whole(parts: int):
    """Row numbers, and what the host was told of them; texts may be there twice."""
    (whole,) = micro_batches(images_of(0), Division(1, 1), 0)
    joined = join_for_losses(micro_batches(images_of(0), Division(1, parts), 0), "cpu")
    assert joined.facts.counts == whole.facts.counts and min(joined.facts.counts) > 0
    assert joined.facts.real_patches == whole.facts.real_patches
    assert torch.equal(joined.region_image, whole.region_image)
    assert torch.equal(joined.hard_region, whole.hard_region) and torch.equal(joined.hard_mask, whole.hard_mask)
    for index, mask in (("phrase_index", None), ("hard_index", whole.hard_mask)):
        found, wanted = (batch.region_text_hash[getattr(batch, index)] for batch in (joined, whole))
        assert torch.equal(found if mask is None else found[mask], wanted if mask is None else wanted[mask])
    lengths = {"short": 10, "long": 10, "region": len(whole.boxes), "hard": len(whole.hard_region)}
    for name, length in lengths.items():
        found, wanted = (getattr(batch.facts.rows, name) for batch in (joined, whole))
        everything = torch.arange(length)
        assert torch.equal(everything if found is None else found, everything if wanted is None else wanted), name
    assert torch.equal(joined.facts.rows.altered, whole.facts.rows.altered)


def every_layout() -> dict[tuple[int, str, int, int], list[tuple[float, str]]]:
    """On rank 0, by stage, exchange, ranks and micro-batches: the worst of each step, against one of each."""
    found = {}
    alone: dict[int, list[Found]] = {}
    for size, group in subgroups((1, 2, 3)).items():
        if group is None:
            continue
        for stage in (1, 2):
            if size == 1:
                alone[stage] = steps_of(stage, "gather", 1, group)
                assert all(float(step["total"]) > 1 for step in alone[stage])
            for exchange, numbers in PARTS_OF_EXCHANGE.items():
                for parts in numbers:
                    steps = steps_of(stage, exchange, parts, group)
                    assert all(float(step.pop("difference")) <= 1e-6 for step in steps), "the two passes embed alike"
                    if dist.get_rank() == 0:
                        wanted = [{n: v for n, v in step.items() if n != "difference"} for step in alone[stage]]
                        found[stage, exchange, size, parts] = list(map(worst_of, steps, wanted))
    if dist.get_rank() == 0:
        first, second = alone[2]
        assert float(first["margin"]) != 0 and len(second["bank"]) > len(first["bank"]) > 0
    return found


@pytest.fixture(scope="module")
def layouts() -> dict[tuple[int, str, int, int], list[tuple[float, str]]]:
    return run_ranks(3, every_layout, timeout_seconds=300)[0]


@pytest.mark.parametrize("exchange", PARTS_OF_EXCHANGE)
@pytest.mark.parametrize("stage", [1, 2])
def test_losses_gradients_margin_and_bank_do_not_depend_on_ranks_and_micro_batches(layouts, stage, exchange):
    for size in (1, 2, 3):
        for parts in PARTS_OF_EXCHANGE[exchange]:
            for step, worst in enumerate(layouts[stage, exchange, size, parts]):
                assert worst[0] <= TOLERANCE, f"{worst}: {size} ranks, {parts} micro-batches, step {step + 1}"


def clip_layouts() -> dict[tuple[int, int], list[tuple[float, str]]]:
    """As ``every_layout``, of stage 2 on clips."""
    found: dict[tuple[int, int], list[tuple[float, str]]] = {}
    alone: list[Found] = []
    for size, group in subgroups((1, 2)).items():
        for parts in (1, 3) if group is not None else ():
            steps = steps_of(2, "gather", parts, group, FRAMES)
            assert all(float(step.pop("difference")) <= 1e-6 for step in steps), "the two passes embed alike"
            if dist.get_rank() == 0:
                alone = alone or steps
                found[size, parts] = list(map(worst_of, steps, alone))
    return found


def test_clips_in_micro_batches_on_two_ranks_give_what_one_rank_gives_at_once():
    found = run_ranks(2, clip_layouts, timeout_seconds=240)[0]
    assert set(found) == {(size, parts) for size in (1, 2) for parts in (1, 3)}
    for (size, parts), steps in found.items():
        for step, worst in enumerate(steps):
            assert worst[0] <= TOLERANCE, f"{worst}: {size} ranks, {parts} micro-batches, step {step + 1}"


def test_every_gradient_is_the_equations_own():
    """Against plain autograd through the model and all its micro-batches, without any cache."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        cached = steps_of(2, "gather", 3, None)[0]
        settings, model = settings_of(2, "gather"), model_of(2)
        (batch,) = micro_batches(images_of(0), Division(1, 1), 0)
        output = StageLosses(settings)(model(batch, regions=True), batch)
        output.total.backward()
        for name, parameter in model.named_parameters():
            worst = float((cached[name] - parameter.grad).abs().max())
            assert worst <= TOLERANCE * size_of(name, parameter.grad), name
        assert {n for n, _ in model.named_parameters()} <= set(cached)
    finally:
        dist.destroy_process_group()


def zero_gradients(kinds: list[Kind]) -> dict[Kind, dict[int, tuple[float, str]]]:
    """The worst gradient of DeepSpeed's by kind and number of micro-batches, against one process without it."""
    from deepspeed.utils import safe_get_full_grad

    from pipeline.training.engine import build_engine
    from pipeline.training.full_state import prepare_moments

    info, found = read_rank_info(), {}
    group = subgroups((1,))[1]
    alone = {stage: steps_of(stage, "gather", 1, group)[0] if info.is_main else {} for stage in (1, 2)}
    for kind in kinds:
        stage, zero, precision, recomputed = kind
        settings = settings_of(
            stage, deepspeed_config=str(ROOT / f"launch/zero{zero}.json"), precision=precision, global_batch_size=10
        )
        model = model_of(stage)
        if recomputed:
            model.checkpoint_activations()
        engine = build_engine(model, settings, info, torch.device("cpu"))
        prepare_moments(engine)
        for one in engine.optimizer.param_groups:
            one["lr"] = 0.0  # a step that only clears the gradients

        def forward(batch: Batch, number: int, engine=engine, settings=settings) -> Embeddings:
            return engine(batch, regions=settings.trains_regions)

        def backward(total: Tensor, is_last: bool, engine=engine) -> None:
            engine.set_gradient_accumulation_boundary(is_last)
            engine.backward(total)

        found[kind] = {}
        wanted = alone[stage]
        for parts in PARTS:
            division = Division(info.world_size, parts)
            losses = StageLosses(settings)
            computed = losses_of_slice(forward, micro_batches(images_of(0), division, info.rank), parts, losses)
            backward_of_slice(computed, forward, backward)
            gradients = {n: safe_get_full_grad(p) for n, p in model.named_parameters() if p.requires_grad}
            flat = {n: g.reshape(-1).clone() for n, g in gradients.items()}
            if precision == "bf16":
                flat = {"all": torch.cat(list(flat.values()))}
                wanted = wanted if "all" in wanted else flat  # against one micro-batch, which comes first
            elif info.is_main:
                wanted = {n: alone[stage][n].reshape(-1) for n in flat}
            if info.is_main:
                found[kind][parts] = worst_of(flat, wanted)
            engine.step()
            assert engine.was_step_applied()
    return found


KINDS: list[Kind] = [
    *((stage, zero, "fp32", False) for stage in (1, 2) for zero in (1, 2, 3)),
    (2, 2, "fp32", True),
    (2, 3, "fp32", True),
    (2, 2, "bf16", False),
]


@pytest.fixture(scope="module")
def by_zero() -> dict[Kind, dict[int, tuple[float, str]]]:
    return run_ranks(2, zero_gradients, KINDS, timeout_seconds=300)[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_deepspeeds_gradients_are_those_of_one_micro_batch(by_zero, kind):
    """In bf16 a weight's gradient is rounded to eight bits once a micro-batch."""
    for parts in PARTS:
        worst = by_zero[kind][parts]
        assert worst[0] <= (TOLERANCE if kind[2] == "fp32" else 2e-2), f"{worst}: {parts} micro-batches"
