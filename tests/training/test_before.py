"""What can be known is said before a run has a folder, or before its first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools import tokenizer as tokenizer_tool
from pipeline.config import (
    OptimizerSettings,
    SettingsError,
    Stage1Settings,
    Stage2Settings,
    as_overrides,
    load_settings,
)
from pipeline.data.index import index_folder
from pipeline.data.tokenizer import load_tokenizer
from pipeline.export.folder import export_model
from pipeline.training.before import check_inputs
from pipeline.training.optimizer import rate_notes
from tests.data.shards import write_shards
from tests.end_to_end.runs import Material
from tests.model.material import CAPTIONS, small_model
from tests.model.test_clip import clip_folder


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.deepspeed_config={tmp}/zero9.json", ["zero9.json", "launch/ has zero1.json"]),
        ("evaluation.tasks=scene", ["evaluation.tasks", "did you mean scenes"]),
        ("evaluation.pictures_every_steps=5 evaluation.data=null", ["pictures_every_steps is 5", "name a folder"]),
        ("evaluation.data={tmp}/评测", ["evaluation.data", "评测", "does not exist"]),
        ("evaluation.shards={tmp}/nothing", ["nothing", "does not exist"]),
        ("data.shards={tmp}/数据", ["数据", "does not exist"]),
        ("train.global_batch_size=61440", ["no batch of 61440", "lower train.global_batch_size"]),
        ("tokenizer.path={tmp}/nothing", ["nothing", "does not exist"]),
        ("model.start_from={tmp}", ["config.json"]),
        ("model.preset=huge", ["huge", "tiny"]),
        ("train.keep_best=x evaluation.every_steps=null", ["train.keep_best is x"]),
        ("tune.text=lora tune.lora_layers=[q_proj,门控]", ["门控", "there are fc1, fc2"]),
        ("tune.vision=last_n tune.last_n=9", ["tune.last_n is 9", "layers"]),
        ("tune.vision=frozen tune.text=frozen tune.heads=frozen tune.scales=frozen", ["all frozen"]),
        ("model.family=fgclip1", ["data.patch_budgets=[64]", "keep_aspect_ratio=false"]),
    ],
)
def test_wrong_names_stop_a_run_before_it_has_a_folder(
    material: Material, tmp_path: Path, override: str, words: list[str]
):
    asked = ("evaluation.every_steps=5", "evaluation.tasks=[scenes]", f"evaluation.data={material.test}")
    chosen = material.settings(tmp_path / "run", *asked)
    check_inputs(load_settings(Stage1Settings, None, chosen))  # without the fault nothing is wrong
    with pytest.raises(SettingsError) as raised:
        check_inputs(load_settings(Stage1Settings, None, [*chosen, *override.format(tmp=tmp_path).split()]))
    assert all(word in str(raised.value) for word in words), raised.value
    assert not (tmp_path / "run").exists()


def test_a_start_that_does_not_fit_stops_a_run_before_it_has_a_folder(material: Material, tmp_path: Path):
    clip_folder(tmp_path / "clip")
    chosen = material.settings(tmp_path / "run", f"model.start_from={tmp_path / '模型'}")
    settings = load_settings(Stage1Settings, None, [*chosen, f"model.start_from={tmp_path / 'clip'}"])
    with pytest.raises(SettingsError, match="'clip'.*model.family=fgclip1"):
        check_inputs(settings)
    size = load_tokenizer(material.folder / "tokenizer").vocab_size
    for name, texts in (("own", CAPTIONS * 3), ("另一个", [text[::-1] for text in CAPTIONS * 3])):
        tokenizer_tool.save(tokenizer_tool.train(texts, 150), tmp_path / name)
    own = load_tokenizer(tmp_path / "own")  # another size than the run's, and the same as the other's
    export_model(small_model(text_vocab_size=own.vocab_size), own, tmp_path / "模型", {})
    with pytest.raises(SettingsError, match=f"tokenizer has {size} ids.*was trained with {own.vocab_size}"):
        check_inputs(load_settings(Stage1Settings, None, chosen))
    # one of the same size whose ids mean other words: training would begin from noise
    assert load_tokenizer(tmp_path / "另一个").vocab_size == own.vocab_size
    with pytest.raises(SettingsError, match="另一个 gives other ids than the tokenizer that .*模型 was trained with"):
        check_inputs(load_settings(Stage1Settings, None, [*chosen, f"tokenizer.path={tmp_path / '另一个'}"]))
    check_inputs(load_settings(Stage1Settings, None, [*chosen, f"tokenizer.path={tmp_path / 'own'}"]))
    assert not (tmp_path / "run").exists()


def test_a_loss_without_members_stops_stage_2_before_it_has_a_folder(material: Material, tmp_path: Path):
    write_shards(tmp_path / "片", [[("en", 128)] * 9], regions=1)
    for path in (tmp_path / "片").glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b'"negatives"', b'"negativex"'))
    index_folder(tmp_path / "片")
    chosen = material.settings(tmp_path / "run", f"data.shards={tmp_path / '片'}")
    with pytest.raises(SettingsError, match="region_loss.fgt_weight is 0.5.*片.*0 negatives.*weights to 0"):
        check_inputs(load_settings(Stage2Settings, None, chosen))
    without = [f"region_loss.{name}_weight=0" for name in ("fgt", "cmr", "tic")]
    check_inputs(load_settings(Stage2Settings, None, [*chosen, *without]))
    check_inputs(load_settings(Stage1Settings, None, chosen))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "steps", "from_scratch", "words"),
    [
        ({"peak_learning_rate": 1e-3, "warmup_steps": 20}, 400, True, []),
        ({"peak_learning_rate": 1e-6, "warmup_steps": 300}, 10_000, False, []),
        ({"peak_learning_rate": 1e-3, "warmup_steps": 20}, 20, False, []),  # its last step has the peak
        ({"peak_learning_rate": 1e-3, "warmup_steps": 300}, 20, False, ["warmup_steps is 300 and the run has 20"]),
        ({"peak_learning_rate": 1e-6, "warmup_steps": 300}, 10_000, True, ["weights are random"]),
        ({"peak_learning_rate": 1e-6, "warmup_steps": 0}, 20, False, ["add up to 1e-05"]),
        ({"peak_learning_rate": 1e-6, "warmup_steps": 300}, 20, True, ["ends at 6.7e-08", "random", "add up to 7e-07"]),
    ],
)
def test_a_schedule_that_moves_nothing_is_said(settings: dict, steps: int, from_scratch: bool, words: list[str]):
    notes = rate_notes(OptimizerSettings(**settings), steps, from_scratch=from_scratch)
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True)), notes


def test_settings_may_be_written_with_dashes_and_a_single_folder_without_brackets():
    words = as_overrides(["--data.shards=片/train", "--config", "a.yaml", "-train.seed=3", "--dry-run"])
    assert words == ["data.shards=片/train", "--config", "a.yaml", "train.seed=3", "--dry-run"]
    settings = load_settings(Stage1Settings, None, [words[0], words[3], "evaluation.tasks=scenes"])
    assert settings.data.shards == ["片/train"] and settings.evaluation.tasks == ["scenes"]
