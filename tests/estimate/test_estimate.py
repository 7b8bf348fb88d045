"""The estimate: its memory and products are those of a real step, and its exit status says whether a run fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.estimate import Case, compare
from pipeline.estimate.__main__ import main
from pipeline.estimate.devices import device_names, read_device
from tests.end_to_end.runs import Material


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case("tiny", stage=2, zero=2, ranks=2), id="zero2"),
        pytest.param(
            Case("small", stage=1, zero=3, ranks=2, checkpointed=True), id="zero3-recomputed", marks=pytest.mark.long
        ),
    ],
)
def test_memory_is_within_15_percent_of_the_measured_peak_and_products_within_2(material: Material, case: Case):
    memory, products = compare(case, material.folder)
    assert memory.ratio == pytest.approx(1, abs=0.15), memory
    assert products.ratio == pytest.approx(1, abs=0.02), products


def settings(material: Material, *further: str) -> list[str]:
    return [f"data.shards=[{material.train}]", f"tokenizer.path={material.folder / 'tokenizer'}", *further]


def test_a_run_that_fits_ends_with_0_and_its_json_holds_every_part(material: Material, tmp_path: Path, capsys):
    out = tmp_path / "估计.json"
    overrides = settings(material, "model.preset=tiny", "data.patch_budgets=[48, 64]", "train.global_batch_size=16")
    assert main(["stage1", "--devices", "2", "--device", "h200", "--json", str(out), *overrides]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["fits"] and record["notes"] == []
    for budget in record["budgets"]:
        assert (budget["micro_batch"], budget["micro_batches"]) == (8, 1)
        assert set(budget["memory"]) == {"1", "2", "3"}
        for memory in budget["memory"].values():
            parts = sum(
                memory[name] for name in ("weights", "gradients", "optimizer", "activations", "losses", "buffers")
            )
            assert memory["total"] == pytest.approx(parts)
        assert budget["largest_micro_batch"]["2"] > 8
    printed = capsys.readouterr().out
    for words in ("parameters:", "images/s", "checkpoint", "disk of the run", "cores", "it fits"):
        assert words in printed


def test_bf16_weights_take_half_of_the_weights_and_less_of_the_activations(material: Material, tmp_path: Path):
    overrides = settings(material, "model.preset=tiny", "data.patch_budgets=[48]", "train.global_batch_size=16")
    found = {}
    for weights in ("fp32", "bf16"):
        out = tmp_path / f"{weights}.json"
        assert (
            main(
                [
                    "stage1",
                    "--devices",
                    "2",
                    "--device",
                    "h200",
                    "--json",
                    str(out),
                    f"train.weights={weights}",
                    *overrides,
                ]
            )
            == 0
        )
        found[weights] = json.loads(out.read_text(encoding="utf-8"))["budgets"][0]["memory"]
    for zero in ("1", "2"):
        ours, theirs = found["bf16"][zero], found["fp32"][zero]
        assert ours["weights"] == pytest.approx(0.5 * theirs["weights"])
        assert ours["optimizer"] == theirs["optimizer"] and ours["activations"] < theirs["activations"]


def test_a_teacher_lies_whole_on_every_device(material: Material, tmp_path: Path):
    overrides = settings(material, "model.preset=tiny", "data.patch_budgets=[48]", "train.global_batch_size=16")
    found = []
    for weight in (0, 5):  # a start that is not there: the preset is taken
        out = tmp_path / f"{weight}.json"
        more = [f"teacher.weight={weight}", f"model.start_from={tmp_path / '老师'}", "--json", str(out)]
        assert main(["stage1", "--devices", "2", "--device", "h200", *overrides, *more]) == 0
        found.append(json.loads(out.read_text(encoding="utf-8")))
    for stage in ("1", "2", "3"):
        without, taught = (record["budgets"][0]["memory"][stage]["total"] for record in found)
        assert taught - without == 4 * found[0]["parameters"]


@pytest.mark.parametrize(("stage", "way"), [("stage1", "frozen"), ("stage2", "last_n")])
def test_what_does_not_train_needs_less(material: Material, tmp_path: Path, stage: str, way: str):
    overrides = settings(material, "model.preset=tiny", "data.patch_budgets=[48]", "train.global_batch_size=16")
    found = []
    for tune in ("full", way):
        out = tmp_path / f"{tune}.json"
        more = [f"tune.vision={tune}", f"tune.text={tune}", "tune.last_n=1", "--json", str(out)]
        assert main([stage, "--devices", "1", "--device", "h200", *overrides, *more]) == 0
        found.append(json.loads(out.read_text(encoding="utf-8")))
    full, less = (record["budgets"][0]["memory"]["2"]["total"] for record in found)
    assert less < full and found[1]["trained"] < found[0]["trained"]


def test_a_run_that_cannot_fit_ends_with_1_and_says_what_would(material: Material, capsys):
    overrides = settings(material, "model.preset=so400m", "train.global_batch_size=4096", "model.start_from=null")
    assert main(["stage2", "--devices", "2", "--device", "rtx4090", *overrides]) == 1
    assert "largest micro-batches" in capsys.readouterr().out


def test_the_largest_micro_batch_fits_and_one_image_more_does_not(material: Material, tmp_path: Path, capsys):
    def total(images: int) -> dict:
        out = tmp_path / f"{images}.json"
        overrides = settings(material, "model.preset=tiny", "data.patch_budgets=[64]", "train.keep_last_checkpoints=1")
        # the shards are too few for such a batch, so their number is assumed
        overrides += [f"train.global_batch_size={images}", "data.shards=[nowhere]"]
        main(["stage1", "--devices", "1", "--device", "cpu", "--json", str(out), *overrides])
        return json.loads(out.read_text(encoding="utf-8"))

    largest = total(8)["budgets"][0]["largest_micro_batch"]["2"]
    assert total(largest)["fits"] and not total(largest + 1)["fits"]
    assert "assumed: data.shards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--device", "显卡"], "--device is '显卡'; it must be one of"),
        (
            [
                "--device",
                "h200",
                "train.accumulation_steps=9",
                "train.global_batch_size=7",
                "train.accumulation=separate",
            ],
            "a micro-batch needs an image",
        ),
        (["--device", "h200", "train.deepspeed_config=没有.json"], "没有.json is not in"),
        (["--device", "h200", "model.preset=huge"], "model.preset is 'huge'"),
    ],
)
def test_wrong_input_is_named_with_status_2(capsys, words: list[str], told: str):
    assert main(["stage1", "--devices", "2", *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("name", device_names())
def test_every_device_has_a_source(name: str):
    device = read_device(name)
    assert device.source.startswith(("https://", "docs/"))
