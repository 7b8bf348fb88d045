"""The low-rank additions of a run alone, as the peft package reads them onto the model that the run started from.

Heads that were trained whole are in the file too (peft's ``modules_to_save``), so that the embeddings are those of the
merged model; the temperatures, which no embedding depends on, lie beside it in ``scales.safetensors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.base.files import write_folder_aside, write_text
from pipeline.checkpoint.tensors import read_weights
from pipeline.config import Stage1Settings
from pipeline.export.folder import TOLERANCE, ExportError, model_with_weights, probe
from pipeline.export.run import exported_weights, find_checkpoint
from pipeline.model import DualEncoder
from pipeline.model.families import FAMILIES, read_saved_config
from pipeline.tuning.lora import adapter_weights, lora_config
from pipeline.tuning.parts import HEADS, TOWERS

CONFIG, WEIGHTS, SCALES = "adapter_config.json", "adapter_model.safetensors", "scales.safetensors"
README = """---
library_name: peft
base_model: {start}
tags: [fg-clip-2, lora]
---

# Low-rank additions of {run}, step {step}

For the model in `{start}`; nothing else of that model changed but its temperatures (`scales.safetensors`).

```python
from peft import PeftModel
from pipeline.model import {family}

model = PeftModel.from_pretrained({family}.load("{start}"), "FOLDER").base_model.model
```
"""


def export_adapter(run: str | Path, out: str | Path, step: int | None = None) -> Path:
    """Write what low-rank additions a run trained, and compare the model that they give with the merged one.

    Raises:
        ExportError: the run has none, or trained a tower otherwise, or ``out`` holds something else; or its start is
            gone, or the folder gives other embeddings than the merged model.
        CheckpointError: the checkpoint is damaged.
    """
    found, out = find_checkpoint(run, step), Path(out)
    _check_is_adapter(found.settings, run)
    if out.exists() and not (out / CONFIG).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is no earlier adapter; move it away or give a new folder")
    start = str(found.settings.model.start_from)
    trained = read_weights(found.checkpoint)
    merged = exported_weights(found)
    base = FAMILIES[found.settings.model.family].start_from(start)
    if added := sorted(merged.keys() - base.state_dict().keys()):
        raise ExportError(
            f"{run} added weights that {start} has no place for ({added[0]} and {len(added) - 1} more, which read "
            "clips), and an adapter does not hold them; export the model, without --adapter"
        )
    with write_folder_aside(out, durable=True) as partial:
        config = lora_config(base, found.settings.tune)
        heads = _trained_heads(merged, base.state_dict())
        config.modules_to_save = sorted({_module_of(name) for name in heads}) or None
        config.base_model_name_or_path, config.inference_mode = start, True
        config.save_pretrained(str(partial))
        weights = adapter_weights(trained) | {f"base_model.model.{name}": weight for name, weight in heads.items()}
        save_file({name: weight.contiguous().clone() for name, weight in weights.items()}, partial / WEIGHTS)
        scales = {name: weight.reshape(-1).clone() for name, weight in merged.items() if name.startswith("logit_")}
        save_file(scales, partial / SCALES)
        write_text(
            partial / "README.md",
            README.format(start=start, run=run, step=found.record.step, family=type(base).__name__),
        )
        _verify(base, partial, model_with_weights(read_saved_config(found.checkpoint), merged))
    return out


def _check_is_adapter(settings: Stage1Settings, run: str | Path) -> None:
    tune = settings.tune
    if not tune.has_lora:
        raise ExportError(
            f"{run} was trained with tune.vision={tune.vision} and tune.text={tune.text}, so it has no low-rank "
            "additions; export the model, without --adapter"
        )
    for tower in TOWERS:
        mode = getattr(tune, tower)
        if mode not in ("lora", "frozen"):
            raise ExportError(
                f"{run} was trained with tune.{tower}={mode}: that tower's own weights changed, which an adapter does "
                "not hold; export the model, without --adapter"
            )
    if settings.model.start_from is None:
        raise ExportError(f"{run} started from random weights, which nobody else has; export the model instead")


def _trained_heads(merged: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The heads that are not as in the start."""
    changed = {
        _module_of(name)
        for name, weight in merged.items()
        if name.startswith(HEADS) and not torch.equal(weight, base[name])
    }
    return {name: weight for name, weight in merged.items() if name.startswith(HEADS) and _module_of(name) in changed}


def _module_of(name: str) -> str:
    return next(head for head in HEADS if name.startswith(head)).rstrip(".")


def _verify(base: DualEncoder, folder: Path, merged: DualEncoder) -> None:
    from peft import PeftModel  # takes seconds; see pipeline/tuning/lora.py

    again = PeftModel.from_pretrained(base.eval(), str(folder)).base_model.model
    for (name, ours), theirs in zip(probe(merged).items(), probe(again).values(), strict=True):
        worst = float((ours - theirs).abs().max())
        if not worst <= TOLERANCE:
            raise ExportError(f"the {name} embeddings with the adapter differ by {worst:.3g} from the merged model's")
