"""What a step that was not finite leaves behind on each rank, and running it again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
import torch.distributed as dist
from pydantic import Field, TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from pipeline.base.border import read_typed, shown
from pipeline.base.constants import MAX_FRAMES
from pipeline.base.files import write_aside, write_json
from pipeline.base.ranks import RankInfo
from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.tensors import read_objective, read_weights
from pipeline.config import read_saved_settings
from pipeline.data.batch import Batch
from pipeline.model import DualEncoder, Embeddings
from pipeline.model.families import model_of_config, read_saved_config
from pipeline.training.cached import backward_of_slice, losses_of_slice
from pipeline.training.losses import StageLosses
from pipeline.tuning.lora import add_lora


def write_rank_bundle(
    folder: Path,
    rank_info: RankInfo,
    batches: Sequence[Batch],
    losses: dict[str, float],
    circumstances: dict[str, Any],
) -> None:
    """One rank's micro-batches and loss parts; the checkpoint beside them has the weights from before the update."""
    for number, batch in enumerate(batches):
        tensors = {n: t.detach().cpu().contiguous() for n, t in batch.tensors().items()}
        with write_aside(folder / f"batch-{rank_info.rank:05d}-{number:05d}.safetensors") as partial:
            save_file(tensors, partial)
    record = {
        "keys": [key for batch in batches for key in batch.keys],
        "micro_batches": [batch.keys for batch in batches],
        "language": batches[0].language,
        "num_frames": batches[0].num_frames,
        "losses": losses,
        **circumstances,
    }
    write_json(folder / f"rank-{rank_info.rank:05d}.json", record)


class _Record(TypedDict):
    """What ``rank-*.json`` holds; replaying needs no more of it."""

    keys: list[str]
    micro_batches: NotRequired[list[list[str]]]  # earlier versions had one
    language: str
    num_frames: NotRequired[Annotated[int, Field(strict=True, ge=1, le=MAX_FRAMES)]]  # absent: images
    losses: dict[str, Any]  # only shown


_RECORD: TypeAdapter[_Record] = TypeAdapter(_Record)


def replay(folder: Path) -> int:
    """Run the step of a bundle again on one process, in the micro-batches that it had.

    Prints each loss part and what is not finite. Returns 0 where all is finite, else 1.
    """
    torch.manual_seed(0)
    settings = read_saved_settings(RunFolder.containing(folder).settings)
    checkpoint = folder / "checkpoint"
    model = model_of_config(read_saved_config(checkpoint))
    add_lora(model, settings.tune)
    model.load_state_dict(read_weights(checkpoint))
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    failed = 0
    for record_file in sorted(folder.glob("rank-*.json")):
        record = read_typed(record_file, _RECORD, "the bundle is damaged")
        batches = _read_batches(folder, record_file.stem.removeprefix("rank-"), record)
        losses = StageLosses(settings)
        losses.state.load_state_dict(read_objective(checkpoint, losses.state.state_dict()))
        model.zero_grad()
        values = _replay_rank(model, batches, losses, settings.trains_regions)
        wrong = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        inputs = {n for batch in batches for n, t in batch.tensors().items() if not t.isfinite().all()}
        keys = record["keys"]
        print(f"{record_file.stem} keys={shown(','.join(keys[:8]))}{'…' if len(keys) > 8 else ''}")
        print("  then: " + " ".join(shown(f"{n}={v}") for n, v in record["losses"].items()))
        print("  now:  " + " ".join(f"{n}={v:.6g}" for n, v in values.items()))
        print(f"  inputs not finite: {sorted(inputs) or 'none'}")
        print(f"  gradients not finite: {wrong[:10] or 'none'}")
        failed += bool(wrong) or not all(math.isfinite(v) for v in values.values())
    return 1 if failed else 0


def _read_batches(folder: Path, rank: str, record: _Record) -> list[Batch]:
    files = sorted(folder.glob(f"batch-{rank}*.safetensors"))  # bundles of earlier versions hold one, without a number
    parts = record.get("micro_batches", [record["keys"]])
    return [
        Batch(keys=keys, language=record["language"], num_frames=record.get("num_frames", 1), **load_file(file))
        for keys, file in zip(parts, files, strict=True)
    ]


def _replay_rank(model: DualEncoder, batches: list[Batch], losses: StageLosses, regions: bool) -> dict[str, float]:
    """Losses of one rank's share as if it were all; leaves the gradients in the model."""

    def forward(batch: Batch, number: int) -> Embeddings:
        return model(batch, regions=regions)

    def backward(total: Tensor, is_last: bool) -> None:
        total.backward()

    computed = losses_of_slice(forward, batches, len(batches), losses)
    backward_of_slice(computed, forward, backward)
    output = computed.output
    return {"total": float(output.total.detach()), **{n: float(v) for n, v in output.parts.items()}}
