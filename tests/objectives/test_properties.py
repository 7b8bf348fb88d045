"""What the losses promise besides their values: memory, precision, resuming, and errors that say what to do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config import Stage2Settings
from pipeline.objectives.collectives import Rows
from pipeline.objectives.fgv import fgv_loss
from pipeline.objectives.global_sigmoid import ROWS_PER_TILE, global_sigmoid_loss
from pipeline.objectives.margin import AdaptiveMargin
from pipeline.objectives.memory_bank import MemoryBank
from pipeline.objectives.tic import tic_loss
from pipeline.training.losses import StageLosses
from tests.objectives.toy import ToyModel, make_batch, make_images

SCALE, BIAS = torch.tensor(10.0), torch.tensor(-10.0)


def _unit(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=random), dim=1).to(dtype).requires_grad_()


class _Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation makes."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return result


@pytest.mark.parametrize("pairs", [700, 1400])
def test_logits_exist_in_tiles_of_the_chunk_whatever_the_batch(pairs):
    width, chunk = 4, 64
    with _Largest() as largest:
        loss, _ = global_sigmoid_loss(_unit(pairs, width, 1), _unit(pairs, width, 2), SCALE, BIAS, chunk_size=chunk)
        loss.backward()
    assert largest.entries <= max(ROWS_PER_TILE * chunk, pairs * width)


def test_losses_are_float32_inside_whatever_the_embeddings_are():
    with torch.autocast("cpu", torch.bfloat16):
        rounded = [_unit(40, 16, seed, torch.bfloat16) for seed in (1, 2)]
        loss, _ = global_sigmoid_loss(*rounded, SCALE, BIAS)
        fgv, _ = fgv_loss(*rounded, torch.arange(40), SCALE)
        tic, _ = tic_loss(rounded[1])
    exact = [tensor.detach().double() for tensor in rounded]
    signs = 2 * torch.eye(40, dtype=torch.float64) - 1
    logits = 10 * exact[0] @ exact[1].T
    assert loss.dtype == fgv.dtype == tic.dtype == torch.float32
    assert loss.item() == pytest.approx((-F.logsigmoid(signs * (logits - 10)).sum() / 40).item(), rel=1e-6)
    target = torch.arange(40)
    wanted = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert fgv.item() == pytest.approx(wanted.item(), rel=1e-6)
    (loss + fgv + tic).backward()
    assert all(tensor.grad.dtype == torch.bfloat16 and tensor.grad.isfinite().all() for tensor in rounded)


def test_steep_logits_neither_overflow_nor_vanish():
    image = _unit(6, 8, 3)
    loss, _ = global_sigmoid_loss(
        image, image.detach().flip(0).requires_grad_(), torch.tensor(400.0), torch.tensor(0.0)
    )
    loss.backward()
    assert loss.isfinite() and loss > 50
    assert image.grad.isfinite().all() and image.grad.abs().max() > 1


def test_without_gradients_wanted_only_the_value_is_made():
    with torch.no_grad():
        for loss in (fgv_loss(_unit(9, 8, 1), _unit(9, 8, 2), torch.arange(9), SCALE)[0], tic_loss(_unit(9, 8, 1))[0]):
            assert not loss.requires_grad and loss > 0


def test_gradients_scale_with_what_comes_from_outside():
    image, text = _unit(5, 8, 1), _unit(5, 8, 2)
    loss, _ = global_sigmoid_loss(image, text, SCALE, BIAS)
    one = torch.autograd.grad(loss, image, retain_graph=True)[0]
    assert torch.allclose(torch.autograd.grad(loss * 3, image)[0], 3 * one)


def _three_steps(losses: StageLosses, first: int, last: int) -> list[float]:
    model, totals = ToyModel(torch.float32), []
    for step in range(first, last + 1):
        for part in range(2):  # two micro-batches a step
            images = make_images(6, seed=7 * step + part)
            batch = make_batch(images)
            totals.append(losses(model(images, batch), batch).total.item())
        losses.state.advance(step)
    return totals


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_resumed_run_goes_on_to_the_bit(stop_after):
    settings = Stage2Settings(region_loss={"memory_bank_size": 20, "memory_bank_start_step": 1})
    whole = StageLosses(settings)
    totals = _three_steps(whole, 1, 4)
    first, second = StageLosses(settings), StageLosses(settings)
    before = _three_steps(first, 1, stop_after)
    second.state.load_state_dict(first.state.state_dict())
    assert before + _three_steps(second, stop_after + 1, 4) == totals
    assert float(second.state.margin) == float(whole.state.margin) != 0
    assert torch.equal(second.state.bank.rows.region, whole.state.bank.rows.region)
    assert second.state.metrics() == whole.state.metrics()


def test_micro_batches_make_one_margin_by_sum_and_count():
    margin = AdaptiveMargin()
    for total, count in ((6.0, 2.0), (0.0, 6.0)):
        margin.observe(torch.tensor([total, count], dtype=torch.float64))
    assert float(margin) == 0
    margin.advance()
    assert float(margin) == 6 / 8  # the mean of the parts' means would be 1.5
    margin.advance()
    assert float(margin) == 6 / 8  # a step without pairs leaves it


@pytest.mark.parametrize(("maximum", "wanted"), [(None, -3.0), (10.0, 0.0)])
def test_only_a_maximum_keeps_the_margin_from_falling_below_zero(maximum, wanted):
    margin = AdaptiveMargin(maximum)
    margin.observe(torch.tensor([-6.0, 2.0]))
    margin.advance()
    assert float(margin) == wanted


def test_the_bank_keeps_the_newest_in_order_and_counts_optimizer_steps():
    bank = MemoryBank(size=5, start_step=2)
    for step in range(1, 5):
        for part in (0, 1):  # forward calls do not count
            rows = torch.full((2, 3), float(10 * step + part))
            bank.observe(rows, -rows, torch.tensor([step, part]))
        assert bank.filled == (0, 0, 4, 5)[step - 1], "rows count only from the end of their step on"
        bank.advance(step)
    assert bank.rows.region[:, 0].tolist() == [31.0, 40.0, 40.0, 41.0, 41.0]
    assert torch.equal(bank.rows.text, -bank.rows.region)
    smaller = MemoryBank(size=2)
    smaller.load_state_dict(bank.state_dict())
    assert smaller.rows.region[:, 0].tolist() == [41.0, 41.0]


def test_the_bank_gives_no_gradient_and_leaves_out_equal_phrases():
    region, text, hashes = _unit(4, 8, 1), _unit(4, 8, 2), torch.arange(4)
    bank = MemoryBank(size=4)
    bank.observe(_unit(4, 8, 3), _unit(4, 8, 4), hashes)
    bank.advance(1)
    assert not bank.rows.region.requires_grad
    one, _ = fgv_loss(region[:1], text[:1], hashes[:1], SCALE, bank=bank.rows)
    _, counts = fgv_loss(region, text, hashes, SCALE, bank=bank.rows)
    logits = SCALE * torch.stack([region[0] @ text[0], *(region[0] @ t for t in bank.rows.text[1:])])
    others = SCALE * torch.stack([text[0] @ region[0], *(text[0] @ r for r in bank.rows.region[1:])])
    target = torch.tensor(0)
    assert one.item() == pytest.approx((F.cross_entropy(logits, target) + F.cross_entropy(others, target)).item() / 2)
    assert counts["excluded"] == 4


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (
            lambda: global_sigmoid_loss(_unit(2, 4, 1), _unit(2, 4, 1), SCALE, BIAS, exchange="star"),
            "auto, ring or gather",
        ),
        (lambda: global_sigmoid_loss(_unit(2, 4, 1), _unit(2, 4, 1), SCALE, BIAS, chunk_size=0), "at least 1"),
        (lambda: tic_loss(_unit(2, 4, 1), exclusion="none"), "leave_out or zero_similarity"),
        (lambda: Rows.of(1, scope="node"), "all_ranks or local_rank"),
        (lambda: AdaptiveMargin(-1.0), "must not be negative"),
        (lambda: MemoryBank(-1), "neither may be negative"),
    ],
)
def test_wrong_choices_are_refused_with_the_rule(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_stage_two_refuses_embeddings_without_regions():
    images = make_images(2, seed=1)
    batch = make_batch(images)
    embeddings = ToyModel(torch.float32)(images, batch)
    embeddings.region = None
    with pytest.raises(ValueError, match="regions=True"):
        StageLosses(Stage2Settings())(embeddings, batch)
