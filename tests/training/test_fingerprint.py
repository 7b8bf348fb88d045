"""A resume with other settings is exact, allowed with a line, or refused with both values and the way out."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import pytest

from pipeline.checkpoint.folder import list_checkpoints
from pipeline.config import SettingsError, Stage2Settings, load_settings
from pipeline.training.fingerprint import compare_fingerprints, make_fingerprint
from tests.end_to_end.runs import Material
from tests.ranks import run_ranks
from tests.training.small_runs import Case, case, run_cases

CHECKPOINT = Path("运行/checkpoints/step-00000004")


def fingerprint(material: Material, *overrides: str) -> dict:
    return make_fingerprint(load_settings(Stage2Settings, None, material.settings(Path("run"), *overrides)))


def lines(material: Material, *overrides: str, accepted: tuple[str, ...] = ()) -> list[str]:
    now = fingerprint(material, *overrides)
    return compare_fingerprints(fingerprint(material), now, list(accepted), CHECKPOINT)


@pytest.mark.parametrize(
    "override",
    [
        "train.deepspeed_config=launch/zero3.json",
        "data.num_workers=7",
        "train.log_every_steps=5",
        "tracking.enabled=false",
    ],
)
def test_what_changes_nothing_is_not_told(material: Material, override: str):
    assert lines(material, override) == []


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.precision=bf16", 'train.precision was "fp32" and is "bf16"'),
        ("train.max_steps=9", "the schedule of the learning rate changes"),
        ("optimizer.weight_decay=0.5", "optimizer.weight_decay was 0.001 and is 0.5"),
        ("region_loss.fgt_weight=0.25", "region_loss.fgt_weight was 0.5 and is 0.25"),
        ("global_loss.long_weight=2", "global_loss.long_weight"),
        ("data.max_negatives=3", "other negatives are drawn"),
    ],
)
def test_what_may_change_is_told_in_a_line(material: Material, override: str, told: str):
    (line,) = lines(material, override)
    assert told in line and line.startswith("from here on")


def test_the_type_of_the_weights_may_change(material: Material):
    then, now = (fingerprint(material, "train.precision=bf16", f"train.weights={kind}") for kind in ("fp32", "bf16"))
    (line,) = compare_fingerprints(then, now, [], CHECKPOINT)
    assert "go on in float32" in line and 'train.weights was "fp32" and is "bf16"' in line


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("train.seed=7", "train.seed"),
        ("train.global_batch_size=16", "train.global_batch_size"),
        ("data.patch_budgets=[48, 64]", "data.patch_budgets"),
        ("data.window_shards=3", "data.window_shards"),
        ("data.language_weights={en: 1, zh: 2}", "data.language_weights"),
        ("model.preset=base", "model.preset"),
    ],
)
def test_what_would_mean_other_samples_or_weights_is_refused_unless_it_is_accepted(
    material: Material, override: str, name: str
):
    with pytest.raises(SettingsError) as refused:
        lines(material, override)
    for words in (name, " was ", " and is ", str(CHECKPOINT), f"train.accept_changes=[{name}]"):
        assert words in str(refused.value)
    (line,) = lines(material, override, accepted=(name,))
    assert line.startswith("accepted") and name in line


def test_another_tokenizer_of_the_same_size_and_other_shards_are_refused(material: Material, tmp_path: Path):
    model = bytearray((material.folder / "tokenizer" / "tokenizer.model").read_bytes())
    model[40] ^= 1
    (tmp_path / "分词器").mkdir()
    (tmp_path / "分词器" / "tokenizer.model").write_bytes(model)
    with pytest.raises(SettingsError, match=r"tokenizer\.path was"):
        lines(material, f"tokenizer.path={tmp_path / '分词器'}")
    with pytest.raises(SettingsError, match=r"data\.shards was"):
        lines(material, f"data.shards=[{material.test}]")


def test_a_checkpoint_that_does_not_say_what_it_is_of_is_told(material: Material):
    (line,) = compare_fingerprints({}, fingerprint(material), [], CHECKPOINT)
    assert "are not compared" in line


def run_and_hear(cases: list[Case]) -> tuple[list[int | str], str]:
    """What the cases came to, and what they said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        outcomes = run_cases(cases)
    return outcomes, said.getvalue()


def test_a_true_resume_with_other_settings_is_refused_or_told_and_keeps_its_checkpoints(
    material: Material, tmp_path: Path
):
    """Each through the start of a run, so that nothing between the settings and the comparison is silent."""
    run = tmp_path / "run"
    shutil.copytree(material.folder / "tokenizer", tmp_path / "分词器")
    model = tmp_path / "分词器" / "tokenizer.model"
    model.write_bytes(model.read_bytes() + b"\xc0\x3e\x01")  # a field that nobody reads: the same words, another file
    refused = {
        f"tokenizer.path={tmp_path / '分词器'}": "tokenizer.path",
        f"data.shards=[{material.test}]": "data.shards",
        "train.seed=7": "train.seed",
        "train.global_batch_size=16": "train.global_batch_size",
        "data.patch_budgets=[48, 64]": "data.patch_budgets",
    }
    allowed = ("train.max_steps=3", "train.accept_changes=[train.seed]", "train.seed=7", "region_loss.fgt_weight=0.25")
    starts = [(), *((override,) for override in refused), allowed]
    cases = [case(material, run, "train.max_steps=2", *overrides) for overrides in starts]
    (((begun, *errors, gone_on), said),) = run_ranks(1, run_and_hear, cases, timeout_seconds=240)
    assert (begun, gone_on) == (0, 0)
    for name, error in zip(refused.values(), errors, strict=True):
        assert error.startswith("SettingsError") and "step-00000002 is of another run" in error
        assert f"{name} was " in error and f"train.accept_changes=[{name}]" in error
    assert [folder.name for folder in list_checkpoints(run)] == ["step-00000002", "step-00000003"]
    told = [line for line in said.splitlines() if line.startswith("resume: ")]
    assert any("accepted by train.accept_changes: train.seed was 0 and is 7" in line for line in told)
    assert any("region_loss.fgt_weight was 0.5 and is 0.25" in line for line in told)
