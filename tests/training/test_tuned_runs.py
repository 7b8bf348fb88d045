"""Runs that train a part of the model: under every ZeRO stage, stopped and gone on, exported, with a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.folder import checkpoint_folder, list_checkpoints
from pipeline.checkpoint.tensors import read_weights
from pipeline.config import read_saved_settings
from pipeline.data.tokenizer import load_tokenizer
from pipeline.export.adapter import export_adapter
from pipeline.export.folder import ExportError, export_model, probe
from pipeline.export.run import export_run
from pipeline.model import FGCLIP2, preset_config
from pipeline.tuning.lora import merged_weights
from tests.end_to_end.runs import Material, checkpoint_tensors, curves
from tests.ranks import run_ranks
from tests.training.small_runs import case, run_cases

STEPS, STOP = 4, 3
LORA = ("tune.vision=lora", "tune.text=lora", "tune.lora_rank=4", "model.gradient_checkpointing=true",
        f"train.max_steps={STEPS}", "optimizer.layer_decay=0.8")  # fmt: skip
TEACHER = ("teacher.weight=50", "tune.text=frozen", "tune.vision=last_n", "tune.last_n=1", "train.max_steps=3")
UNMOVED = ("tune.vision=frozen", "tune.text=frozen", "tune.heads=frozen", "optimizer.peak_learning_rate=1e-12",
           "evaluation.every_steps=1", "train.keep_best=validation/loss",
           "train.stop_after_worse=2", "evaluation.validation_batches=1", "train.max_steps=6")  # fmt: skip
NAMES = ("loss", "global_short", "global_long", "fgv", "fgt", "cmr", "tic")


@pytest.fixture(scope="module")
def folder(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, on two processes."""
    folder = tmp_path_factory.mktemp("tuned")
    tokenizer = load_tokenizer(material.folder / "tokenizer")
    torch.manual_seed(0)
    model = FGCLIP2.from_scratch(preset_config("tiny", tokenizer.vocab_size)).eval()
    export_model(model, tokenizer, folder / "start", {})
    start = f"model.start_from={folder / 'start'}"

    def run(name: str, *settings: str, **events: int):
        return case(material, folder / name, start, *settings, **events)

    zero = {stage: f"train.deepspeed_config=launch/zero{stage}.json" for stage in (1, 2, 3)}
    cases = [
        *(run(f"zero{stage}", *LORA, setting) for stage, setting in zero.items()),
        run("stopped", *LORA, zero[2], stop_at=STOP - 1),
        run("taught", *TEACHER),
        run("taught-in-two", *TEACHER, "train.accumulation_steps=2"),
        run("unmoved", *UNMOVED, f"evaluation.shards=[{material.test}]", stage=1),
    ]
    outcomes = run_ranks(2, run_cases, cases, timeout_seconds=240)
    assert outcomes[0][:3] == [0, 0, 0] and outcomes[0][4:] == [0, 0, 0], outcomes
    assert outcomes[1][3] == 143
    assert list_checkpoints(folder / "stopped")[-1].name == f"step-{STOP:08d}"
    again = run_ranks(2, run_cases, [replace(cases[3], stop_at=None)], timeout_seconds=240)
    assert again == [[0]] * 2
    return folder


@pytest.mark.parametrize("stage", [1, 3])
def test_zero_stages_agree_on_runs_with_additions(folder: Path, stage: int):
    ours, theirs = curves(folder / f"zero{stage}", *NAMES), curves(folder / "zero2", *NAMES)
    for name in NAMES:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_is_frozen_does_not_move_and_has_no_moments(folder: Path, stage: int):
    found, start = checkpoint_tensors(folder / f"zero{stage}", STEPS), load_file(folder / "start" / "model.safetensors")
    frozen = [name for name in found if name.startswith("weight/") and ".base_layer." in name]
    assert len(frozen) > 20
    for name in frozen:
        assert torch.equal(found[name], start[name.removeprefix("weight/").replace(".base_layer.", ".")]), name
    with_moments = {name.removeprefix("exp_avg/") for name in found if name.startswith("exp_avg/")}
    assert not any(".base_layer." in name or ".embeddings." in name for name in with_moments)
    assert any(".lora_A." in name for name in with_moments) and "longtext_head.weight" in with_moments


