"""Clips in both model families: frames to one embedding, regions over the frames where they are."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from pipeline.data.batch import Batch
from pipeline.data.facts import facts_of
from pipeline.export.folder import model_with_weights
from pipeline.model import FGCLIP1, FGCLIP2, DualEncoder
from pipeline.model.embeddings import unit
from pipeline.model.temporal import TemporalAggregator, masked_mean, places_and_moves
from tests.model.material import picture, small_batch, small_clip_batch, small_clip_model, small_model
from tests.model.test_modeling import total

FRAMES = 3
FAMILIES = {"fgclip2": (small_model, small_batch), "fgclip1": (small_clip_model, small_clip_batch)}


def model_of(family: str, temporal: bool = True, layers: int = 2, most: int = 4) -> DualEncoder:
    model = FAMILIES[family][0]()
    if temporal:
        torch.manual_seed(1)
        model.add_temporal(layers, most)
    return model.train()


def clip_batch(family: str, num_regions: int, num_texts: int, frames: int = FRAMES) -> Batch:
    """Three clips whose frames differ; region r is absent in frame r % 3, and the last one in all."""
    batches = [FAMILIES[family][1](num_regions, num_texts, seed) for seed in range(frames)]
    first = batches[0]
    columns = {
        name: torch.stack([getattr(batch, name) for batch in batches], dim=1).flatten(0, 1)
        for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes", "boxes")
    }
    boxes = columns["boxes"].view(num_regions, frames, 4)
    for region in range(num_regions):
        boxes[region, region % frames] = 0
    boxes[-1:] = 0
    owner = first.region_image[:, None] * frames + torch.arange(frames)
    made = replace(first, **columns, region_image=owner.flatten(), num_frames=frames, facts=None)
    return replace(made, facts=facts_of(made))


def trained(aggregator: TemporalAggregator) -> TemporalAggregator:
    """With a projection as training leaves it: not 0."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        aggregator.projection.weight.copy_(torch.randn(aggregator.projection.weight.shape, generator=generator) * 0.3)
    return aggregator


def moves(regions: int, frames: int) -> torch.Tensor:
    """Boxes [R, F, 4] that go from left to right."""
    left = torch.linspace(0, 0.6, frames).expand(regions, -1)
    return torch.stack([left, torch.full_like(left, 0.3), left + 0.3, torch.full_like(left, 0.7)], dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_start_is_the_masked_mean_exactly(family):
    model = model_of(family)
    generator = torch.Generator().manual_seed(0)
    width = model.config.text_config.projection_size
    features = unit(torch.randn(40, width, generator=generator)).view(10, 4, width)
    visible = torch.rand(10, 4, generator=generator) < 0.5
    visible[:2] = torch.tensor([[True], [False]])
    boxes = torch.rand(10, 4, 4, generator=generator)
    assert torch.equal(model.temporal(features, visible, boxes), masked_mean(features, visible))
    found, valid = model.aggregate_regions(features, visible, boxes)
    assert torch.equal(valid, visible.any(1)) and (found[~valid] == 0).all()
    for region, keep, one in zip(found, visible, features, strict=True):
        if keep.any():
            torch.testing.assert_close(region, unit(one[keep].mean(0, keepdim=True))[0])


def test_what_is_hidden_has_no_part_and_gets_no_gradient():
    torch.manual_seed(0)
    aggregator = model_of("fgclip2").temporal
    trained(aggregator)
    features = torch.randn(5, 4, 24, requires_grad=True)
    visible = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]]).bool()
    boxes = torch.rand(5, 4, 4)
    found = aggregator(features, visible, boxes)
    found.sin().sum().backward()
    sizes = features.grad.abs().sum(-1)
    assert (sizes[visible] > 0).all() and (sizes[~visible] == 0).all()
    assert (found[3] == 0).all()
    noise = torch.where(visible[..., None], 0.0, torch.nan)
    torch.testing.assert_close(aggregator(features + noise, visible, boxes + noise), found)


