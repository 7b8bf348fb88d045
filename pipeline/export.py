"""Make a Hugging Face folder of a run: weights, configuration, image processor, tokenizer, model card and code.

The folder has the names and tables of the public FG-CLIP 2 checkpoints, and carries the model's own source, so that
plain transformers loads it. It is written aside, read back, compared, and only then takes its name.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.model import FGCLIP2, FGCLIP2Config
from pipeline.model import configuration as model_package
from pipeline.model_card import model_card, settings_of

MAX_SHARD_SIZE = "5GB"
TOLERANCE = 1e-5  # between embeddings of the model in memory and of the folder
CODE = ("configuration", "embeddings", "inference", "modeling", "regions", "start", "towers")
AUTO_MAP = {
    "AutoConfig": "configuration.FGCLIP2Config",
    "AutoModel": "modeling.FGCLIP2",
    "AutoModelForCausalLM": "modeling.FGCLIP2",  # the class by which the public checkpoints are loaded
}


class ExportError(RuntimeError):
    """The folder could not be made, or what was written is not the model; nothing took its name."""


def export_model(model: FGCLIP2, tokenizer: Any, out_dir: str | Path, card: Mapping[str, Any]) -> Path:
    """Write ``model`` as a Hugging Face folder and check it by reloading.

    Args:
        model: with the weights to write, on any device; float32 is written.
        tokenizer: a ``pipeline.data.tokenizer.Tokenizer``.
        out_dir: replaced if it is an earlier export; anything else that is there is refused.
        card: what pipeline/model_card.py reads.

    Raises:
        ExportError: the tokenizer is not the model's, the folder is taken, or the reloaded model differs.
    """
    out = Path(out_dir)
    rows = model.config.text_config.vocab_size
    if tokenizer.vocab_size != rows:
        raise ExportError(f"the tokenizer has {tokenizer.vocab_size} ids and the model {rows}; give the model's own")
    if out.exists() and not (out / "config.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is no earlier export; give a new folder")
    aside, old = out.with_name(out.name + ".writing"), out.with_name(out.name + ".old")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        _write(model, tokenizer, aside, card)
        verify_export(model, aside)
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            os.replace(out, old)
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return out


def _write(model: FGCLIP2, tokenizer: Any, folder: Path, card: Mapping[str, Any]) -> None:
    weights = {name: weight.detach().float().cpu() for name, weight in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights, max_shard_size=MAX_SHARD_SIZE)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    config |= {"architectures": ["FGCLIP2"], "auto_map": AUTO_MAP, "dtype": "float32"}
    _write_json(folder / "config.json", config)
    source = Path(model_package.__file__).parent
    for name in CODE:
        shutil.copyfile(source / f"{name}.py", folder / f"{name}.py")
    _write_tokenizer(tokenizer, folder)
    levels = (settings_of(card).get("data") or {}).get("patch_budgets")
    _write_json(folder / "preprocessor_config.json", image_processor_config(model.config, levels))
    (folder / "README.md").write_text(model_card(card, model.config), encoding="utf-8")


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Tokenizer files that pad on the right and end texts, whoever loads them; without this machine's paths."""
    from transformers import PreTrainedTokenizerFast

    tokenizer.save(folder)
    saved = PreTrainedTokenizerFast.from_pretrained(
        str(folder), padding_side="right", add_eos_token=True, local_files_only=True
    )
    saved.save_pretrained(str(folder))
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for name in ("vocab_file", "is_local", "local_files_only", "name_or_path"):
        config.pop(name, None)
    _write_json(file, config)


def image_processor_config(config: FGCLIP2Config, levels: Sequence[int] | None) -> dict[str, Any]:
    """What transformers' SigLIP 2 image processor reads, and ``levels``, which encode_image chooses from."""
    values = {
        "image_processor_type": "Siglip2ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 1 / 255,
        "patch_size": config.vision_config.patch_size,
        "max_num_patches": max(levels) if levels else config.vision_config.num_patches,
    }
    return values | ({"levels": list(levels)} if levels else {})


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def verify_export(model: FGCLIP2, folder: str | Path) -> None:
    """Reload ``folder`` and compare every key and the embeddings of a probe batch with ``model``.

    Raises:
        ExportError: naming the key or the embedding that differs.
    """
    again = FGCLIP2.load(folder)
    theirs = again.state_dict()
    ours = {name: weight.detach().float().cpu() for name, weight in model.state_dict().items()}
    if set(ours) != set(theirs):
        raise ExportError(f"{folder} and the model differ in these names: {', '.join(sorted(set(ours) ^ set(theirs)))}")
    for name, weight in ours.items():
        if not torch.equal(weight, theirs[name]):
            raise ExportError(f"{name} reads back from {folder} otherwise than it was written; write it again")
    for (name, first), second in zip(
        probe(_with_weights(model.config, ours)).items(), probe(again).values(), strict=True
    ):
        worst = float((first - second).abs().max())
        if not worst <= TOLERANCE:
            raise ExportError(f"the {name} embeddings of {folder} differ by {worst:.3g} from the model's")


