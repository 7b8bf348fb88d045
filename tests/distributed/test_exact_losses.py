"""Every loss, every gradient and τ are the same on 1, 2, 3 and 4 ranks, and equal to the equations."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.config import Stage2Settings
from pipeline.training.losses import StageLosses
from tests.objectives.reference import Reference
from tests.objectives.toy import ToyImage, ToyModel, make_batch, make_images
from tests.ranks import run_ranks, subgroups

WORLD_SIZES = (1, 2, 3, 4)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
PUBLIC = {
    "fgv_same_phrase_is_negative": True,
    "cmr_similarity": "scaled_logit",
    "cmr_margin_max": 10.0,
    "tic_exclusion": "zero_similarity",
    "hard_inbatch_weight": 0.3,
}


@dataclass(frozen=True)
class Case:
    """A global batch a step, how its images lie on the ranks, and settings."""

    images: dict[str, Any] = field(default_factory=dict)  # for make_images
    num_images: int = 12
    shares: dict[int, list[int]] = field(
        default_factory=dict
    )  # images of each rank, by world size; else as even as can be
    region_loss: dict[str, Any] = field(default_factory=dict)
    global_loss: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[torch.dtype, ...] = (torch.float64,)
    num_steps: int = 2  # a margin that is not 0 shows in the second
    zero: tuple[str, ...] = ()  # parts that have no members in any step

    def settings(self) -> Stage2Settings:
        return Stage2Settings(region_loss=self.region_loss, global_loss={"chunk_size": 5, **self.global_loss})

    def ranks(self, step: int, world_size: int) -> list[list[ToyImage]]:
        images = make_images(self.num_images, seed=10 * step + 1, **self.images)
        even = [len(images) * (r + 1) // world_size - len(images) * r // world_size for r in range(world_size)]
        split = []
        for share in self.shares.get(world_size, even):
            split.append(images[:share])
            images = images[share:]
        assert not images, "a case lost images"
        return split


BOTH = (torch.float64, torch.float32)
UNEVEN = {2: [9, 3], 3: [1, 9, 2], 4: [5, 1, 0, 6]}
CASES = {
    "paper": Case(dtypes=BOTH, num_steps=3, region_loss={"hard_inbatch_weight": 0.3}),
    "public": Case(dtypes=BOTH, num_steps=3, region_loss=PUBLIC),
    "gather": Case(dtypes=BOTH, num_steps=3, global_loss={"exchange": "gather"}, shares=UNEVEN),
    "uneven ranks": Case(dtypes=BOTH, num_steps=3, shares=UNEVEN, region_loss={"hard_inbatch_weight": 0.3}),
    "softmax": Case(dtypes=BOTH, global_loss={"kind": "softmax"}, shares=UNEVEN),
    "softmax, absent captions": Case(images={"absent_captions": (0, 1, 2, 5, 9)}, global_loss={"kind": "softmax"}),
    "softmax, one chunk": Case(global_loss={"kind": "softmax", "chunk_size": 4096}),
    "softmax, one image in all": Case(
        num_images=1, shares={2: [1, 0], 3: [0, 1, 0], 4: [0, 0, 0, 1]}, global_loss={"kind": "softmax"}
    ),
    "softmax, no caption at all": Case(
        images={"absent_captions": tuple(range(12))}, global_loss={"kind": "softmax"}, zero=("global_short",)
    ),
    "chunk of one": Case(global_loss={"chunk_size": 1}),
    "one chunk": Case(global_loss={"chunk_size": 4096}, shares=UNEVEN),
    "local ranks": Case(
        shares=UNEVEN,
        region_loss={"fgv_scope": "local_rank", "tic_scope": "local_rank", "hard_inbatch_scope": "local_rank",
                     "hard_inbatch_weight": 1.0},
    ),
    "a rank without regions": Case(images={"regions": [0, 0, 0, 0, 0, 0, 3, 2, 1, 4, 0, 2]}),
    "no region anywhere": Case(
        images={"regions": [0] * 12}, region_loss={"hard_inbatch_weight": 1.0, "memory_bank_size": 4},
        zero=("fgv", "fgt", "tic", "cmr", "hard_inbatch"),
    ),
    "no negatives": Case(
        images={"negatives": (0, 0)}, region_loss={"hard_inbatch_weight": 1.0}, zero=("fgt", "cmr", "hard_inbatch")
    ),
    "one region in all": Case(
        images={"regions": [0] * 10 + [1, 0], "negatives": (3, 3)}, region_loss={"hard_inbatch_weight": 1.0},
        zero=("fgv", "tic"),
    ),
    "one region, public": Case(images={"regions": [0] * 10 + [1, 0], "negatives": (3, 3)}, region_loss=PUBLIC),
    "few texts": Case(images={"regions": [0, 1, 0, 2, 0, 0, 1, 0, 0, 0, 1, 0]}),
    "few texts, public": Case(images={"regions": [0, 1, 0, 2, 0, 0, 1, 0, 0, 0, 1, 0]}, region_loss=PUBLIC),
    "one to nine negatives": Case(images={"negatives": (1, 9)}, shares=UNEVEN),
    "all phrases equal": Case(images={"one_phrase": True}, zero=("fgv", "tic")),
    "all phrases equal, public": Case(images={"one_phrase": True}, region_loss=PUBLIC),
    "one image a rank": Case(num_images=4, shares={2: [1, 3], 3: [1, 1, 2], 4: [1, 1, 1, 1]}),
    "one image in all": Case(num_images=1, shares={2: [1, 0], 3: [0, 1, 0], 4: [0, 0, 0, 1]}),
    "absent captions": Case(images={"absent_captions": (0, 1, 2, 5, 9)}),
    "no caption at all": Case(images={"absent_captions": tuple(range(12))}, zero=("global_short",)),
    "regions without area": Case(images={"invalid_regions": (0, 4, 5, 11)}, region_loss={"hard_inbatch_weight": 1.0}),
    "every region without area": Case(
        images={"invalid_regions": tuple(range(12))}, zero=("fgv", "fgt", "tic", "cmr")
    ),
    "memory bank": Case(
        dtypes=BOTH, num_steps=3, shares=UNEVEN, region_loss={"memory_bank_size": 30, "memory_bank_start_step": 1}
    ),
    "memory bank, later": Case(num_steps=3, region_loss={"memory_bank_size": 9, "memory_bank_start_step": 2}),
}  # fmt: skip
RUNS = [(name, dtype) for name, case in CASES.items() for dtype in case.dtypes]


def _run_all_cases() -> dict[tuple[str, torch.dtype, int], list[dict[str, Any]]]:
    """On every rank: each case in each world size. A rank's numbers are averaged as DeepSpeed averages gradients."""
    found = {}
    for size, group in subgroups(WORLD_SIZES).items():
        if group is None:
            continue
        for name, dtype in RUNS:
            model, losses = ToyModel(dtype), StageLosses(CASES[name].settings(), group)
            steps = []
            for step in range(1, CASES[name].num_steps + 1):
                images = CASES[name].ranks(step, size)[dist.get_rank(group)]
                batch = make_batch(images)
                output = losses(model(images, batch), batch, with_health=True)
                names, parameters = zip(*model.named_parameters(), strict=True)
                gradients = torch.autograd.grad(output.total, parameters, allow_unused=True)
                values = {"total": output.total.detach(), **output.parts}
                values |= {n: torch.zeros_like(p) if g is None else g
                           for n, p, g in zip(names, parameters, gradients, strict=True)}  # fmt: skip
                flat = torch.cat([value.flatten() for value in values.values()])
                dist.all_reduce(flat, group=group)
                parts = (flat / size).split([value.numel() for value in values.values()])
                values = {key: part.view_as(value) for (key, value), part in zip(values.items(), parts, strict=True)}
                losses.state.advance(step)
                counters = torch.stack(list(output.counters.values()))
                dist.all_reduce(counters, group=group)
                bank = losses.state.bank.rows
                steps.append(
                    {
                        "values": values,
                        "margin": losses.state.margin.value,
                        "counters": dict(zip(output.counters, counters.tolist(), strict=True)),
                        "bank": None if bank is None else bank.region,
                        "metrics": losses.state.metrics(),
                    }
                )
            found[name, dtype, size] = steps
    return found


