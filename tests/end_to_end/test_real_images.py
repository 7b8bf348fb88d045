"""Both stages on real photographs at up to 1,024 patches, and FG-OVD's files on the result."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.end_to_end.runs import curves, python
from tests.shared_data import shared

LEVELS = ("hard", "medium", "easy", "trivial")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of the images and one with shards/ and tokenizer/ made of them."""
    source, folder = shared("data/coco-mini"), tmp_path_factory.mktemp("coco")
    fgovd = ["--fgovd", *(source / "fgovd" / f"{name}.jsonl" for name in LEVELS)]
    for words in (
        ("build", "coco", "--images", source / "images", "--captions", source / "captions.json",
         "--instances", source / "instances.json", *fgovd, "--out", folder / "shards"),
        ("tokenizer", "--shards", folder / "shards", "--out", folder / "tokenizer", "--vocab-size", 1000),
    ):  # fmt: skip
        done = python("-m", "data_tools", *words)
        assert done.returncode == 0, done.stderr
    return source, folder


@pytest.mark.long
def test_both_stages_learn_from_photographs_of_1024_patches(coco: tuple[Path, Path], tmp_path: Path):
    source, folder = coco
    for stage, steps in (("stage1", 3), ("stage2", 3)):
        start = [] if stage == "stage1" else [f"model.start_from={tmp_path / 'stage1'}"]
        settings = (
            "model.preset=tiny", "model.gradient_checkpointing=false", f"data.shards=[{folder / 'shards'}]",
            f"tokenizer.path={folder / 'tokenizer'}", f"train.run_folder={tmp_path / stage}", "data.num_workers=0",
            f"train.max_steps={steps}", "train.global_batch_size=4", "train.log_every_steps=1",
            "train.precision=fp32", "tracking.enabled=false",
        )  # fmt: skip
        done = python(f"stages/{stage}.py", *settings, *start)
        assert done.returncode == 0, done.stderr
        names = ("loss", "global_short") if stage == "stage1" else ("loss", "global_short", "fgv", "fgt", "tic", "cmr")
        for name, values in curves(tmp_path / stage, *names).items():
            assert sorted(values) == [1, 2, 3], name
            assert all(math.isfinite(value) for value in values.values()), name
        # COCO has no long captions: absent is absent, so that loss has no members and says so
        assert set(curves(tmp_path / stage, "global_long")["global_long"].values()) == {0.0}
    done = python("-m", "pipeline.evaluation", "fgovd", tmp_path / "stage2", "--images", source,
                  *[word for name in LEVELS for word in ("--data", source / "fgovd" / f"{name}.jsonl")],
                  "--patch-budgets", 128, "--json", tmp_path / "fgovd.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "fgovd.json").read_text(encoding="utf-8"))["results"]["fgovd"]
    assert len(found["accounting"]) >= 1 and found["scores"]
