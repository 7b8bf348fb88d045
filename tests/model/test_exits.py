"""Other exits of a run: a plain Siglip2Model, and ONNX files; both give what the run's model gives."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.evaluation.models.load import load_model
from pipeline.export.command import main
from pipeline.export.onnx_graphs import RegionGraph
from pipeline.export.onnx_weights import quantised
from pipeline.model import FGCLIP2
from pipeline.model.onnx_runtime import IMAGE, LONG, REGIONS, TEXT, WEIGHTS
from tests.model.material import KEEP, picture, small_model, small_tokenizer
from tests.model.test_export import write_run

TEXTS = ["a red cup", "一只红色的杯子"]
ALONE = "import sys\nsys.modules.update(dict.fromkeys(('pipeline', 'data_tools', 'stages')))\n"  # imports of them fail


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage 2, its tokenizer beside it, and a picture."""
    folder = tmp_path_factory.mktemp("exits")
    tokenizer = small_tokenizer(folder / "tokenizer")
    torch.manual_seed(3)
    # a SigLIP 2 has more positions than the 20 that long texts keep
    sizes = {"text_max_position_embeddings": 24, "text_longtext_len": 4 * 24 - 3 * KEEP}
    model = small_model(3, text_vocab_size=tokenizer.vocab_size, **sizes)
    with torch.no_grad():  # every head another
        for head in (model.boxtext_head, model.longtext_head, model.dense_feature_head):
            for weight in head.parameters():
                weight.add_(torch.randn_like(weight) * 0.1)
    write_run(folder / "run", model, folder / "tokenizer", 2)
    picture(90, 70).save(folder / "photo.png")
    return folder / "run"


@pytest.fixture(scope="module")
def model(run: Path) -> FGCLIP2:
    assert main([str(run), "--out", str(run.parent / "own")]) == 0
    return FGCLIP2.load(run.parent / "own")


def usage(folder: Path) -> str:
    """The lines of the folder's card."""
    lines = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert lines is not None
    return lines[1].replace("FOLDER", str(folder)).replace('"IMAGE"', repr(str(folder.parent / "photo.png")))


def test_a_process_without_this_project_reads_the_global_half(run: Path, model: FGCLIP2, tmp_path: Path):
    out = run.parent / "plain"
    assert main([str(run), "--out", str(out), "--as", "siglip2"]) == 0
    assert not list(out.glob("*.py"))
    saved = f"torch.save([scores, model(**inputs).image_embeds.detach()], {str(tmp_path / 'found.pt')!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", ALONE + usage(out) + saved], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    scores, embeds = torch.load(tmp_path / "found.pt", weights_only=True)
    image = model.encode_image(picture(90, 70), max_num_patches=16).embeds
    logits = image @ model.encode_text(TEXTS).embeds.T * model.logit_scale.exp() + model.logit_bias
    torch.testing.assert_close(torch.nn.functional.normalize(embeds, dim=-1), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, logits.sigmoid(), atol=1e-5, rtol=0)


def test_evaluation_of_the_global_half_uses_the_runs_patch_budgets(run: Path):
    out = run.parent / "plain"
    if not out.is_dir():
        assert main([str(run), "--out", str(out), "--as", "siglip2"]) == 0
    ours, plain = load_model(run.parent / "own"), load_model(out)
    assert plain.settings()["patch_budgets"] == ours.settings()["patch_budgets"] == [16]
    assert torch.equal(plain.encode_texts(TEXTS, "short"), ours.encode_texts(TEXTS, "short"))


@pytest.mark.parametrize("words", [["--as", "siglip2", "--weights", "int8"], ["--as", "onnx", "--adapter"]])
def test_options_of_other_forms_are_refused(run: Path, words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main([str(run), "--out", "nowhere", *words])
    assert stopped.value.code == 2 and words[-1].strip("-").split()[0][:4] in capsys.readouterr().err


def test_regions_of_any_number_and_grid_come_from_one_graph():
    module = RegionGraph(longest_side=32)
    generator = torch.Generator().manual_seed(0)
    for rows, columns, boxes in ((3, 5, 1), (1, 17, 4)):
        dense = torch.rand(rows * columns + 2, 6, generator=generator)
        corners = torch.rand(boxes, 2, generator=generator) * 0.5
        chosen = torch.cat([corners, corners + 0.4], dim=1)
        grid = torch.tensor([rows, columns])
        expected = small_model().pool_regions(
            dense[None], grid[None], chosen, torch.zeros(boxes, dtype=torch.int64)
        )[0]  # fmt: skip
        torch.testing.assert_close(module(dense, grid, chosen), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(8, 12), (2, 6, 10)])
def test_int8_numbers_give_the_weights_back_within_half_a_step(shape: tuple[int, ...]):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    array[..., 0] *= 50  # one column far larger: scales by row would lose the others
    numbers, scales, axis = quantised(array)
    broad = scales.reshape([-1 if n == axis else 1 for n in range(array.ndim)])
    assert axis == array.ndim - 1 and numbers.dtype == np.int8
    assert (np.abs(numbers * broad - array) <= broad / 2 * 1.001).all()


@pytest.mark.long
def test_onnx_files_give_what_the_run_gives_by_the_lines_of_the_card(run: Path, model: FGCLIP2):
    pytest.importorskip("onnxruntime")
    sizes = {}
    for weights in ("float32", "int8"):
        out = run.parent / f"onnx-{weights}"
        assert main([str(run), "--out", str(out), "--as", "onnx", "--weights", weights]) == 0
        assert sorted(file.name for file in out.glob("*.onnx")) == sorted((IMAGE, LONG, REGIONS, TEXT))
        assert not any(b"site-packages" in file.read_bytes() for file in out.glob("*.onnx"))
        sizes[weights] = (out / WEIGHTS).stat().st_size
        found: dict = {}
        exec(usage(out), found)
        image = picture(90, 70)
        texts = model.encode_text(TEXTS).embeds
        tolerance = 1e-4 if weights == "float32" else 0.05
        cosines = model.encode_image(image, max_num_patches=16).embeds @ texts.T
        torch.testing.assert_close(torch.from_numpy(found["scores"]), cosines, atol=tolerance, rtol=0)
        regions = model.encode_regions(image, found["boxes"], box_format="normalised", max_num_patches=16).embeds
        torch.testing.assert_close(torch.from_numpy(found["region"]), regions, atol=tolerance, rtol=0)
        evaluated = load_model(out)
        for kind in ("short", "long", "region"):
            theirs, ours = evaluated.encode_texts(TEXTS, kind), model.encode_text(TEXTS, kind=kind).embeds
            torch.testing.assert_close(theirs, ours, atol=tolerance, rtol=0)
    assert sizes["int8"] < 0.7 * sizes["float32"]  # half a megabyte of both are the positions' matrices