@pytest.fixture(scope="module")
def by_rank() -> list[dict[tuple[str, torch.dtype, int], list[dict[str, Any]]]]:
    return run_ranks(max(WORLD_SIZES), _run_all_cases, timeout_seconds=300)


def _close(value: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    """Within the tolerance of the largest entry (or of 1): the entries of a gradient share one rounding error."""
    size = max(1.0, float(wanted.abs().max()))
    return bool((value.double() - wanted.double()).abs().max() <= TOLERANCE[dtype] * size)


@functools.cache
def _reference(name: str, dtype: torch.dtype, world_size: int) -> list[dict[str, Any]]:
    """What the equations give, step by step, in float64."""
    case, model = CASES[name], ToyModel(torch.float64)
    if dtype == torch.float32:  # the same weights, to the bit
        model.load_state_dict({key: value.double() for key, value in ToyModel(dtype).state_dict().items()})
    settings = case.settings()
    reference = Reference(model, settings.region_loss, settings.global_loss)
    names, parameters = zip(*model.named_parameters(), strict=True)
    steps = []
    for step in range(1, case.num_steps + 1):
        total, parts = reference.step(case.ranks(step, world_size), step)
        gradients = torch.autograd.grad(total, parameters)
        steps.append(
            {
                "values": {
                    **{key: value.detach() for key, value in {"total": total, **parts}.items()},
                    **dict(zip(names, gradients, strict=True)),
                },
                "margin": torch.tensor(reference.state.margin, dtype=torch.float64),
            }
        )
    return steps


@pytest.mark.parametrize(("name", "dtype"), RUNS, ids=[f"{n}-{str(d)[6:]}" for n, d in RUNS])
def test_losses_gradients_and_margin_follow_the_equations(by_rank, name, dtype):
    local = CASES[name].region_loss.get("fgv_scope") == "local_rank"
    for size in WORLD_SIZES:
        for step, wanted in enumerate(_reference(name, dtype, size if local else 1)):
            for rank in range(size):
                found, where = by_rank[rank][name, dtype, size][step], f"step {step + 1}, rank {rank} of {size}"
                assert set(found["values"]) == set(wanted["values"])
                for key, value in wanted["values"].items():
                    assert found["values"][key].dtype == dtype
                    assert _close(found["values"][key], value, dtype), f"{key}, {where}"
                assert _close(found["margin"], wanted["margin"], dtype), f"margin, {where}"
            assert all(wanted["values"][part] == 0 for part in CASES[name].zero)


# The scope local_rank depends on the ranks by its definition; the equations above cover it.
POOLED = [(name, dtype) for name, dtype in RUNS if name != "local ranks"]


@pytest.mark.parametrize(("name", "dtype"), POOLED, ids=[f"{n}-{str(d)[6:]}" for n, d in POOLED])
def test_any_number_of_ranks_agrees_with_one_process(by_rank, name, dtype):
    alone = by_rank[0][name, dtype, 1]
    for size in WORLD_SIZES[1:]:
        for rank in range(size):
            for one, several in zip(alone, by_rank[rank][name, dtype, size], strict=True):
                for key, wanted in one["values"].items():
                    assert _close(several["values"][key], wanted, dtype), f"{key} on {size} ranks"
                assert _close(several["margin"], one["margin"], dtype)
                assert several["counters"] == one["counters"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.zero])
