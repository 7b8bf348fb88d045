"""On a GPU: nothing waits for it, batches come ahead of need, and it computes what the CPU computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.step_material import Case, make_batch, make_step
from pipeline.data.device_feed import DeviceFeed
from pipeline.data.micro_batches import Unit
from pipeline.training.compilation import compile_layers, why_not

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]
VOCABULARY = 512


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2])
def test_forward_losses_and_backward_never_wait_for_the_device(device, stage, weights):
    step = make_step(Case(stage, 64, 6, "tiny", "bf16", weights), device, VOCABULARY)
    step.run()  # what is made once and kept: position weights, kernels, optimizer state
    batch = step.host_batch.to(device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.forward(batch).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("stage", [1, 2])
def test_the_first_losses_and_gradients_are_those_of_the_cpu(device, stage):
    case = Case(stage, 64, 6, "tiny", "fp32")
    torch.backends.cuda.matmul.allow_tf32 = False
    found = []
    for where in (torch.device("cpu"), device):
        step = make_step(case, where, VOCABULARY)
        loss = step.forward(step.host_batch.to(where))
        loss.backward()
        gradients = {name: p.grad.cpu() for name, p in step.model.named_parameters() if p.grad is not None}
        found.append((float(loss), gradients))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-4 * max(1.0, float(gradient.abs().max())),
                                   rtol=1e-3, msg=name)  # fmt: skip


@pytest.mark.parametrize("stage", [1, 2])
def test_bf16_weights_give_about_the_losses_of_autocast(device, stage):
    losses = []
    for weights in ("fp32", "bf16"):
        step = make_step(Case(stage, 64, 6, "tiny", "bf16", weights), device, VOCABULARY)
        losses.append([float(step.run()) for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=3e-2)


def test_batches_come_in_order_from_the_feed_and_its_errors_are_the_loaders(device):
    case = Case(2, 64, 4, "tiny", "bf16")
    batches = [replace(make_batch(case, VOCABULARY, seed), language=str(seed)) for seed in range(4)]

    class Loader:
        def __init__(self):
            self.number = 0

        def upcoming(self):
            return Unit(self.number, 0, 1, 2)

        def __next__(self):
            if self.number == len(batches):
                raise ValueError("no more")
            self.number += 1
            return batches[self.number - 1]

    feed = DeviceFeed(Loader(), device)
    for number, batch in enumerate(batches):
        assert feed.upcoming().step == number
        found = next(feed)
        assert found.language == batch.language
        assert all(tensor.is_cuda for tensor in found.every_tensor())
        for name, tensor in batch.tensors().items():
            assert torch.equal(found.tensors()[name].cpu(), tensor), name
    with pytest.raises(ValueError, match="no more"):
        next(feed)
    feed.close()


def test_compiled_layers_give_what_plain_ones_give(device):
    if problem := why_not(device, 0):
        pytest.skip(problem)
    case = Case(2, 64, 6, "tiny", "bf16")
    losses = []
    for compiled in (False, True):
        step = make_step(case, device, VOCABULARY)
        if compiled:
            assert "are compiled" in compile_layers(step.model, device, 0)
        losses.append([float(step.run()) for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
