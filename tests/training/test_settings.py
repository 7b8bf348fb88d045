"""Settings: YAML and overrides, errors with the nearest right name, and none that nothing reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipeline.config import (
    SettingsError,
    Stage1Settings,
    Stage2Settings,
    dump_settings,
    flatten,
    load_settings,
    read_saved_settings,
    read_saved_values,
)
from pipeline.config import files as settings_files
from pipeline.config.paths import deepspeed_file
from pipeline.training.resume import nothing_left

ROOT = Path(__file__).resolve().parents[2]


def test_later_files_and_overrides_win(tmp_path: Path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("train: {seed: 1, max_steps: 5}\ndata: {shards: [一]}\n", encoding="utf-8")
    second.write_text("train: {seed: 2}\n", encoding="utf-8")
    settings = load_settings(Stage1Settings, [first, second], ["train.max_steps=7", "optimizer.epsilon=1e-9"])
    assert (settings.train.seed, settings.train.max_steps, settings.data.shards) == (2, 7, ["一"])
    assert settings.optimizer.epsilon == 1e-9


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.sead=1", ["train.sead", "train.seed"]),
        ("optimiser.epsilon=1", ["optimiser", "optimizer"]),
        ("train.seed=abc", ["train.seed", "'abc'", "integer"]),
        ("data.patch_budgets=[256,128]", ["data.patch_budgets", "ascending"]),
        ("train.precision=fp8", ["train.precision", "'fp8'", "bf16"]),
        ("train={precision: fp32, weights: bf16}", ["weights is bf16", "precision fp32", "weights=fp32"]),
        ("train.seed", ["no '='"]),
        ("train.epochs=null", ["epochs", "max_steps"]),
        ("data.shards=[a", ["data.shards", "YAML"]),
        ("train.seed=9223372036854775808", ["train.seed", "9223372036854775808"]),
        ('train.run_folder="a\\e[2J"', ["run_folder", "one line"]),
        ("optimizer.group_factors={text: 0, vision: 0, new_heads: 0, scales: 0}", ["nothing would train", "raise one"]),
        ("optimizer.group_factors={头: 1}", ["头"]),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_value_rule_and_remedy(override: str, words: list[str]):
    with pytest.raises(SettingsError) as error:
        load_settings(Stage2Settings, None, [override])
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_what_is_printed_loads_again():
    settings = load_settings(Stage2Settings, ROOT / "stages" / "stage2.yaml")
    assert Stage2Settings.model_validate(yaml.safe_load(dump_settings(settings))) == settings


@pytest.mark.parametrize("file", ["stages/stage1.yaml", "stages/stage2.yaml", "launch/demo/stage1.yaml",
                                  "launch/demo/stage2.yaml"])  # fmt: skip
def test_the_projects_own_files_are_valid(file: str):
    load_settings(Stage2Settings if "stage2" in file else Stage1Settings, ROOT / file)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_settings_of_fgclip1_go_over_those_of_either_stage(stage: str):
    kind = Stage2Settings if stage == "stage2" else Stage1Settings
    settings = load_settings(kind, [ROOT / "stages" / f"{stage}.yaml", ROOT / "stages" / "clip.yaml"])
    assert settings.model.family == "fgclip1" and settings.global_loss_kind == "softmax"


def test_no_setting_is_read_by_nothing():
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("pipeline", "stages")
        for path in (ROOT / folder).rglob("*.py")
        if path.parent.name != "config"
    )
    names = {name.rpartition(".")[2] for name in flatten(Stage2Settings())}
    # group_factors are read by the group's name, and what trains by the part's
    by_name = {"text", "vision", "new_heads", "scales", "adapters", "heads"}
    unread = {name for name in names - by_name if not re.search(rf"\.{name}\b", code)}
    assert unread == set()


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if train.seed had been data.start_seed, and train.max_steps train.last_step."""
    monkeypatch.setattr(
        settings_files, "RENAMED", {"data.start_seed": "train.seed", "train.last_step": "train.max_steps"}
    )


@pytest.mark.parametrize("source", ["override", "file"])
def test_a_setting_whose_name_has_changed_answers_with_the_new_name(renamed, tmp_path: Path, source: str):
    file = tmp_path / "设置.yaml"
    file.write_text("data: {start_seed: 3}\n" if source == "file" else "", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"data\.start_seed is called train\.seed now"):
        load_settings(Stage1Settings, file, ["data.start_seed=3"] if source == "override" else None)


@pytest.mark.parametrize("kind", [Stage1Settings, Stage2Settings])
def test_settings_that_a_run_saved_are_read_under_their_new_names(renamed, tmp_path: Path, kind: type[Stage1Settings]):
    file = tmp_path / "settings.yaml"
    values = kind().model_dump(mode="json")
    del values["train"]["seed"], values["train"]["max_steps"]
    values["data"]["start_seed"], values["train"]["last_step"] = 3, 70
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    settings = read_saved_settings(file)
    assert type(settings) is kind and settings.trains_regions == (kind is Stage2Settings)
    assert (settings.train.seed, settings.train.max_steps) == (3, 70)
    assert read_saved_values(file)["train"]["max_steps"] == 70


def test_a_setting_that_is_no_more_is_left_out_of_an_earlier_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "settings.yaml"
    file.write_text("train: {seed: 3, old_thing: 1}\nold_group: {a: 1}\n", encoding="utf-8")
    assert read_saved_settings(file).train.seed == 3
    assert "old_thing" in caplog.text and "old_group" in caplog.text


def test_the_projects_deepspeed_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(Stage1Settings, None, ["train.deepspeed_config=launch/zero3.json"])
    assert deepspeed_file(settings.train).is_file()
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "zero3.json").write_text("{}")
    assert deepspeed_file(settings.train).resolve() == tmp_path / "launch" / "zero3.json", "the user's own comes first"
    missing = load_settings(Stage1Settings, None, ["train.deepspeed_config=零.json"])
    with pytest.raises(SettingsError, match="零.json is not in .*zero1.json"):
        deepspeed_file(missing.train)


def test_a_run_that_is_done_says_so():
    assert nothing_left(19, 20) == []
    (line,) = nothing_left(20, 20)
    assert "step 20 is done" in line and "train.max_steps" in line
