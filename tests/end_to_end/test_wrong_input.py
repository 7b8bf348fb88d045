"""Wrong input is one line that names value, rule and remedy, and a status that is not 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import Stage1Settings
from pipeline.data.tokenizer import load_tokenizer
from pipeline.model import FGCLIP2, preset_config
from pipeline.training.cli import main
from tests.end_to_end.runs import ROOT, Material, python


def refused(status: int, errors: str) -> str:
    """The error line of a command that must fail."""
    assert status == 2
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    return lines[0]


@pytest.fixture
def stage1(capsys: pytest.CaptureFixture[str]):
    """Stage 1's command line in this process, which must refuse; its error line."""

    def start(*words: str) -> str:
        return refused(main(Stage1Settings, ROOT / "stages" / "stage1.yaml", "", list(words)), capsys.readouterr().err)

    return start


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.shards=[{tmp}/nothing]", ["nothing", "does not exist"]),
        ("data.shards=[{tmp}]", ["holds no", "build"]),
        ("tokenizer.path={tmp}", ["tokenizer.model"]),
        ("train.global_batch_size=4000", ["4000"]),
        ("train.deepspeed_config={tmp}/zero9.json", ["zero9.json", "zero1.json"]),
        ("model.preset=huge", ["huge", "tiny"]),
        ("model.start_from={tmp}", ["config.json"]),
    ],
)
def test_a_stage_refuses(material: Material, tmp_path: Path, stage1, override: str, words: list[str]):
    settings = material.settings(tmp_path / "run", override.format(tmp=tmp_path))
    line = stage1(*settings)
    for word in words:
        assert word in line


def test_a_misspelt_key_of_a_file_is_named_with_the_nearest(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("optimizer:\n  peak_learnign_rate: 1.0e-4\n", encoding="utf-8")
    done = python("stages/stage2.py", "--config", file)  # as a user starts it
    line = refused(done.returncode, done.stderr)
    assert "peak_learnign_rate" in line and "optimizer.peak_learning_rate" in line


def test_more_separate_micro_batches_than_the_batch_has_images_are_refused(material: Material, tmp_path: Path, stage1):
    settings = ("train.accumulation_steps=16", "train.accumulation=separate")
    line = stage1(*material.settings(tmp_path / "run", *settings))
    assert "train.global_batch_size is 8" in line and "accumulation_steps" in line


def test_a_checkpoint_of_another_width_is_refused_with_its_shapes(material: Material, tmp_path: Path, stage1):
    config = preset_config("tiny", load_tokenizer(material.folder / "tokenizer").vocab_size)
    config.vision_config.hidden_size = config.text_config.hidden_size = config.text_config.projection_size = 64
    FGCLIP2(config).save_pretrained(tmp_path / "narrow")
    written = json.loads((tmp_path / "narrow" / "config.json").read_text(encoding="utf-8"))
    for part in ("vision_config", "text_config"):
        written[part]["hidden_size"] = 128
    written["text_config"]["projection_size"] = 128
    (tmp_path / "narrow" / "config.json").write_text(json.dumps(written), encoding="utf-8")
    line = stage1(*material.settings(tmp_path / "run", f"model.start_from={tmp_path / 'narrow'}"))
    assert "64" in line and "128" in line


def test_a_coco_file_whose_images_are_missing_stops_above_the_limit(tmp_path: Path):
    (tmp_path / "images").mkdir()
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 64, "height": 48} for i in range(5)]
    captions = [{"id": i, "image_id": i, "caption": "a red 苹果 on a table"} for i in range(5)]
    for name, content in (("captions", {"images": images, "annotations": captions}),
                          ("instances", {"images": images, "annotations": [], "categories": []})):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    done = python("-m", "data_tools", "build", "coco", "--images", tmp_path / "images", "--captions",
                  tmp_path / "captions.json", "--instances", tmp_path / "instances.json", "--out",
                  tmp_path / "out")  # fmt: skip
    line = refused(done.returncode, done.stderr)
    assert "5" in line and "missing" in line


def test_a_folder_in_the_place_of_the_trained_model_is_named_before_the_first_step(tmp_path: Path, stage1):
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "final" / "笔记.txt").write_text("mine")
    line = stage1(f"train.run_folder={tmp_path}/run", "data.shards=[nowhere]")
    assert "run/final exists and is no earlier export" in line
    assert (tmp_path / "run" / "final" / "笔记.txt").read_text() == "mine"


def test_a_run_folder_that_is_not_utf8_is_named(stage1):
    line = stage1("train.run_folder=/tmp/\udcff", "data.shards=[nowhere]")
    assert "train.run_folder" in line and "\\udcff" in line
