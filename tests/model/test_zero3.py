"""Under every stage of ZeRO, with layers recomputed or not, two ranks train as one process would, regions or none."""

from __future__ import annotations

import os

import pytest
import torch

from pipeline.model.checkpointing import Recomputation
from pipeline.training.load_deepspeed import load_deepspeed
from tests.model.material import small_batch, small_model
from tests.ranks import run_ranks

STEPS = 2


def loss_of(embeddings):
    """A sum over rows, so that ranks with different numbers of regions have different parts in it."""
    columns = torch.arange(embeddings.image.shape[-1]).sin()
    parts = [embeddings.image, embeddings.short, embeddings.long, embeddings.region, embeddings.region_text]
    scales = embeddings.scales
    scalars = scales.global_scale + scales.global_bias + scales.finegrained + scales.hardneg
    return sum((part.sin() * columns).sum() for part in parts) + 1e-3 * scalars + embeddings.region_anchor


def batch_of(rank: int, step: int):
    return small_batch(*((0, 0) if rank == step % 2 else (4, 3)), seed=10 * step + rank)


def train_with_zero(stage: int, every: int) -> dict[str, torch.Tensor]:
    """``every``: each so many-th layer is recomputed in the backward; 0: none."""
    deepspeed = load_deepspeed("cpu")
    config = {
        "train_micro_batch_size_per_gpu": 3,
        "zero_optimization": {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # its default clips at 1
    }
    model = small_model().train()
    model.checkpoint_activations(Recomputation(((0, every),)))
    for parameter in model.parameters():
        if parameter.ndim == 0:  # DeepSpeed cannot broadcast a scalar; pipeline/training/engine.py does the same
            parameter.data = parameter.data.reshape(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for step in range(STEPS):
        engine.backward(loss_of(engine(batch_of(int(os.environ["RANK"]), step), regions=True)))
        engine.step()
    partitioned = [parameter for parameter in engine.module.parameters() if hasattr(parameter, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned):
        return {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}


@pytest.mark.parametrize(("stage", "every"), [(1, 1), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_two_ranks_one_without_regions_equal_one_process(stage: int, every: int):
    model = small_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in range(2):
            (loss_of(model(batch_of(rank, step), regions=True)) / 2).backward()
        optimizer.step()
    found = run_ranks(2, train_with_zero, stage, every, timeout_seconds=120)
    for name, parameter in model.named_parameters():
        for weights in found:
            trained = weights[name].reshape(parameter.shape)
            torch.testing.assert_close(trained, parameter.detach(), atol=1e-5, rtol=0, msg=f"{name} differs")
