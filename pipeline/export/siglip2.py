"""The global half of a run as a plain ``Siglip2Model`` of transformers: no code of this project, no regions.

What reads SigLIP 2 reads it: AutoModel, pipelines, vLLM, trainers that take a vision tower. Both towers and their heads
have the same weights and names in both models; long texts, phrases, boxes and patches in the joint space stay behind.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import Siglip2Config, Siglip2Model

from pipeline.base.files import write_folder_aside, write_text
from pipeline.export.card import model_card, patch_budgets_of
from pipeline.export.folder import MAX_SHARD_SIZE, TOLERANCE, ExportError, check_export_folder, let_others_read
from pipeline.export.processor import write_processor
from pipeline.export.run import card_of, exported_model, find_checkpoint, of_fgclip2, tokenizer_of
from pipeline.model import FGCLIP2, FGCLIP2Config
from pipeline.model.embeddings import unit

TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
    *("max_position_embeddings", "layer_norm_eps", "attention_dropout", "projection_size"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
VISION_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
    *("num_channels", "num_patches", "patch_size", "layer_norm_eps", "attention_dropout"),
)


def export_siglip2(run: str | Path, out: str | Path, step: int | None = None) -> Path:
    """Write the global half of a run's checkpoint, and compare what transformers reads of it with the run's model.

    Raises:
        ExportError: no run or checkpoint there, ``out`` holds something else, or the embeddings differ.
        CheckpointError: the checkpoint is damaged.
    """
    found, out = find_checkpoint(run, step), Path(out)
    check_export_folder(out)
    model, tokenizer = of_fgclip2(exported_model(found), "siglip2"), tokenizer_of(found)
    with write_folder_aside(out, durable=True) as partial:
        _write(model, partial)
        write_processor(partial, tokenizer, model.config, patch_budgets_of(card_of(found)))
        write_text(partial / "README.md", model_card(card_of(found), model.config, form="siglip2"))
        _verify(model, partial)
        let_others_read(partial)
    return out


def siglip2_config(config: FGCLIP2Config) -> Siglip2Config:
    """The same towers in the words of transformers' own configuration."""
    return Siglip2Config(
        text_config={name: getattr(config.text_config, name) for name in TEXT_FIELDS},
        vision_config={name: getattr(config.vision_config, name) for name in VISION_FIELDS},
    )


def siglip2_weights(model: FGCLIP2, names: list[str]) -> dict[str, Tensor]:
    """The named weights of ``model``, in float32 on the CPU.

    Raises:
        ExportError: transformers' model has one that ours has not: another version of it.
    """
    ours = model.state_dict()
    missing = sorted(set(names) - set(ours))
    if missing:
        raise ExportError(f"transformers' Siglip2Model wants {', '.join(missing[:5])}, which this model does not have")
    return {name: ours[name].detach().float().cpu().contiguous() for name in names}


def _write(model: FGCLIP2, folder: Path) -> None:
    with torch.device("meta"):
        plain = Siglip2Model(siglip2_config(model.config))
    weights = siglip2_weights(model, [name for name, _ in plain.named_parameters()])
    plain.load_state_dict(weights, strict=False, assign=True)  # buffers that are not saved are made when it is loaded
    plain.save_pretrained(folder, state_dict=weights, max_shard_size=MAX_SHARD_SIZE)


@torch.no_grad()
def _verify(model: FGCLIP2, folder: Path) -> None:
    """Raise ExportError where images or short texts have other embeddings in the folder than in ``model``."""
    plain = Siglip2Model.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    model = model.float().cpu()
    generator = torch.Generator().manual_seed(0)
    text, vision = model.config.text_config, model.config.vision_config
    grids = torch.tensor([[4, 4], [2, 7]])
    mask = (torch.arange(16) < grids.prod(1, keepdim=True)).int()
    pixels = torch.rand(2, 16, vision.num_channels * vision.patch_size**2, generator=generator) * 2 - 1
    ids = torch.randint(0, text.vocab_size, (3, text.max_position_embeddings), generator=generator)
    found = plain(input_ids=ids, pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=grids)
    image, short = model.encode_vision(pixels, mask, grids)[1], model.encode_ids(ids, "short")
    scale, bias = model.logit_scale.exp(), model.logit_bias
    for name, ours, theirs, tolerance in (
        ("image", image, unit(found.image_embeds), TOLERANCE),
        ("short text", short, unit(found.text_embeds), TOLERANCE),
        ("logit", image @ short.T * scale + bias, found.logits_per_image, TOLERANCE * max(1.0, float(scale))),
    ):
        worst = float((ours - theirs).abs().max())
        if not worst <= tolerance:
            raise ExportError(f"the {name} values of {folder} differ by {worst:.3g} from the run's model")
