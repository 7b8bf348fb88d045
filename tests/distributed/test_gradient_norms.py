"""The gradient norm of a parameter group is that of the averaged gradients, whatever ZeRO stage holds them in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline.training.health import gradient_norms
from pipeline.training.load_deepspeed import load_deepspeed
from tests.ranks import run_ranks

ACCUMULATION = 2


def _model() -> nn.ModuleDict:
    torch.manual_seed(5)
    return nn.ModuleDict({"left": nn.Linear(6, 5), "right": nn.Linear(6, 3), "frozen": nn.Linear(2, 2)})


def _groups(model: nn.ModuleDict) -> list[dict[str, Any]]:
    model["frozen"].requires_grad_(False)
    return [
        {"params": list(model[name].parameters()), "name": name, "factor": 1.0, "lr": 1e-3}
        for name in ("left", "right")
    ]


def _inputs(rank: int, part: int) -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(10 * rank + part))


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = _model()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.parts["left"](inputs).square().mean() + 3 * self.parts["right"](inputs).tanh().square().mean()


def _norms_of_stages() -> dict[int, dict[str, float]]:
    deepspeed = load_deepspeed("cpu")
    found = {}
    for stage in (1, 2, 3):
        network = _Network()
        config = {
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": ACCUMULATION,
            "gradient_clipping": 0.01,  # far below the norm: it must not show
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
        }
        optimizer = torch.optim.AdamW(_groups(network.parts))
        engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config, dist_init_required=False)
        for part in range(ACCUMULATION):
            engine.backward(engine(_inputs(dist.get_rank(), part)))
            if part == ACCUMULATION - 1:
                found[stage] = gradient_norms(engine)
            engine.step()
    return found


@pytest.fixture(scope="module")
def by_rank() -> list[dict[int, dict[str, float]]]:
    return run_ranks(2, _norms_of_stages, timeout_seconds=150)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_norms_by_group_are_those_of_the_averaged_gradient(by_rank, stage):
    network = _Network()
    _groups(network.parts)
    total = sum(network(_inputs(rank, part)) for rank in range(2) for part in range(ACCUMULATION))
    (total / (2 * ACCUMULATION)).backward()
    wanted = {
        f"gradient_norm/{name}": torch.cat([p.grad.flatten() for p in network.parts[name].parameters()]).norm().item()
        for name in ("left", "right")
    }
    for found in by_rank:
        assert found[stage] == pytest.approx(wanted, rel=1e-5)