@pytest.mark.parametrize("what", ["features", "boxes"])
def test_the_order_of_frames_and_of_places_tells_once_it_has_trained(what):
    aggregator = model_of("fgclip2").temporal
    forwards = {"features": torch.randn(3, 4, 24), "visible": torch.ones(3, 4, dtype=torch.bool), "boxes": moves(3, 4)}
    backwards = forwards | {what: forwards[what].flip(1)}
    torch.testing.assert_close(aggregator(**forwards), aggregator(**backwards))
    trained(aggregator)
    assert float((aggregator(**forwards) - aggregator(**backwards)).detach().abs().max()) > 0.02


def test_moves_are_those_between_two_frames_in_which_a_region_is():
    boxes = moves(1, 5) + torch.tensor([0.0, 0.0, 0.0, 0.1])
    found = places_and_moves(boxes, torch.tensor([[True, True, False, True, True]]))[0]
    torch.testing.assert_close(found[:2, :4], torch.tensor([[-0.7, 0.1, -0.4, 0.0], [-0.4, 0.1, -0.4, 0.0]]))
    right = torch.tensor([3.0, 0.0, 0.0, 0.0])  # 0.15 of the picture, of which -1 to 1 makes 0.3
    torch.testing.assert_close(found[[1, 4], 4:], right.expand(2, 4))
    assert (found[2] == 0).all() and (found[[0, 3], 4:] == 0).all()


def test_more_frames_than_positions_are_refused():
    with pytest.raises(ValueError, match="of 5 frames was given, and the model has positions for 4"):
        model_of("fgclip2").aggregate_regions(torch.randn(2, 5, 24), torch.ones(2, 5, dtype=torch.bool), moves(2, 5))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_is_what_its_frames_are_one_by_one(family):
    model, batch = model_of(family), clip_batch(family, 5, 4)
    trained(model.temporal)
    found = model(batch, regions=True)
    plain = model(replace(batch, facts=None), regions=True)
    assert all(torch.equal(a, b) for a, b in zip(found[:6], plain[:6], strict=True))
    assert found.image.shape[0] == 3 and found.region.shape[0] == len(found.region_valid) == 5
    _, images = model.encode_vision(batch.pixel_values, batch.pixel_attention_mask, batch.spatial_shapes)
    torch.testing.assert_close(found.image, unit(images.view(3, FRAMES, -1).mean(1)))
    assert found.region_valid.tolist() == [True] * 4 + [False] and (found.region[4] == 0).all()
    assert batch.facts.counts[2] == 4 and batch.facts.rows.region.tolist() == [0, 1, 2, 3]
    patches, _ = model.encode_vision(batch.pixel_values, batch.pixel_attention_mask, batch.spatial_shapes)
    dense = model.dense_features(patches, batch.pixel_attention_mask)
    each = [
        model.pool_regions(dense, batch.spatial_shapes, batch.boxes[row : row + 1], batch.region_image[row : row + 1])
        for row in range(len(batch.boxes))
    ]
    features, seen = (torch.cat(parts).unflatten(0, (5, FRAMES)) for parts in zip(*each, strict=True))
    expected, _ = model.aggregate_regions(features, seen, batch.boxes.unflatten(0, (5, FRAMES)))
    torch.testing.assert_close(found.region, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_bf16_weights_a_clip_is_near_what_it_is_in_float32(family):
    """Embeddings stay float32; every temporal weight has a finite gradient in its own type."""
    model, batch = model_of(family), clip_batch(family, 5, 4)
    trained(model.temporal)
    wanted = model(batch, regions=True)
    model.bfloat16()
    found = model(batch, regions=True)
    assert {found.image.dtype, found.region.dtype} == {torch.float32}
    assert torch.equal(found.region_valid, wanted.region_valid)
    for ours, theirs in ((found.image, wanted.image), (found.region[:4], wanted.region[:4])):
        assert float(torch.cosine_similarity(ours, theirs).detach().min()) > 0.999
    total(found).backward()
    for name, parameter in model.temporal.named_parameters():
        assert parameter.grad.dtype == torch.bfloat16 and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["clips", "clips without regions", "images", "images without regions"])
