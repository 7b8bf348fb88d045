"""An exported folder is the model: plain transformers runs it, every key reads back, and a wrong one is never left."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import zlib

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.checkpoint.folder import OBJECTIVE, checkpoint_folder
from pipeline.checkpoint.record import RECORD
from pipeline.export import folder as export
from pipeline.export.command import main
from pipeline.export.folder import ExportError, export_model, verify_export
from pipeline.model import FGCLIP2
from tests.model.material import LONG, SHORT, picture, small_model, small_tokenizer

CARD = {
    "run_folder": "runs/stage2",
    "step": 120,
    "mlflow_run": "0123456789abcdef",
    "settings": "data:\n  shards: [shards/train]\n  levels: [16, 64]\ntrain:\n  seed: 3\n",
    "scores": {"fgovd/hard": 0.5125},
    "metrics": {"loss/total": 1.25, "note": "not a number"},
}

# As a program calls that knows transformers and not this model.
OTHER_WAYS = """
from transformers import AutoProcessor, pipeline
texts = ["A RED cup", "一只红色的杯子"]
inputs = AutoProcessor.from_pretrained(FOLDER)(images=image, text=texts, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits_per_image
ask = pipeline("zero-shot-image-classification", model=FOLDER, trust_remote_code=True)
found = [one["score"] for one in ask(image, candidate_labels=texts, hypothesis_template="{}")]
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model(tokenizer):
    return small_model(2, text_vocab_size=tokenizer.vocab_size)


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    return export_model(model, tokenizer, tmp_path_factory.mktemp("export") / "out", CARD)


def test_the_lines_of_the_card_run_with_transformers_alone(folder, model, tmp_path):
    """In a process without the project on its path; its results equal the model's."""
    image = picture(90, 70)
    image.save(tmp_path / "photo.png")
    card = (folder / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    script = lines.replace('"FOLDER"', repr(str(folder))).replace('"IMAGE"', repr(str(tmp_path / "photo.png")))
    script += (
        "import sys, torch\nassert not [m for m in sys.modules if m.split('.')[0] in ('pipeline', 'data_tools')]\n"
    )
    script += OTHER_WAYS.replace("FOLDER", repr(str(folder)))
    script += f"torch.save([scores, regions, dense, logits, found], {str(tmp_path / 'found.pt')!r})\n"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores, regions, dense, logits, found = torch.load(tmp_path / "found.pt", weights_only=True)
    ours = FGCLIP2.load(folder)
    texts = ours.encode_text(["a red cup", "一只红色的杯子"]).embeds
    torch.testing.assert_close(scores, ours.encode_image(image).embeds @ texts.T, atol=1e-5, rtol=0)
    image_embeds = ours.encode_image(image, max_num_patches=64).embeds  # the processor's own number
    expected = image_embeds @ texts.T * ours.logit_scale.exp() + ours.logit_bias
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    expected = expected.softmax(-1)[0].sort(descending=True).values
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=0)
    boxes = [[0.1, 0.1, 0.6, 0.8]]
    expected = ours.encode_regions(image, boxes, box_format="normalised").embeds
    torch.testing.assert_close(regions, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(dense, ours.dense_map(image, "a red cup").features, atol=1e-5, rtol=0)


def test_plain_tokenizer_and_processor_calls_give_the_inputs_of_training(folder, tokenizer):
    from transformers import AutoImageProcessor, AutoTokenizer

    from pipeline.data.patches import patchify
    from pipeline.data.tokenizer import load_tokenizer

    texts = ["a red cup", "一只红色的杯子", "a cup " * 40]
    plain = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for length in (SHORT, LONG):
        found = plain(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        assert torch.equal(found.input_ids, tokenizer(texts, length))
        assert torch.equal(load_tokenizer(folder)(texts, length), tokenizer(texts, length))
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    image = picture(120, 60)
    pixels, mask, grid = patchify(image, 64)
    found = processor(image, return_tensors="pt")
    assert found.spatial_shapes.tolist() == [list(grid)]
    assert torch.equal(found.pixel_attention_mask[0], torch.as_tensor(mask))
    torch.testing.assert_close(found.pixel_values[0], torch.as_tensor(pixels), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_calls_of_the_public_code_work_and_give_the_same_features(folder):
    from transformers import AutoImageProcessor, AutoTokenizer

    model = FGCLIP2.from_pretrained(folder)
    image, texts = picture(120, 60), ["a red cup", "一只红色的杯子"]
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    images = processor(images=image, max_num_patches=32, return_tensors="pt")
    expected = model.encode_image(image, max_num_patches=32).embeds
    torch.testing.assert_close(model.get_image_features(**images), expected)
    height, width = images["spatial_shapes"][0].tolist()
    dense = model.get_image_dense_feature(**images)[0, : height * width]
    dense = (dense / dense.norm(dim=-1, keepdim=True)).view(height, width, -1)
    torch.testing.assert_close(dense, model.dense_map(image, "cup", max_num_patches=32).features)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for walk_type, kind, length in (("short", "short", SHORT), ("box", "region", SHORT), ("long", "long", LONG)):
        ids = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        found = model.get_text_features(**ids, walk_type=walk_type)
        torch.testing.assert_close(found, model.encode_text(texts, kind=kind).embeds)


def test_the_configuration_has_the_fields_of_the_public_checkpoints(folder, model):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["keep_len"] == 4
    assert config["text_config"]["longtext_len"] == LONG
    assert config["text_config"]["max_position_embeddings"] == SHORT
    assert config["vision_config"]["num_patches"] == 16
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling.FGCLIP2"
    assert FGCLIP2.load(folder).patch_budgets == (16, 64)


def test_every_file_can_be_read_by_who_may_read_new_files(folder, tmp_path):
    (tmp_path / "new").touch()
    mode = (tmp_path / "new").stat().st_mode
    assert {file.name: oct(file.stat().st_mode) for file in folder.iterdir()} == {
        file.name: oct(mode) for file in folder.iterdir()
    }


def test_nothing_of_this_machine_is_written(folder, tmp_path_factory):
    for file in folder.iterdir():
        if file.suffix in (".json", ".md"):
            assert str(tmp_path_factory.getbasetemp()) not in file.read_text(encoding="utf-8"), file


def test_every_local_import_of_the_code_is_in_the_folder(folder):
    for file in folder.glob("*.py"):
        source = file.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (pipeline|data_tools|stages)\b", source, re.MULTILINE), file
        for name in re.findall(r"^\s*from \.(\w+) import", source, re.MULTILINE):
            assert (folder / f"{name}.py").is_file(), f"{file.name} imports {name}"


def test_the_card_tells_data_recipe_scores_and_run(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    for words in (
        "shards/train",
        "| seed | 3 |",
        "fgovd/hard | 0.5125",
        "0123456789abcdef",
        "loss/total | 1.25",
        "120",
    ):
        assert words in card, words
    assert "not a number" not in card


def test_the_card_names_size_languages_limits_and_eight_scores_with_rows_and_chance(model, tokenizer, tmp_path):
    scores = {f"scenes/{name}": 0.25 for name in ("trivial", "easy", "medium", "hard", *"abcdef")}
    facts = {"scenes/hard": {"n": 2217, "chance": 1 / 11, "kind": "share"}, "scenes/a": {"n": 3, "kind": "number"}}
    told = {"scores": scores, "score_facts": facts, "languages": ["en", "zh", "de"]}
    out = export_model(model, tokenizer, tmp_path / "out", CARD | told)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "language: [en, zh, de]" in card and "| languages | en, zh, de |" in card and "## Limits" in card
    assert "width 24 and 2 layers" in card and f"{sum(p.numel() for p in model.parameters()):,}" in card
    assert "| scenes/hard | 25.0 % | 2217 | 9.1 % |" in card and "| scenes/a | 0.2500 | 3 |  |" in card
    places = [card.index(f"scenes/{name} |") for name in ("hard", "medium", "easy", "trivial")]
    assert places == sorted(places)
    assert "scenes/e |" not in card and "2 more are in the run's scores.json" in card


def test_without_scores_the_card_says_so(model, tokenizer, tmp_path):
    out = export_model(model, tokenizer, tmp_path / "out", {})
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Not evaluated yet." in card and "Not recorded." in card


def test_large_models_are_written_in_shards(model, tokenizer, tmp_path, monkeypatch):
    assert export.MAX_SHARD_SIZE == "5GB"
    monkeypatch.setattr(export, "MAX_SHARD_SIZE", "30KB")
    out = export_model(model, tokenizer, tmp_path / "out", CARD)
    names = set()
    for file in out.glob("model-*.safetensors"):
        with safe_open(file, "pt") as opened:
            names |= set(opened.keys())
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert names == set(model.state_dict())


def test_an_earlier_export_is_replaced_and_nothing_is_left_beside_it(model, tokenizer, tmp_path):
    out = tmp_path / "out"
    export_model(small_model(9, text_vocab_size=tokenizer.vocab_size), tokenizer, out, {})
    export_model(model, tokenizer, out, CARD)
    verify_export(model, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_no_export_is_not_touched(model, tokenizer, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ExportError, match="no earlier export"):
        export_model(model, tokenizer, tmp_path, CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_tokenizer_of_another_model_is_refused(tokenizer, tmp_path):
    with pytest.raises(ExportError, match="and the model 77"):
        export_model(small_model(text_vocab_size=77), tokenizer, tmp_path / "out", CARD)


def test_a_changed_weight_is_found_and_a_failed_export_leaves_the_earlier_one(model, tokenizer, tmp_path, monkeypatch):
    out = export_model(model, tokenizer, tmp_path / "out", CARD)
    other = small_model(2, text_vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        other.longtext_head.bias[0] += 1e-6
    with pytest.raises(ExportError, match=r"longtext_head\.bias reads back"):
        verify_export(other, out)

    def cut(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(FGCLIP2, "save_pretrained", cut)
    with pytest.raises(OSError, match="No space"):
        export_model(other, tokenizer, out, CARD)
    verify_export(model, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def write_run(folder, model, tokenizer_folder, stage: int) -> None:
    """A run's folder as training leaves it, in the form that pipeline/checkpoint/folder.py documents."""
    checkpoint = checkpoint_folder(folder, 40)
    checkpoint.mkdir(parents=True)
    weights = {f"weight/{name}": weight for name, weight in model.state_dict().items()}
    weights["weight/logit_scale_hardneg"] = weights["weight/logit_scale_hardneg"].reshape(1)  # as DeepSpeed holds it
    save_file(weights, checkpoint / "tensors-00000-of-00001.safetensors")
    save_file({"margin": torch.zeros(1)}, checkpoint / OBJECTIVE)
    model.config.save_pretrained(checkpoint)
    files = {
        file.name: {"bytes": file.stat().st_size, "crc32": zlib.crc32(file.read_bytes())}
        for file in checkpoint.glob("*.safetensors")
    }
    record = {
        "format": 1,
        "step": 40,
        "state": {"step": 40, "tracker_run_id": "run-of-40"},
        "files": files,
    }
    (checkpoint / RECORD).write_text(json.dumps(record), encoding="utf-8")
    settings = {"tokenizer": {"path": str(tokenizer_folder)}, "data": {"levels": [16]}}
    settings |= {"region_loss": {"fgv_weight": 0.1}} if stage == 2 else {}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "scores.json").write_text('{"fgovd": {"hard": 0.375}}', encoding="utf-8")


@pytest.mark.parametrize("stage", [1, 2])
def test_the_command_exports_a_checkpoint_of_a_run(model, tokenizer, tmp_path, stage, capsys):
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.text_model.head.weight.add_(0.25)
    run, out = tmp_path / "run", tmp_path / "out"
    tokenizer.save(tmp_path / "tokenizer")
    write_run(run, trained, tmp_path / "tokenizer", stage)
    assert main([str(run), "--out", str(out), "--checkpoint", "40"]) == 0, capsys.readouterr().err
    assert "every key" in capsys.readouterr().out
    exported = FGCLIP2.load(out)
    assert torch.equal(exported.longtext_head.weight, trained.longtext_head.weight)
    source = trained.text_model.head if stage == 1 else trained.boxtext_head
    assert torch.equal(exported.boxtext_head.weight, source.weight), "stage 1 hands its trained head on"
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "run-of-40" in card and "fgovd/hard | 0.375" in card


def test_a_damaged_or_absent_checkpoint_is_named(model, tokenizer, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    write_run(run, model, tmp_path, 2)
    assert main([str(run), "--out", str(out), "--checkpoint", "41"]) == 2
    assert "step-00000041" in capsys.readouterr().err
    file = next(run.glob("checkpoints/*/tensors*"))
    file.write_bytes(file.read_bytes()[:-9])
    assert main([str(run), "--out", str(out)]) == 2
    assert "every checkpoint" in capsys.readouterr().err
    assert not out.exists()


def test_the_command_names_what_is_missing(tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no settings.yaml" in capsys.readouterr().err


def test_a_relative_tokenizer_is_found_from_another_folder_than_training_was_started_in(
    model, tokenizer, tmp_path, monkeypatch, capsys
):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    tokenizer.save(tmp_path / "分词器")
    write_run(run, model, "分词器", 2)
    (run / "versions.json").write_text(json.dumps({"started_in": str(tmp_path)}), encoding="utf-8")
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main([str(run), "--out", "out"]) == 0, capsys.readouterr().err
    assert (elsewhere / "out" / "tokenizer.json").is_file()
    (run / "versions.json").unlink()
    assert main([str(run), "--out", "again"]) == 2
    assert "分词器 does not exist" in capsys.readouterr().err