def test_a_term_without_members_is_zero_and_its_counter_says_so(by_rank, name):
    counter = {"fgv": "excluded", "fgt": "rows", "tic": "texts", "cmr": "pairs", "hard_inbatch": "rows",
               "global_short": "pairs"}  # fmt: skip
    for size in WORLD_SIZES:
        for found in by_rank[0][name, torch.float64, size]:
            for part in CASES[name].zero:
                assert found["values"][part].item() == 0
                if part != "fgv":
                    assert found["counters"][f"{part}/{counter[part]}"] == 0
            regions = found["counters"]["regions/valid"]
            if "one region" in name:
                assert regions == found["counters"]["fgv/regions"] == 1
            elif "equal" in name:
                assert found["counters"]["fgv/excluded"] == regions * (regions - 1)
            elif "area" in name or "no region" in name:
                assert regions == found["counters"]["fgv/regions"] == 0


@pytest.mark.parametrize("size", WORLD_SIZES)
def test_the_bank_is_alike_on_every_rank_and_starts_at_its_step(by_rank, size):
    used = [found["metrics"]["memory_bank/used"] for found in by_rank[0]["memory bank, later", torch.float64, size]]
    assert used == [0, 0, 9]
    for name in ("memory bank", "memory bank, later"):
        alone = by_rank[0][name, torch.float64, 1]
        for rank in range(size):
            for one, found in zip(alone, by_rank[rank][name, torch.float64, size], strict=True):
                assert (one["bank"] is None) == (found["bank"] is None)
                assert one["bank"] is None or torch.allclose(found["bank"], one["bank"], rtol=0, atol=1e-12)
                assert found["metrics"] == pytest.approx(one["metrics"], abs=1e-12)
