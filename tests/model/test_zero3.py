"""DeepSpeed's ZeRO-3 gathers every parameter by itself, also where a rank has no region at all."""

from __future__ import annotations

import os

import torch

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


def train_with_zero3() -> dict[str, torch.Tensor]:
    deepspeed = load_deepspeed("cpu")
    config = {
        "train_micro_batch_size_per_gpu": 3,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # its default clips at 1
    }
    model = small_model().train()
    for parameter in model.parameters():
        if parameter.ndim == 0:  # DeepSpeed cannot broadcast a scalar; pipeline/training/engine.py does the same
            parameter.data = parameter.data.reshape(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for step in range(STEPS):
        engine.backward(loss_of(engine(batch_of(int(os.environ["RANK"]), step), regions=True)))
        engine.step()
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        return {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}


def test_two_ranks_one_without_regions_equal_one_process():
    model = small_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in range(2):
            (loss_of(model(batch_of(rank, step), regions=True)) / 2).backward()
        optimizer.step()
    found = run_ranks(2, train_with_zero3, timeout_seconds=120)
    for name, parameter in model.named_parameters():
        for weights in found:
            trained = weights[name].reshape(parameter.shape)
            torch.testing.assert_close(trained, parameter.detach(), atol=1e-5, rtol=0, msg=f"{name} differs")
