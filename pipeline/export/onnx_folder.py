"""A run as a folder of ONNX files: written aside, run by onnxruntime, compared with the model, and only then named."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.files import write_folder_aside, write_json, write_text
from pipeline.data.tokenizer import TOKENIZER_DIGEST
from pipeline.export.card import model_card, patch_budgets_of
from pipeline.export.folder import ExportError, let_others_read
from pipeline.export.onnx_graphs import OPSET, graphs, names_of, traced
from pipeline.export.onnx_weights import store
from pipeline.export.processor import write_processor
from pipeline.export.run import card_of, exported_model, find_checkpoint, of_fgclip2, tokenizer_of
from pipeline.model import FGCLIP2
from pipeline.model.embeddings import unit
from pipeline.model.onnx_runtime import DESCRIPTION, ONNXModel

TOLERANCE = 1e-4  # between unit vectors of onnxruntime and of the model; smaller weights have none
LONGEST_SIDE = 256  # patches along one side of a grid: 4096 pixels
PACKAGES = "pip install -e '.[onnx]'"


def export_onnx(
    run: str | Path, out: str | Path, step: int | None = None, weights: str = "float32"
) -> tuple[Path, dict[str, float]]:
    """Write a run's checkpoint as ONNX files; the folder, and the largest difference of each kind of embedding.

    Args:
        weights: how they are stored: float32, float16 or int8.

    Raises:
        ExportError: no run or checkpoint, ``out`` holds something else, the extra packages are missing, or what
            onnxruntime makes of float32 weights differs from the model by more than 1e-4.
        CheckpointError: the checkpoint is damaged.
    """
    _check_packages()
    found, out = find_checkpoint(run, step), Path(out)
    if out.exists() and not (out / DESCRIPTION).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is no earlier ONNX export; move it away or give a new folder")
    model = of_fgclip2(exported_model(found), "onnx").float()
    tokenizer, card = tokenizer_of(found), card_of(found)
    files = graphs(model, LONGEST_SIDE)
    text, budgets = model.config.text_config, patch_budgets_of(card)
    description = {
        "opset": OPSET,
        "weights": weights,
        "longest_side": LONGEST_SIDE,
        "patch_size": model.config.vision_config.patch_size,
        "patch_budgets": budgets,
        "text_lengths": {
            "short": text.max_position_embeddings,
            "region": text.max_position_embeddings,
            "long": text.longtext_len,
        },
        "short_caption_prefix": found.settings.data.short_caption_prefix,
        "logit_scale": float(model.logit_scale.detach().exp()),
        "logit_bias": float(model.logit_bias.detach()),
        TOKENIZER_DIGEST: tokenizer.digest(),
        "files": dict(zip(files, names_of(list(files.values())), strict=True)),
    }
    with write_folder_aside(out, durable=True) as partial:
        store({name: traced(graph) for name, graph in files.items()}, partial, weights)
        write_json(partial / DESCRIPTION, description)
        write_processor(partial, tokenizer, model.config, budgets)
        write_text(partial / "README.md", model_card(card, model.config, form="onnx"))
        worst = differences(model, ONNXModel(partial))
        wrong = {name: value for name, value in worst.items() if not value <= TOLERANCE}
        if weights == "float32" and wrong:
            told = ", ".join(f"{name} {value:.3g}" for name, value in wrong.items())
            raise ExportError(f"onnxruntime's embeddings differ from the model's by more than {TOLERANCE}: {told}")
        let_others_read(partial)
    return out, worst


def _check_packages() -> None:
    try:
        import onnx_ir  # noqa: F401  # this and the next are of the extra onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"--as onnx needs packages that do not load ({error}); {PACKAGES}") from error


@torch.no_grad()
def differences(model: FGCLIP2, exported: ONNXModel) -> dict[str, float]:
    """The largest difference of each kind of embedding, on images of other grids and numbers than were traced."""
    generator = torch.Generator().manual_seed(1)
    text, vision = model.config.text_config, model.config.vision_config
    grids = torch.tensor([[6, 5], [1, 31]])
    mask = (torch.arange(33) < grids.prod(1, keepdim=True)).int()
    pixels = torch.rand(2, 33, vision.num_channels * vision.patch_size**2, generator=generator) * 2 - 1
    patches, image = model.encode_vision(pixels, mask, grids)
    dense = model.dense_features(patches, mask)
    boxes = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0], [0.31, 0.4, 0.32, 0.95], [0.2, 0.2, 0.9, 0.4]])
    region = model.pool_regions(dense, grids, boxes, torch.zeros(len(boxes), dtype=torch.int64))[0]
    theirs_image, theirs_dense = exported.images(pixels, mask, grids)
    real = mask.bool()
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "image": (image, theirs_image),
        "dense": (unit(dense[real]), unit(theirs_dense[real])),
        "region": (region, exported.regions(theirs_dense[0], grids[0], boxes)),
    }
    for kind in ("short", "long", "region"):
        length = text.longtext_len if kind == "long" else text.max_position_embeddings
        ids = torch.randint(0, text.vocab_size, (5, length), generator=generator)
        pairs[f"{kind} text"] = (model.encode_ids(ids, kind), exported.texts(ids, kind))
    return {name: float((ours - theirs).abs().max()) for name, (ours, theirs) in pairs.items()}
