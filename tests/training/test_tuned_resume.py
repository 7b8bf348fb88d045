"""A run with low-rank additions that is stopped goes on to the bit, under ZeRO 2 on two processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.data.tokenizer import load_tokenizer
from pipeline.export.folder import export_model
from pipeline.model import FGCLIP2, preset_config
from tests.end_to_end.runs import Material, checkpoint_tensors
from tests.ranks import run_ranks
from tests.training.small_runs import case, run_cases

STEPS = 4
LORA = ("tune.vision=lora", "tune.text=lora", "tune.lora_rank=4", "model.gradient_checkpointing=true",
        f"train.max_steps={STEPS}", "optimizer.layer_decay=0.8",
        "train.deepspeed_config=launch/zero2.json")  # fmt: skip


@pytest.mark.long
def test_a_stopped_run_with_additions_goes_on_to_the_bit(material: Material, tmp_path: Path):
    tokenizer = load_tokenizer(material.folder / "tokenizer")
    torch.manual_seed(0)
    start = FGCLIP2.from_scratch(preset_config("tiny", tokenizer.vocab_size)).eval()
    export_model(start, tokenizer, tmp_path / "start", {})
    settings = (f"model.start_from={tmp_path / 'start'}", *LORA)
    whole, again = (case(material, tmp_path / name, *settings) for name in ("whole", "again"))
    stopped = case(material, tmp_path / "stopped", *settings, stop_at=2)
    assert run_ranks(2, run_cases, [whole, again, stopped], timeout_seconds=240) == [[0, 0, 143]] * 2
    assert run_ranks(2, run_cases, [replace(stopped, stop_at=None)], timeout_seconds=240) == [[0]] * 2
    expected = checkpoint_tensors(tmp_path / "whole", STEPS)
    assert any(".lora_B." in name for name in expected)
    for name in ("again", "stopped"):
        found = checkpoint_tensors(tmp_path / name, STEPS)
        assert [key for key, tensor in expected.items() if not torch.equal(tensor, found[key])] == [], name
