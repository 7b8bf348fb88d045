"""The examples of docs/api.md run, in their order, as one program."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path

from PIL import Image

from data_tools.__main__ import main as data_tools
from pipeline.data.tokenizer import load_tokenizer
from pipeline.export.folder import export_model
from pipeline.model import FGCLIP2, preset_config

ROOT = Path(__file__).resolve().parents[2]


def test_the_examples_of_the_library_run(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 8
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, block in enumerate(blocks, start=1):
            exec(compile(block, f"docs/api.md, block {number}", "exec"), names)
    assert names["similarity"].shape == (1, 2) and names["scores"].shape == (2, 3)
    assert names["shares"].sum(-1).sub(1).abs().max() < 1e-5
    assert names["maps"].similarity.shape[0] == 3 and len(names["best"]) == 2
    assert set(names["output"].parts) >= {"global_short", "global_long", "fgv", "fgt", "cmr", "tic"}
    assert names["settings"].train.max_steps == 10
    assert "global_short" in printed.getvalue()


def prepare(folder: Path) -> None:
    """What docs/api.md says is there."""
    made = folder / "scenes"
    assert (
        data_tools(["scenes", "--out", str(made), "--train-images", "24", "--test-images", "2", "--workers", "1"]) == 0
    )
    (folder / "shards").mkdir()
    (made / "train").rename(folder / "shards" / "train")
    shards, tokens = str(folder / "shards" / "train"), str(folder / "tokenizer")
    assert data_tools(["tokenizer", "--shards", shards, "--out", tokens, "--vocab-size", "300"]) == 0
    Image.radial_gradient("L").resize((128, 96)).save(folder / "photo.jpg")
    tokenizer = load_tokenizer(tokens)
    model = FGCLIP2.from_scratch(preset_config("tiny", tokenizer.vocab_size)).eval()
    (folder / "runs").mkdir()
    export_model(model, tokenizer, folder / "runs" / "stage2" / "final", {})
    (folder / "stages").mkdir()
    shutil.copy(ROOT / "stages" / "stage1.yaml", folder / "stages")
