"""Shards of more languages than English and Chinese are indexed, planned and trained on like those two."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from data_tools.shards import ShardWriter
from pipeline.config import DataSettings
from pipeline.data.loader import Reading, make_loader
from pipeline.data.manifest import load_manifest
from pipeline.data.reader import iterate_shards
from pipeline.data.tokenizer import load_tokenizer
from tests.end_to_end.runs import Material, curves
from tests.ranks import run_ranks
from tests.training.small_runs import case, run_cases

TAGS = ("en", "zh", "de", "pt-BR")
STEPS = 8


def in_four_languages(material: Material, folder: Path) -> Path:
    """The scenes with their captions called by other names: what matters here is that nothing knows two names alone."""
    with ShardWriter(folder, samples_per_shard=40) as writer:
        for number, (key, image, sample, _) in enumerate(iterate_shards(material.train)):
            writer.write(key, image, "jpg", replace(sample, language=TAGS[number % len(TAGS)]))
    return folder


def test_both_stages_train_on_four_languages_a_batch_of_one_each(material: Material, tmp_path: Path):
    shards = in_four_languages(material, tmp_path / "四种语言")
    manifest = load_manifest(shards)
    assert manifest.languages == TAGS and manifest.counts.sum((0, 2)).tolist() == [40] * 4
    data = DataSettings(shards=[str(shards)], patch_budgets=[64], num_workers=0)
    with make_loader(Reading(data, load_tokenizer(material.folder / "tokenizer"), (64, 196), 0, 8)) as loader:
        assert {next(loader).language for _ in range(STEPS)} == set(TAGS)
    settings = (f"data.shards=[{shards}]", "data.patch_budgets=[64]", f"train.max_steps={STEPS}",
                "train.checkpoint_every_steps=null")  # fmt: skip
    runs = [case(material, tmp_path / f"stage{stage}", *settings, stage=stage) for stage in (1, 2)]
    assert run_ranks(2, run_cases, runs, timeout_seconds=300) == [[0, 0]] * 2
    for stage in (1, 2):
        losses = curves(tmp_path / f"stage{stage}", "loss")["loss"]
        assert sorted(losses) == list(range(1, STEPS + 1)) and all(map(math.isfinite, losses.values()))
