"""Wrong norms, scales and first losses are named with their likely cause, and a right start gives no alarm."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.config import Stage2Settings
from pipeline.data.batch import Batch
from pipeline.doctor.first_losses import FarOff, check_first_losses, expected_first_losses
from pipeline.model import FGCLIP2, preset_config
from pipeline.tracking.metric_names import grouped_metrics
from pipeline.training.health import embedding_health, group_table, norm_problems
from pipeline.training.losses import StageLosses
from pipeline.training.optimizer import parameter_groups

BATCH, REGIONS, NEGATIVES = 8, 16, 4
SETTINGS = Stage2Settings()


def _batch(text_lengths: tuple[int, int]) -> Batch:
    random = torch.Generator().manual_seed(3)
    texts = REGIONS * (1 + NEGATIVES)
    corner = torch.rand(REGIONS, 2, generator=random) * 0.5
    short, long = text_lengths
    return Batch(
        keys=[""] * BATCH, language="zh",
        pixel_values=torch.randn(BATCH, 16, 768, generator=random),
        pixel_attention_mask=torch.ones(BATCH, 16, dtype=torch.int32),
        spatial_shapes=torch.full((BATCH, 2), 4),
        short_ids=torch.randint(1, 500, (BATCH, short), generator=random),
        short_valid=torch.ones(BATCH, dtype=torch.bool),
        long_ids=torch.randint(1, 500, (BATCH, long), generator=random),
        long_valid=torch.ones(BATCH, dtype=torch.bool),
        boxes=torch.cat([corner, corner + 0.4], dim=1),
        region_image=torch.arange(REGIONS) // 2,
        region_ids=torch.randint(1, 500, (texts, short), generator=random),
        region_text_hash=torch.arange(texts),
        phrase_index=torch.arange(REGIONS) * (1 + NEGATIVES),
        hard_region=torch.arange(REGIONS),
        hard_index=torch.arange(texts).view(REGIONS, -1),
        hard_mask=torch.ones(REGIONS, 1 + NEGATIVES, dtype=torch.bool),
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> FGCLIP2:
    torch.manual_seed(0)
    return FGCLIP2.from_scratch(preset_config("tiny", 500)).eval()


@torch.no_grad()
def _first_step(model: FGCLIP2, **starts: float) -> tuple[list[str], dict[str, float]]:
    """Warnings and losses of a first step, with scalars of the model overwritten by ``starts``."""
    kept = {name: getattr(model, name).clone() for name in starts}
    for name, value in starts.items():
        getattr(model, name).fill_(value)
    text = model.config.text_config
    batch = _batch((text.max_position_embeddings, text.longtext_len))
    embeddings = model(batch, regions=True)
    output = StageLosses(SETTINGS)(embeddings, batch, with_health=True)
    health = {**output.health, **embedding_health(embeddings)}
    for name, value in kept.items():
        getattr(model, name).copy_(value)
    assert not norm_problems(health)
    parts = {name: float(value) for name, value in output.parts.items()}
    counters = {f"count/{name}": float(value) for name, value in output.counters.items()}
    found = check_first_losses(SETTINGS, grouped_metrics(parts | counters | health), embeddings.image.shape[1])
    return [line.seen for line in found], parts


def test_a_right_start_gives_no_warning(tiny):
    warnings, parts = _first_step(tiny)
    assert not warnings
    assert set(parts) == {"global_short", "global_long", "fgv", "fgt", "tic", "cmr"}


@pytest.mark.parametrize(
    ("starts", "named"),
    [
        ({"logit_bias": 0.0}, "global_bias starts at 0"),
        ({"logit_scale": math.log(100.0)}, "global_scale starts at 100"),
    ],
)
def test_a_wrong_start_is_named(tiny, starts, named):
    warnings, _ = _first_step(tiny, **starts)
    assert any(named in warning for warning in warnings), warnings


def test_region_losses_are_expected_for_the_scale_that_is_there(tiny):
    """A scale at a wrong value is a finding of its own (tests/doctor), not a second one of the losses."""
    assert not _first_step(tiny, logit_scale_finegraind=2.6592, logit_scale_hardneg=2.6592)[0]


def test_a_bias_of_zero_shows_in_the_loss_too(tiny):
    _, parts = _first_step(tiny, logit_bias=0.0)
    assert parts["global_short"] < 8  # ln 2 a pair of 8, instead of 10
    metrics = {
        "global_short": 1000 * math.log(2),
        "count/global_short/pairs": 1000.0,
        "scale/global_bias": 0.0,
        "scale/global_scale": 10.0,
    }
    far = check_first_losses(SETTINGS, grouped_metrics(metrics), 768)
    assert any("the first global_short" in one.seen and "logit_bias is 0" in one.cause for one in far)


def test_expected_losses_of_random_unit_vectors_are_those_measured():
    random = torch.Generator().manual_seed(1)
    width, count = 64, 300
    region, text = (torch.nn.functional.normalize(torch.randn(count, width, generator=random), dim=1) for _ in range(2))
    expected = expected_first_losses(
        SETTINGS, {"global_short/pairs": count, "fgv/regions": count, "tic/texts": count}, width
    )
    logits = 10 * region @ text.T - 10
    signs = 2 * torch.eye(count) - 1
    assert expected["global_short"] == pytest.approx(
        float(torch.nn.functional.softplus(-signs * logits).sum() / count), rel=0.05
    )
    fgv = torch.nn.functional.cross_entropy(100 * region @ text.T, torch.arange(count))
    assert expected["fgv"] == pytest.approx(float(fgv), rel=0.1)
    cosines = (text @ text.T).fill_diagonal_(-torch.inf)
    assert expected["tic"] == pytest.approx(float(cosines.topk(10, dim=1).values.logsumexp(1).mean()), rel=0.02)


def test_loaded_weights_may_be_better_but_not_worse_than_knowing_nothing():
    def check(value: float) -> list[FarOff]:
        metrics = grouped_metrics({"fgv": value, "count/fgv/regions": 100.0, "scale/global_bias": -12.0})
        return check_first_losses(SETTINGS, metrics, 768, from_random_weights=False)

    assert not check(0.3)
    assert "belong together" in check(60.0)[0].cause
    assert check(math.nan)


def test_a_norm_that_is_not_one_is_named(tiny):
    text = tiny.config.text_config
    batch = _batch((text.max_position_embeddings, text.longtext_len))
    with torch.no_grad():
        embeddings = tiny(batch, regions=True)
    assert not norm_problems(embedding_health(embeddings))
    broken = embeddings._replace(long=embeddings.long * 1.01)
    assert [problem.split(" ")[0] for problem in norm_problems(embedding_health(broken))] == [
        "norm/long/min",
        "norm/long/max",
    ]
    holes = embeddings._replace(region=embeddings.region * torch.nan)
    assert "norm/region/min is nan" in norm_problems(embedding_health(holes))[0]


def test_the_table_names_every_group_its_size_and_what_is_frozen(tiny):
    for parameter in tiny.boxtext_head.parameters():
        parameter.requires_grad_(False)
    table = group_table(parameter_groups(tiny.named_parameters(), SETTINGS.optimizer), tiny)
    tiny.requires_grad_(True)
    lines = {line.split("  ")[0]: line for line in table.splitlines()}
    for name in ("text", "text_no_decay", "vision", "vision_no_decay", "new_heads", "scales_no_decay"):
        assert name in lines
    frozen = sum(parameter.numel() for parameter in tiny.boxtext_head.parameters())
    assert f"{frozen:,}" in lines["frozen"]
    total = sum(parameter.numel() for parameter in tiny.parameters())
    assert f"{total - frozen:,}" in lines["trained in all"]
