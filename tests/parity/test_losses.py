"""With the public code's weights and rules set, every loss equals what the public code computed for the fixture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pipeline.config import Stage2Settings
from pipeline.data.batch import Batch
from pipeline.training.losses import LossOutput, StageLosses
from tests.parity.fixture import Fixture, load_fixture

# docs/objectives.md explains each; 0.3, 1.5 and 0.2 are the public 0.5 times 0.6, 3 and 0.4.
PUBLIC_CODE = {
    "fgv_weight": 0.2,
    "fgt_weight": 1.5,
    "tic_weight": 0.1,
    "cmr_weight": 0.2,
    "hard_inbatch_weight": 0.3,
    "fgv_scope": "local_rank",
    "fgv_same_phrase_is_negative": True,
    "hard_inbatch_scope": "local_rank",
    "cmr_similarity": "scaled_logit",
    "cmr_margin_max": 10.0,
    "tic_scope": "local_rank",
    "tic_exclusion": "zero_similarity",
}
CMR, HARD_TOTAL = "cmr_at_threshold_", "hard_total_at_threshold_"  # the names end in τ


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return load_fixture()


def _losses(fixture: Fixture, region: Tensor, text: Tensor, hard_index: Tensor) -> tuple[LossOutput, StageLosses]:
    """The public code's losses of the fixture's embeddings; row h of ``hard_index`` belongs to region h."""
    images, regions = len(fixture.outputs["image_embeds"]), len(region)
    weights = {name: weight.exp().squeeze() for name, weight in fixture.weights.items() if "logit_scale" in name}
    embeddings = SimpleNamespace(
        image=fixture.outputs["image_embeds"],
        short=fixture.outputs["short_text_embeds"],
        long=fixture.outputs["long_text_embeds"],
        region=region,
        region_valid=torch.ones(regions, dtype=torch.bool),
        region_text=text,
        region_anchor=torch.zeros(()),
        scales=SimpleNamespace(
            global_scale=weights["logit_scale"],
            global_bias=fixture.weights["logit_bias"].squeeze(),
            finegrained=weights["logit_scale_finegraind"],
            hardneg=weights["logit_scale_hardneg"],
        ),
    )
    nothing, present = torch.zeros(0), torch.ones(images, dtype=torch.bool)
    batch = Batch(
        keys=[""] * images, language="en", pixel_values=nothing, pixel_attention_mask=nothing, spatial_shapes=nothing,
        short_ids=nothing, short_valid=present, long_ids=nothing, long_valid=present, boxes=nothing,
        region_image=nothing, region_ids=nothing, region_text_hash=torch.arange(len(text)),
        phrase_index=torch.arange(regions) if not len(hard_index) else hard_index[:, 0],
        hard_region=torch.arange(len(hard_index)), hard_index=hard_index,
        hard_mask=torch.ones(hard_index.shape, dtype=torch.bool),
    )  # fmt: skip
    losses = StageLosses(Stage2Settings(region_loss=PUBLIC_CODE))
    losses.state.margin.value = torch.tensor(_threshold(fixture), dtype=torch.float64)
    output = losses(embeddings, batch)
    return output, losses


def _threshold(fixture: Fixture) -> float:
    return float(next(name for name in fixture.meta["losses"] if name.startswith(CMR)).removeprefix(CMR))


def _relative(value: Tensor | float, wanted: float) -> float:
    """The error as a share of ``wanted``; as it is where ``wanted`` is 0."""
    return abs(float(value) - wanted) / (abs(wanted) or 1.0)


def test_the_error_is_also_known_where_the_fixture_wants_zero():
    assert _relative(torch.tensor(0.0), 0.0) == 0.0
    assert _relative(0.5, 0.0) == 0.5
    assert _relative(1.1, -1.0) == pytest.approx(2.1)


def test_global_losses_and_the_losses_of_boxes(fixture):
    rows = fixture.rows("box")
    output, _ = _losses(
        fixture,
        fixture.outputs["region_embeds"][rows],
        fixture.outputs["box_text_embeds"][rows],
        torch.zeros(0, fixture.inputs["hard_ids"].shape[1], dtype=torch.int64),
    )
    for name in ("global_short", "global_long", "fgv", "tic"):
        assert _relative(output.parts[name], fixture.meta["losses"][name]) < 1e-4, name


def test_the_losses_of_altered_phrases_and_the_next_margin(fixture):
    texts, wanted = fixture.outputs["hard_text_embeds"], fixture.meta["losses"]
    index = torch.arange(texts.shape[0] * texts.shape[1]).view(texts.shape[:2])
    regions = fixture.outputs["hard_region_embeds"][fixture.rows("hard")]
    output, losses = _losses(fixture, regions, texts.flatten(0, 1), index)
    parts = output.parts
    assert _relative(parts["fgt"], wanted["fgt"]) < 1e-4
    assert _relative(parts["cmr"], wanted[f"{CMR}{_threshold(fixture)}"]) < 1e-4
    assert _relative(parts["hard_inbatch"], wanted["hard_inbatch"]) < 1e-4
    hard_total = 0.6 * parts["hard_inbatch"] + 3 * parts["fgt"] + 0.4 * parts["cmr"]
    assert _relative(hard_total, wanted[f"{HARD_TOTAL}{_threshold(fixture)}"]) < 1e-4
    total = sum(PUBLIC_CODE.get(f"{name}_weight", 1.0) * value for name, value in parts.items())
    assert _relative(output.total, float(total)) < 1e-6
    losses.state.advance(1)
    assert _relative(losses.state.margin.value, min(max(wanted["next_threshold"], 0.0), 10.0)) < 1e-4


def test_the_papers_weights_and_rules_are_the_default():
    settings = Stage2Settings()
    paper = {"fgv_weight": 0.1, "fgt_weight": 0.5, "tic_weight": 0.1, "cmr_weight": 0.4, "hard_inbatch_weight": 0.0,
             "cmr_similarity": "cosine", "cmr_margin_max": None, "tic_num_texts": 10, "tic_exclude_above": 0.95,
             "tic_exclusion": "leave_out", "fgv_same_phrase_is_negative": False}  # fmt: skip
    assert {name: getattr(settings.region_loss, name) for name in paper} == paper
    assert settings.global_loss.short_weight == settings.global_loss.long_weight == 1.0
