"""The plan's command: settings as the stages take them, an epoch in lines for people, errors of one line."""

from __future__ import annotations

import pytest

from pipeline.config import Stage1Settings, dump_settings
from pipeline.data.index import index_folder
from pipeline.data.plan.__main__ import main
from tests.data.shards import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("数据") / "分片"
    write_shards(folder, [[("en", 128)] * 6 + [("zh", 256)] * 5 for _ in range(4)])
    index_folder(folder)
    return folder


def test_an_epoch_is_told_by_the_settings_of_a_stage(shards, tmp_path, capsys):
    saved = tmp_path / "settings.yaml"
    saved.write_text(dump_settings(Stage1Settings()), encoding="utf-8")
    overrides = [f"data.shards=[{shards}]", "train.global_batch_size=8", "data.window_shards=2"]
    assert main(["--config", str(saved), *overrides, "--batches", "2"]) == 0
    text = capsys.readouterr().out
    assert "epoch 0: 5 steps of 8 images; 44 samples in 4 shards" in text
    assert "en at 128 patches: 3 batches, 0 samples over" in text
    assert "zh at 256 patches: 2 batches, 4 samples over" in text
    assert "batch 1: " in text and "分片" in text
    dashed = [f"--data.shards={shards}", *(f"--{word}" for word in overrides[1:])]  # one folder without brackets
    assert main(["--config", str(saved), *dashed, "--batches", "2"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.levels=[128]"], "setting data.levels is called data.patch_budgets now"),
        (["shards/train"], "write group.name=value"),
        (["data.shards=[nowhere]"], "shard folder nowhere does not exist"),
        (["train.global_batch_size=4000"], "lower train.global_batch_size"),
    ],
)
def test_what_does_not_fit_is_one_line(shards, capsys, arguments, words):
    assert main([f"data.shards=[{shards}]", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1
