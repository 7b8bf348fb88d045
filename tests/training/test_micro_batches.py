"""Runs do not depend on the number of ranks and micro-batches; a kill between micro-batches loses nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import SettingsError, Stage1Settings, Stage2Settings, load_settings
from pipeline.data.slices import Division
from pipeline.estimate import fitting
from pipeline.estimate.fitting import largest_micro_batches
from pipeline.estimate.inputs import pieces_of, sharding_of
from pipeline.estimate.pieces import Piece
from pipeline.model import FGCLIP2Config, preset_config
from pipeline.training.micro_batches import bank_notes, division_notes, make_division
from tests.end_to_end.runs import Material, checkpoint_tensors, curves
from tests.ranks import RankFailure, run_ranks
from tests.training.small_runs import case, run_cases

NAMES = ("loss", "global_short", "global_long", "fgv", "fgt", "cmr", "tic", "cmr/margin", "memory_bank/filled")
SLOW = "optimizer.peak_learning_rate=1e-4"
BANK = ("region_loss.memory_bank_size=16", "region_loss.memory_bank_start_step=1")


def settings_of(stage: int, batch: int, steps: int, parts: int, *more: str) -> tuple[str, ...]:
    own = BANK if stage == 2 else ()
    return (
        f"train.global_batch_size={batch}", f"train.max_steps={steps}", f"train.accumulation_steps={parts}",
        "data.one_budget_per_batch=false", "data.max_negatives=3", *own, *more,
    )  # fmt: skip


@pytest.mark.long  # tests/training/test_cached.py holds losses and gradients to each other each time
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(("batch", "steps"), [(10, 5), (64, 20)])
def test_ranks_times_micro_batches_give_one_curve_and_one_model(
    material: Material, tmp_path: Path, stage: int, batch: int, steps: int
):
    """1 rank x 4 micro-batches, 2 x 2, 4 x 1, and 3 ranks, which do not divide the batch.

    At a learning rate of 1e-4: at 1e-3 the updates themselves make 1.2e-5 of float32's rounding within five steps.
    """
    layouts = ((1, 4), (2, 2), (4, 1), (3, 1))
    for ranks, parts in layouts:
        one = case(material, tmp_path / f"{ranks}x{parts}", *settings_of(stage, batch, steps, parts, SLOW), stage=stage)
        assert run_ranks(ranks, run_cases, [one], timeout_seconds=3000) == [[0]] * ranks
    names = NAMES if stage == 2 else NAMES[:3]
    wanted, weights = curves(tmp_path / "1x4", *names), checkpoint_tensors(tmp_path / "1x4", steps)
    assert all(sorted(wanted[name]) == list(range(1, steps + 1)) for name in names)
    for ranks, parts in layouts[1:]:
        found, tensors = (
            curves(tmp_path / f"{ranks}x{parts}", *names),
            checkpoint_tensors(tmp_path / f"{ranks}x{parts}", steps),
        )
        for name in names:
            assert found[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-5), (ranks, parts, name)
        for name, tensor in weights.items():
            if name.startswith("weight/"):
                size = max(1.0, float(tensor.abs().max()))
                assert float((tensors[name] - tensor).abs().max()) <= 1e-4 * size, (ranks, parts, name)


@pytest.fixture(scope="module")
def killed(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """A whole run of 3 micro-batches a rank and step, and one killed in step 4, between its micro-batches."""
    folder = tmp_path_factory.mktemp("killed")
    settings = settings_of(2, 10, 6, 3, "train.checkpoint_every_steps=2", "train.deepspeed_config=launch/zero2.json")
    assert run_ranks(2, run_cases, [case(material, folder / "whole", *settings)], timeout_seconds=240) == [[0]] * 2
    dying = case(material, folder / "half", *settings, kill_at=4)
    with pytest.raises(RankFailure, match="rank 1"):
        run_ranks(2, run_cases, [dying], timeout_seconds=240)
    assert sorted(curves(folder / "half", "loss")["loss"]) == [1, 2, 3, 4]

    def resumed(name: str, *more: str) -> tuple[Path, Path]:
        shutil.copytree(folder / "half", folder / name)
        again = case(material, folder / name, *settings, *more)
        assert run_ranks(2, run_cases, [replace(again, kill_at=None)], timeout_seconds=240) == [[0]] * 2
        return folder / "whole", folder / name

    return resumed


def test_a_kill_between_micro_batches_and_a_resume_are_exact_to_the_bit(killed):
    whole, resumed = killed("same")
    first, second = checkpoint_tensors(whole, 6), checkpoint_tensors(resumed, 6)
    assert sorted(first) == sorted(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert curves(whole, *NAMES) == curves(resumed, *NAMES)


def test_a_resume_with_another_number_of_micro_batches_goes_on_with_the_same_losses(killed):
    whole, resumed = killed("other", "train.accumulation_steps=1", "train.micro_batch_size=4")
    first, second = curves(whole, *NAMES), curves(resumed, *NAMES)
    for name in NAMES:
        assert second[name] == pytest.approx(first[name], rel=1e-5, abs=1e-5), name


def test_separate_micro_batches_are_batches_of_their_own(material: Material, tmp_path: Path):
    """L_FGV falls with the number of candidates, which is halved; the counts are those of the whole step."""
    found = {}
    for kind in ("cached", "separate"):
        settings = settings_of(2, 8, 1, 2, f"train.accumulation={kind}")
        assert run_ranks(1, run_cases, [case(material, tmp_path / kind, *settings)], timeout_seconds=240) == [[0]]
        found[kind] = curves(tmp_path / kind, "fgv", "count/fgv/regions", "count/global_short/pairs")
    for name in ("count/fgv/regions", "count/global_short/pairs"):
        assert found["cached"][name] == found["separate"][name]
    assert found["cached"]["fgv"][1] > found["separate"]["fgv"][1] + 0.3


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_compiled_layers_take_micro_batches_too(material: Material, tmp_path: Path):
    """Kernels for several shapes are made first, which takes minutes on CPUs."""
    for parts in (1, 3):
        settings = settings_of(2, 9, 3, parts, "model.compile=true", "train.timeout_seconds=1500")
        one = case(material, tmp_path / str(parts), *settings)
        assert run_ranks(1, run_cases, [one], timeout_seconds=1500) == [[0]]
    found, wanted = (curves(tmp_path / name, *NAMES) for name in ("3", "1"))
    for name in NAMES:
        assert found[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-5), name


def note_of(*overrides: str, world_size: int = 1, fits: int = 4) -> str:
    settings = load_settings(Stage1Settings, None, ["data.patch_budgets=[48,80]", *overrides])
    division = make_division(settings, world_size, lambda: dict.fromkeys((48, 80), fits))
    return " | ".join(division_notes(settings, division))


def test_what_a_user_should_know_is_said_before_the_first_step():
    assert note_of("train.global_batch_size=8") == ""
    words = note_of("train.global_batch_size=64", "train.micro_batch_size={48: 16, 80: 5}", world_size=2)
    assert "2 of up to 16 images at 48, 7 of up to 5 images at 80" in words and "warning" not in words
    words = note_of("train.global_batch_size=64", "train.micro_batch_size=40", world_size=2)
    assert "warning: train.micro_batch_size is 40, larger than a rank's share of 32 of 64 images" in words
    words = note_of("train.global_batch_size=3", "train.accumulation_steps=2", world_size=4)
    assert "1 of them have no image" in words and "train.accumulation_steps is 2, and a rank has 1 of the 3" in words
    words = note_of("train.global_batch_size=64", "train.accumulation_steps=4", "train.accumulation=separate")
    assert "a pair meets 16 texts instead of 64" in words
    assert "4 of up to 4 images at 80" in note_of("train.global_batch_size=16", "train.micro_batch_size=auto")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.micro_batch_size=0"], ["micro_batch_size is 0", "at least 1"]),
        (["train.micro_batch_size={48: 0, 80: 1}"], ["at least 1"]),
        (["train.micro_batch_size=4", "train.accumulation_steps=2"], ["give one of them"]),
        (["train.micro_batch_size=viel"], ["micro_batch_size", "'viel'"]),
        (["train.micro_batch_size={48: 4}"], ["data.patch_budgets", "add 80"]),
        (["train.micro_batch_size=auto"], ["auto", "not one image of 80 patches", "gradient_checkpointing=true"]),
        (["train.accumulation=separate", "train.accumulation_steps=9", "train.global_batch_size=8"], ["is 9", "is 8"]),
        (["train.accumulation=together"], ["train.accumulation", "'cached'"]),
    ],
)
def test_a_wrong_division_is_named_with_value_rule_and_remedy(overrides: list[str], words: list[str]):
    with pytest.raises(SettingsError) as error:
        note_of(*overrides, fits=0)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("kind", [Stage1Settings, Stage2Settings])
def test_auto_takes_fewer_images_where_patches_are_more_or_memory_is_less(kind: type[Stage1Settings], monkeypatch):
    known: dict[int, list[Piece]] = {}  # tracing is most of the time, and does not depend on the memory

    def trace_once(settings: Stage1Settings, config: FGCLIP2Config, patches: int, *, products: bool) -> list[Piece]:
        if patches not in known:
            known[patches] = pieces_of(settings, config, patches, products=products)
        return known[patches]

    monkeypatch.setattr(fitting, "pieces_of", trace_once)
    settings = load_settings(kind, None, ["data.patch_budgets=[256,1024]", "train.global_batch_size=4096"])
    config = preset_config("tiny", 400)
    sharding = sharding_of(settings, config, 8, 2, on_cpu=False)
    much, little, none = (largest_micro_batches(settings, config, sharding, size) for size in (8e9, 2e9, 1e6))
    assert much[256] > much[1024] >= little[1024] > 0 and much[256] > little[256] > 0
    assert none == {256: 0, 1024: 0}
    assert Division(8, largest=much).parts(4096, 1024) >= Division(8, largest=much).parts(4096, 256)


def test_a_bank_that_the_runs_regions_cannot_fill_is_named():
    overrides = ["region_loss.memory_bank_size=5000", "train.global_batch_size=8"]
    settings = load_settings(Stage2Settings, None, overrides)
    assert bank_notes(settings, 2.5, 1000) == []
    (note,) = bank_notes(settings, 2.5, 200)
    assert note.startswith(
        "warning: region_loss.memory_bank_size is 5000, and the 200 steps of this run have about 4000"
    )
    assert bank_notes(load_settings(Stage1Settings, None, None), 0.0, 1) == []
