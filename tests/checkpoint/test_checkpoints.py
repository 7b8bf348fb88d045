"""Checkpoints on disk: nothing damaged is read, slices come together, copies are whole, old lines step aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint.folder import (
    OBJECTIVE,
    checkpoint_folder,
    find_resume,
    list_checkpoints,
    prune_checkpoints,
    set_aside_later,
)
from pipeline.checkpoint.record import RECORD, CheckpointError, CheckpointRecord, StateRecord, read_record
from pipeline.checkpoint.remote import copy_out, fetch_newer
from pipeline.checkpoint.tensors import CheckpointTensors, read_weights, write_tensors

WEIGHT = torch.arange(12.0).reshape(3, 4)


def make(run: Path, step: int, cut: int = 5) -> Path:
    """A checkpoint of one parameter, whose slices are on two ranks."""
    folder = checkpoint_folder(run, step)
    folder.mkdir(parents=True)
    flat = WEIGHT.reshape(-1) + step
    files = {
        "tensors-00000-of-00002.safetensors": {"weight/a@0": flat[:cut]},
        "tensors-00001-of-00002.safetensors": {f"weight/a@{cut}": flat[cut:]},
        OBJECTIVE: {"margin/value": torch.zeros(1)},
    }
    written = {name: write_tensors(folder / name, tensors) for name, tensors in files.items()}
    record = CheckpointRecord(
        format=2, step=step, state=StateRecord(step=step), world_size=2, files=written, shapes={"a": [3, 4]}
    )
    (folder / RECORD).write_text(json.dumps(record.to_json()), encoding="utf-8")
    return folder


def test_slices_of_several_ranks_come_together_and_parts_are_read_alone(tmp_path: Path):
    folder = make(tmp_path, 3)
    assert torch.equal(read_weights(folder)["a"], WEIGHT + 3)
    with CheckpointTensors(folder) as tensors:
        assert torch.equal(tensors.read_part("weight", "a", 4, 7), torch.tensor([7.0, 8.0, 9.0]))
        assert tensors.read_part("weight", "a", 12, 12).numel() == 0


@pytest.mark.parametrize("damage", ["step", "list", "null", "text", "nested", "bit", "missing", "negative"])
def test_a_damaged_record_is_named_and_the_checkpoint_before_is_taken(tmp_path: Path, damage: str):
    make(tmp_path, 3)
    path = make(tmp_path, 6) / RECORD
    content = json.loads(path.read_text(encoding="utf-8"))
    if damage == "step":
        path.write_text(json.dumps(content | {"step": 4}))
    elif damage == "negative":
        path.write_text(json.dumps(content | {"state": content["state"] | {"step": -1}}))
    elif damage == "missing":
        path.write_text(json.dumps({name: value for name, value in content.items() if name != "files"}))
    elif damage == "bit":
        data = bytearray(path.read_bytes())
        data[data.index(b'"samples_seen": 0') + 16] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes({"list": b"[]", "null": b"null", "text": b"\xff\xfe\x00", "nested": b"[" * 10**5}[damage])
    with pytest.raises(CheckpointError, match=str(path.parent)):
        read_record(path.parent)
    assert find_resume(tmp_path, "auto") == checkpoint_folder(tmp_path, 3)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_from_scratch(tmp_path: Path):
    for step in (3, 6):
        (make(tmp_path, step) / RECORD).write_text("[]")
    with pytest.raises(CheckpointError, match="every checkpoint of .* is damaged.*train.resume=never"):
        find_resume(tmp_path, "auto")
    assert find_resume(tmp_path, "never") is None


def test_a_checkpoint_under_another_step_s_name_is_not_taken(tmp_path: Path):
    make(tmp_path, 3).rename(checkpoint_folder(tmp_path, 9))
    with pytest.raises(CheckpointError, match="holds a checkpoint of step 3"):
        find_resume(tmp_path, "auto")


def test_a_gap_between_slices_is_named(tmp_path: Path):
    folder = make(tmp_path, 3)
    write_tensors(folder / "tensors-00001-of-00002.safetensors", {"weight/a@7": torch.zeros(5)})
    with pytest.raises(CheckpointError, match="weight/a is there in part only"):
        CheckpointTensors(folder)


def test_a_run_that_goes_back_keeps_its_new_checkpoints_and_sets_the_old_line_aside(tmp_path: Path):
    run = tmp_path / "运行"
    for step in (2, 4, 6):
        make(run, step)
    aside = set_aside_later(run, 2)
    assert aside is not None and sorted(path.name for path in aside.iterdir()) == ["step-00000004", "step-00000006"]
    make(run, 3)
    prune_checkpoints(run, 1, None)
    assert [path.name for path in list_checkpoints(run)] == ["step-00000003"]
    assert find_resume(run, "auto") == checkpoint_folder(run, 3)
    assert set_aside_later(run, None).name == "abandoned-2" and set_aside_later(run, None) is None


def test_the_newest_whole_copy_of_both_places_wins(tmp_path: Path):
    url, run, other = f"file://{tmp_path / '远程'}", tmp_path / "run", tmp_path / "other"
    for step in (2, 4, 6):
        copy_out(make(run, step), url)
    (tmp_path / "远程" / "step-00000006" / OBJECTIVE).write_bytes(b"cut")
    make(other, 2)
    assert fetch_newer(url, other) == checkpoint_folder(other, 4)
    assert torch.equal(read_weights(checkpoint_folder(other, 4))["a"], WEIGHT + 4)
    assert fetch_newer(url, run) is None
    with pytest.raises(CheckpointError, match="cannot be read"):
        fetch_newer("不存在://bucket", other)


def test_a_copy_without_its_record_is_none(tmp_path: Path):
    url, run = f"file://{tmp_path / 'far'}", tmp_path / "run"
    copy_out(make(run, 2), url)
    (tmp_path / "far" / "step-00000002" / RECORD).unlink()
    assert fetch_newer(url, tmp_path / "new") is None