def test_every_parameter_has_a_finite_gradient_in_every_step(family, kind):
    model = model_of(family)
    trained(model.temporal)
    number = 0 if "without" in kind else 4
    made = partial(clip_batch, family) if "clips" in kind else FAMILIES[family][1]
    embeddings = model(made(number, 3), regions=True)
    (total(embeddings) + embeddings.region_anchor).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is not in the graph"
        assert parameter.grad.isfinite().all(), name
    moved = any(p.grad.abs().max() > 0 for n, p in model.named_parameters() if n.startswith("temporal."))
    assert moved == (kind == "clips")


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_of_images_are_to_the_bit_what_they_are_without_temporal_weights(family):
    batch = FAMILIES[family][1](4, 3)
    plain, found = model_of(family, temporal=False), model_of(family)
    trained(found.temporal)
    one, other = plain(batch, regions=True), found(batch, regions=True)
    assert all(torch.equal(a, b) for a, b in zip(one[:6], other[:6], strict=True))
    assert not [name for name in plain.state_dict() if name.startswith("temporal.")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_temporal_weights_takes_the_masked_mean(family):
    batch = clip_batch(family, 5, 4)
    plain, fresh = model_of(family, temporal=False), model_of(family)
    assert torch.equal(plain(batch, regions=True).region, fresh(batch, regions=True).region)


def test_a_rank_without_clip_regions_calls_the_same_modules_in_the_same_order():
    model = model_of("fgclip2")
    for parameter in model.parameters():
        parameter.ds_id = 0  # as ZeRO 3 marks them
    calls: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    orders = []
    for batch in (clip_batch("fgclip2", 5, 3), clip_batch("fgclip2", 0, 0)):
        calls.clear()
        model(replace(batch, facts=None), regions=True)
        orders.append(list(calls))
    assert orders[0] == orders[1]
    assert {name.rpartition(".")[0] for name, _ in model.named_parameters()} <= set(orders[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_temporal_weights_are_saved_and_read_back(family, tmp_path):
    model = model_of(family)
    trained(model.temporal)
    model.save_pretrained(tmp_path)
    again = (FGCLIP2 if family == "fgclip2" else FGCLIP1).load(tmp_path)
    assert (again.config.temporal_layers, again.config.temporal_frames) == (2, 4)
    batch = clip_batch(family, 4, 3)
    copy = model_with_weights(model.config, dict(model.state_dict()))
    for other in (again, copy):
        assert torch.equal(other(batch, regions=True).region, model.eval()(batch, regions=True).region)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_in_hand_give_what_a_batch_of_them_gives(family):
    model = model_of(family).eval()
    trained(model.temporal)
    frames = [picture(64, 64, seed) for seed in range(3)]
    budget = {} if family == "fgclip1" else {"max_num_patches": 16}
    each = model.encode_image(frames, **budget).embeds
    torch.testing.assert_close(model.encode_video(frames, **budget).embeds, unit(each.mean(0, keepdim=True)))
    boxes = [[[8, 8, 40, 40], None, [10, 8, 48, 40]], [None, [0, 0, 64, 64], None]]
    found = model.encode_video_regions(frames, boxes, **budget)
    assert found.boxes.shape == (2, 3, 4)
    one = model.encode_regions(frames[1], [[0, 0, 64, 64]], **budget).embeds
    alone, _ = model.aggregate_regions(
        torch.stack([torch.zeros_like(one), one, torch.zeros_like(one)], dim=1),
        torch.tensor([[False, True, False]]),
        torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 3, 4),
    )
    torch.testing.assert_close(found.embeds[1:], alone)
    for wrong, rule in (
        ([[None, None, None]], "a box for one at least"),
        ([[[8, 8, 40, 40]]], "1 entries for 3 frames"),
        ([[[8, 8, 400, 40], None, None]], "must hold"),
    ):
        with pytest.raises(ValueError, match=rule):
            model.encode_video_regions(frames, wrong, **budget)
    with pytest.raises(ValueError, match="all must have one size"):
        model.encode_video_regions([frames[0], picture(64, 32)], [], **budget)
