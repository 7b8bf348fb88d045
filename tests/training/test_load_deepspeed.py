"""A start of DeepSpeed that was killed while it compiled does not stop the next one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipeline.training.load_deepspeed import load_deepspeed
from tests.ranks import run_ranks


def _one_step() -> float:
    deepspeed = load_deepspeed("cpu")
    network = nn.Linear(2, 1)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(
        model=network, optimizer=torch.optim.AdamW(network.parameters()), config=config, dist_init_required=False
    )
    loss = engine(torch.ones(1, 2)).square().sum()
    engine.backward(loss)
    engine.step()
    return float(loss)


def test_the_lock_of_a_killed_compile_is_not_waited_for(tmp_path: Path):
    lock = tmp_path / "deepspeed_shm_comm" / "lock"  # where torch.utils.cpp_extension keeps it
    lock.parent.mkdir()
    lock.touch()
    losses = run_ranks(1, _one_step, timeout_seconds=120, environment={"TORCH_EXTENSIONS_DIR": str(tmp_path)})
    assert losses[0] >= 0
    assert lock.exists() and list(lock.parent.iterdir()) == [lock]  # nothing was compiled, nobody took the lock
