"""Stage 2 on images and clips: ranks and micro-batches agree, a stopped run goes on, the export reads clips."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import Stage2Settings, load_settings
from pipeline.data.index import index_folder
from pipeline.data.manifest import load_manifest
from pipeline.data.plan import Plan
from pipeline.model.families import load_trained
from tests.data.shards import clip_members, image_bytes, record, sample_members, write_tar
from tests.end_to_end.runs import Material, checkpoint_tensors, curves
from tests.ranks import run_ranks
from tests.training.small_runs import Case, case, run_cases

STEPS = 4
NAMES = ("loss", "global_short", "fgv", "fgt", "cmr", "cmr/margin")
FAMILY = {
    "fgclip2": (),
    "fgclip1": ("model.family=fgclip1", "data.patch_budgets=[64]", "data.keep_aspect_ratio=false"),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards: images, and clips of 2 to 4 frames, one of which has no region anywhere."""
    folder = tmp_path_factory.mktemp("clips")
    for shard in range(2):
        members: list[tuple[str, bytes]] = []
        for n in range(24):
            number, language = 100 * shard + n, ("en", "zh")[n // 12]
            if n % 3 == 0:
                members += sample_members(f"k{number}", image_bytes(number), record(number, language, regions=2))
            else:
                fields = {"regions": [{"phrase": "nowhere", "boxes": [None] * 3}]} if n == 5 else {}
                members += clip_members(f"k{number}", number, language, 3 if n == 5 else 2 + n % 3, **fields)
        write_tar(folder / f"p-{shard}.tar", members)
    index_folder(folder)
    return folder


def clips_case(material: Material, mixed: Path, run: Path, *further: str, family: str = "fgclip2", **events) -> Case:
    chosen = (f"data.shards=[{mixed}]", "data.clip_frames=[2]", f"train.max_steps={STEPS}", "train.global_batch_size=4")
    return case(material, run, *chosen, *FAMILY[family], *further, **events)


def test_the_runs_have_steps_of_images_and_of_clips(material: Material, mixed: Path):
    settings = load(material, mixed)
    plan = Plan([load_manifest(mixed, settings.data.patch_budgets, clip_frames=[2])], settings.data, 0, 4)
    assert {plan.shape_of(*plan.locate(step))[1].frames for step in range(STEPS)} == {1, 2}


def load(material: Material, mixed: Path):
    return load_settings(Stage2Settings, None, clips_case(material, mixed, mixed / "run").overrides)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILY)
def test_two_ranks_in_micro_batches_give_the_losses_of_one(
    material: Material, mixed: Path, tmp_path: Path, family: str
):
    alone = clips_case(material, mixed, tmp_path / "alone", family=family)
    cut = clips_case(material, mixed, tmp_path / "cut", "train.micro_batch_size=2", family=family)
    assert run_ranks(1, run_cases, [alone], timeout_seconds=240) == [[0]]
    assert run_ranks(2, run_cases, [cut], timeout_seconds=240) == [[0]] * 2
    ours, theirs = curves(tmp_path / "cut", *NAMES), curves(tmp_path / "alone", *NAMES)
    for name in NAMES:
        assert len(ours[name]) == STEPS and ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    model = load_trained(tmp_path / "alone")
    assert (model.config.temporal_layers, model.config.temporal_frames) == (2, 2)
    assert model.temporal is not None and model.temporal.projection.weight.abs().max() > 0
    assert "2 frames by a transformer of 2 layers" in (tmp_path / "alone" / "final" / "README.md").read_text()
    where, visible = torch.rand(1, 2, 4), torch.tensor([[True, False]])
    found, valid = model.aggregate_regions(torch.eye(2)[None].repeat(1, 1, 64), visible, where)
    assert valid.all() and found.isfinite().all()


@pytest.mark.long
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_interrupted_equals_uninterrupted_to_the_bit(material: Material, mixed: Path, tmp_path: Path, zero: int):
    settings = (f"train.deepspeed_config=launch/zero{zero}.json", "train.micro_batch_size=2")
    whole = clips_case(material, mixed, tmp_path / "whole", *settings)
    stopped = clips_case(material, mixed, tmp_path / "stopped", *settings, stop_at=2, stop_signal=signal.SIGTERM)
    outcomes = run_ranks(2, run_cases, [whole, stopped], timeout_seconds=240)
    assert [outcome[0] for outcome in outcomes] == [0, 0] and outcomes[1][1] == 143
    assert run_ranks(2, run_cases, [replace(stopped, stop_at=None)], timeout_seconds=240) == [[0]] * 2
    ours, theirs = (checkpoint_tensors(tmp_path / name, STEPS) for name in ("stopped", "whole"))
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.long
def test_starts_keep_their_temporal_weights_or_say_what_does_not_fit(material: Material, mixed: Path, tmp_path: Path):
    first = clips_case(material, mixed, tmp_path / "first")
    cases = [first] + [
        clips_case(material, mixed, tmp_path / f"next{number}", f"model.start_from={tmp_path / 'first'}", *further)
        for number, further in enumerate([(), ("data.clip_frames=[3]",), ("model.region_frames=mean",)])
    ]
    cases.append(clips_case(material, mixed, tmp_path / "mean", "model.region_frames=mean"))
    (outcomes,) = run_ranks(1, run_cases, cases, timeout_seconds=240)
    assert outcomes[:2] == [0, 0] and outcomes[4] == 0
    assert "positions for 2 frames" in str(outcomes[2]) and "model.region_frames is mean" in str(outcomes[3])
    assert load_trained(tmp_path / "next0").config.temporal_frames == 2
    assert load_trained(tmp_path / "mean").temporal is None