def test_the_additions_of_each_depth_have_their_gradient_norm_under_every_stage(folder: Path):
    name = "gradient_norm/adapters_before_end_1"
    norms = [list(curves(folder / f"zero{stage}", name)[name].values()) for stage in (1, 2, 3)]
    assert norms[0][0] > 0 and norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert norms[2] == pytest.approx(norms[0], rel=1e-4)


def test_the_export_is_the_merged_model(folder: Path, tmp_path: Path):
    weights = merged_weights(
        read_weights(checkpoint_folder(folder / "zero2", STEPS)),
        read_saved_settings(RunFolder.at(folder / "zero2").settings).tune,
    )
    out = export_run(folder / "zero2", tmp_path / "out")
    for exported in (load_file(out / "model.safetensors"), load_file(folder / "zero2" / "final" / "model.safetensors")):
        assert sorted(exported) == sorted(weights)
        assert all(torch.equal(exported[name].flatten(), weight.flatten()) for name, weight in weights.items())
    assert not any("lora" in name for name in weights)


def test_the_adapter_alone_gives_the_same_model_by_peft(folder: Path, tmp_path: Path):
    out = export_adapter(folder / "zero2", tmp_path / "adapter")
    read = PeftModel.from_pretrained(FGCLIP2.load(folder / "start"), str(out)).base_model.model
    merged = FGCLIP2.load(folder / "zero2")
    before = probe(FGCLIP2.load(folder / "start"))
    for (name, ours), theirs in zip(probe(merged).items(), probe(read).values(), strict=True):
        assert (ours - theirs).abs().max() < 1e-5 < (ours - before[name]).abs().max(), name
    with pytest.raises(ExportError, match="tune.text=frozen"):
        export_adapter(folder / "taught", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_teacher_is_the_start_and_does_not_depend_on_micro_batches(folder: Path):
    names = ("loss", "teacher_short", "teacher_long", "teacher_region")
    once, twice = (
        {name: list(curve.values()) for name, curve in curves(folder / run, *names).items()}
        for run in ("taught", "taught-in-two")
    )
    for name in names[1:]:
        assert abs(once[name][0]) < 1e-12 and once[name][-1] > 1e-9, name
    for name in names:
        assert twice[name] == pytest.approx(once[name], rel=1e-4, abs=1e-9), name


def test_a_run_ends_when_its_score_has_stopped_getting_better(folder: Path):
    """Weights that cannot move: the first evaluation is the best, and the run ends after two more."""
    assert list_checkpoints(folder / "unmoved")[-1].name == "step-00000003"
    assert (folder / "unmoved" / "final" / "model.safetensors").is_file()


def test_another_tokenizer_of_the_same_size_is_refused_with_both_paths(
    material: Material, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = tmp_path / "分词器"
    saved = load_tokenizer(material.folder / "tokenizer")
    saved.save(other)
    (other / "tokenizer.model").unlink()
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    assert '"▁red"' in text and '"▁blue"' in text
    swapped = text.replace('"▁red"', '"▁?"').replace('"▁blue"', '"▁red"').replace('"▁?"', '"▁blue"')
    (other / "tokenizer.json").write_text(swapped, encoding="utf-8")
    assert load_tokenizer(other).vocab_size == saved.vocab_size
    settings = (f"model.start_from={folder / 'start'}", f"tokenizer.path={other}")
    (outcome,) = run_ranks(1, run_cases, [case(material, tmp_path / "run", *settings, "train.max_steps=1")])
    assert "SettingsError" in outcome[0] and str(other) in outcome[0] and str(folder / "start") in outcome[0]
