"""No forward, loss, backward or figure of a step makes the host wait for the device.

Under torch's fake tensors nothing has a value, so every read that depends on data raises: ``item``, ``tolist``, a
boolean mask as an index, ``unique``, a Python branch on a tensor. Where torch has CUDA, the tensors are said to lie on
a GPU, and copies that the host would wait for are found as well. Collectives go to the fake backend of torch's tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config import Stage1Settings, Stage2Settings
from pipeline.data.batch import Batch, with_tensors
from pipeline.data.facts import facts_of
from pipeline.model import DualEncoder, Embeddings
from pipeline.model.families import model_of_config
from pipeline.training.cached import backward_of_slice, losses_of_slice
from pipeline.training.losses import LossOutput, StageLosses
from pipeline.training.run import StepResult
from tests.model.material import small_batch, small_clip_batch, small_clip_config, small_config

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
RANKS = 3
EVERY_LOSS = {"hard_inbatch_weight": 0.3, "memory_bank_size": 6}


@pytest.fixture
def ranks() -> Iterator[None]:
    dist.init_process_group("fake", rank=1, world_size=RANKS, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


class CopiesFromTheHost(TorchDispatchMode):
    """Notes copies to the device that the host waits for: those of memory that is not pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking"):
            target = kwargs.get("device")
            if target is not None and torch.device(target).type != args[0].device.type:
                self.found.append(f"{args[0].device} to {target}, {list(args[0].shape)}")
        return func(*args, **kwargs)


def batch_with_facts(num_regions: int, family: str = "fgclip2") -> Batch:
    """Three images, one without a long caption; hard rows with gaps; the last box without area."""
    make = small_clip_batch if family == "fgclip1" else small_batch
    batch = make(num_regions, 2 * num_regions)
    hard = torch.arange(num_regions // 2)
    mask = torch.ones(len(hard), 11, dtype=torch.bool)
    mask[:, 4:] = False
    boxes = batch.boxes.clone()
    if num_regions:
        boxes[-1] = 0.25
    batch = replace(
        batch,
        pixel_values=torch.randint(0, 256, batch.pixel_values.shape, dtype=torch.uint8),
        boxes=boxes,
        long_valid=torch.tensor([True, False, True]),
        hard_region=hard,
        hard_index=torch.zeros(len(hard), 11, dtype=torch.int64),
        hard_mask=mask,
    )
    return replace(batch, facts=facts_of(batch))


def fake(batch: Batch, mode: FakeTensorMode) -> Batch:
    return with_tensors(batch, lambda tensor: mode.from_tensor(tensor).to(DEVICE, non_blocking=True))


def fake_model(family: str = "fgclip2", weights: torch.dtype = torch.float32) -> DualEncoder:
    """Every layer recomputed in the backward, so that recomputing is proved as well."""
    config = small_clip_config() if family == "fgclip1" else small_config()
    for tower in (config.text_config, config.vision_config):
        tower.num_hidden_layers = min(tower.num_hidden_layers, 2)  # further layers are like these
    with torch.device("meta"):
        model = model_of_config(config).train()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            on_device = torch.empty(parameter.shape, device=DEVICE, dtype=weights)
            module.register_parameter(name, nn.Parameter(on_device))
    model.checkpoint_activations()
    return model


@pytest.mark.parametrize(
    ("stage", "num_regions", "exchange"),
    [
        (Stage1Settings(), 6, "gather"),
        (Stage1Settings(), 6, "ring"),
        (Stage2Settings(region_loss=EVERY_LOSS), 6, "ring"),
        (Stage2Settings(region_loss=EVERY_LOSS), 0, "gather"),  # the exchange is of images and captions alone
    ],
)
def test_nothing_is_read_back_in_forward_losses_and_backward(ranks, stage, num_regions, exchange):
    prove(stage, num_regions, exchange)


@pytest.mark.parametrize("family", ["fgclip2", "fgclip1"])
def test_nothing_is_read_back_with_bf16_weights(ranks, family):
    stage = Stage2Settings.model_validate({"model": {"family": family}, "region_loss": EVERY_LOSS})
    prove(stage, 6, "auto", torch.bfloat16)


@pytest.mark.parametrize(("stage", "num_regions"), [(Stage1Settings, 6), (Stage2Settings, 6), (Stage2Settings, 0)])
def test_nothing_is_read_back_with_clip_towers_and_the_softmax(ranks, stage, num_regions):
    values = {"model": {"family": "fgclip1"}} | ({"region_loss": EVERY_LOSS} if stage is Stage2Settings else {})
    prove(stage.model_validate(values), num_regions, "auto")


def prove(stage: Stage1Settings, num_regions: int, exchange: str, weights: torch.dtype = torch.float32) -> None:
    batch = batch_with_facts(num_regions, stage.model.family)
    counts = [tuple(2 * number + 1 for number in batch.facts.counts), batch.facts.counts, (1, 0, 0, 0, 0)]
    stage = stage.model_copy(update={"global_loss": stage.global_loss.model_copy(update={"exchange": exchange})})
    copies = CopiesFromTheHost()
    watching = copies if DEVICE.type == "cuda" else contextlib.nullcontext()  # on a CPU nothing is copied
    with FakeTensorMode() as mode, watching:
        model = fake_model(stage.model.family, weights)
        if weights == torch.bfloat16:
            model.exact_scalars = {"logit_scale": torch.empty(1, device=DEVICE)}
        losses = StageLosses(stage)
        losses.state.to(DEVICE)
        copies.found.clear()
        for step in (1, 2) if stage.trains_regions else (1,):  # the second has a margin and a bank
            embeddings = model(fake(batch, mode), regions=stage.trains_regions)
            output = losses(embeddings, fake(batch, mode), counts=counts)
            output.total.backward()
            losses.state.advance(step)
            if step == 1:
                copies.found.clear()  # what is made once and kept
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith("vision_model"))
    assert output.total.device == DEVICE
    assert not copies.found


@pytest.mark.parametrize("stage", [Stage1Settings(), Stage2Settings(region_loss=EVERY_LOSS)])
def test_nothing_is_read_back_by_the_passes_of_cached_embeddings(ranks, stage):
    whole, empty = batch_with_facts(6), batch_with_facts(0)
    with FakeTensorMode() as mode:
        model, losses = fake_model(), StageLosses(stage)
        losses.state.to(DEVICE)
        batches = [fake(batch, mode) for batch in (whole, empty, whole)]

        def forward(batch: Batch, number: int) -> Embeddings:
            return model(batch, regions=stage.trains_regions)

        def losses_of(embeddings: Embeddings, batch: Batch, *, with_health: bool) -> LossOutput:
            counts = [(3, 3, 2, 1, 3), batch.facts.counts, (0, 0, 0, 0, 0)]
            return losses(embeddings, batch, counts=counts, with_health=with_health)

        computed = losses_of_slice(forward, batches, len(batches), losses_of)
        backward_of_slice(computed, forward, lambda total, is_last: total.backward())
        result = StepResult([])
        result.add(computed.output, share=0.5)
    assert model.vision_model.head.probe.grad is not None
    assert isinstance(result.total, torch.Tensor)


def test_the_proof_would_notice_a_read(ranks):
    with FakeTensorMode() as mode:
        tensor = mode.from_tensor(torch.ones(3))
        with pytest.raises(DataDependentOutputException):
            bool(tensor.sum() > 0)
    batch = batch_with_facts(4)
    with FakeTensorMode() as mode:
        model = fake_model()
        with pytest.raises(DataDependentOutputException):
            model(replace(fake(batch, mode), facts=None), regions=True)