def _with_weights(config: FGCLIP2Config, weights: dict[str, Tensor]) -> FGCLIP2:
    """The model that holds ``weights`` themselves; no random weights are drawn to be thrown away."""
    with torch.device("meta"):
        model = FGCLIP2(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    # DeepSpeed holds scalars as one row
    weights = {n: w.reshape(shapes[n]) if w.numel() == 1 and n in shapes else w for n, w in weights.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


@torch.no_grad()
def probe(model: FGCLIP2) -> dict[str, Tensor]:
    """Every kind of embedding of one small fixed batch."""
    generator = torch.Generator().manual_seed(0)
    text, vision = model.config.text_config, model.config.vision_config
    grids = torch.tensor([[4, 4], [2, 7]])
    mask = (torch.arange(16) < grids.prod(1, keepdim=True)).int()
    pixels = torch.rand(2, 16, vision.num_channels * vision.patch_size**2, generator=generator) * 2 - 1
    patches, image = model.encode_vision(pixels, mask, grids)
    dense = model.dense_features(patches, mask)
    boxes = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0]])
    found = {"image": image, "region": model.pool_regions(dense, grids, boxes, torch.tensor([0, 1]))[0]}
    for kind in ("short", "long", "region"):
        length = text.longtext_len if kind == "long" else text.max_position_embeddings
        ids = torch.randint(0, text.vocab_size, (2, length), generator=generator)
        found[f"{kind} text"] = model.encode_ids(ids, kind)
    return found


def export_run(run: str | Path, out: str | Path, step: int | None = None) -> Path:
    """Export a run's newest whole checkpoint, or that of optimizer step ``step``."""
    from pipeline.data.tokenizer import load_tokenizer
    from pipeline.tracking.scores import read_scores
    from pipeline.training.checkpoint import checkpoint_folder, find_resume, read_record, read_weights

    run = Path(run)
    settings_file = run / "settings.yaml"
    if not settings_file.is_file():
        raise ExportError(f"{run} holds no settings.yaml; give the folder of a run")
    checkpoint = find_resume(run, "auto" if step is None else str(checkpoint_folder(run, step)))
    if checkpoint is None:
        raise ExportError(f"{run} holds no whole checkpoint; let it reach its first one")
    card = {"settings": settings_file.read_text(encoding="utf-8"), "run_folder": str(run), "scores": read_scores(run)}
    settings = settings_of(card)
    record = read_record(checkpoint)
    card |= {"step": record["step"], "mlflow_run": record["state"].get("tracker_run_id")}
    model = _with_weights(FGCLIP2Config.from_pretrained(checkpoint), read_weights(checkpoint))
    if "region_loss" not in settings:  # stage 1 trains the heads that the heads for regions start from
        model.copy_heads_for_stage2()
    return export_model(model, load_tokenizer(settings["tokenizer"]["path"]), out, card)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m pipeline.export runs/stage2 --out exported\n"
        "  python -m pipeline.export runs/stage2 --out exported-2000 --checkpoint 2000",
    )
    parser.add_argument("run", help="a run's folder, with settings.yaml and checkpoints")
    parser.add_argument("--out", required=True, help="the folder to make; an earlier export there is replaced")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="its optimizer step (default: the newest)")
    arguments = parser.parse_args(argv)
    from pipeline.training.checkpoint import CheckpointError  # imports DeepSpeed: --help must not wait for it

    try:
        out = export_run(arguments.run, arguments.out, arguments.checkpoint)
    except (ExportError, CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: every key and the embeddings of a probe batch equal the checkpoint's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
