"""What a step that was not finite leaves behind on each rank, and running it again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from pipeline.base.files import write_aside, write_json
from pipeline.base.ranks import RankInfo
from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.tensors import read_objective, read_weights
from pipeline.config import read_saved_settings
from pipeline.data.batch import Batch
from pipeline.model import FGCLIP2, FGCLIP2Config
from pipeline.training.losses import StageLosses


def write_rank_bundle(
    folder: Path, rank_info: RankInfo, batch: Batch, losses: dict[str, float], circumstances: dict[str, Any]
) -> None:
    """One rank's batch and loss parts; the checkpoint beside them holds the weights from before the update."""
    tensors = {n: t.detach().cpu().contiguous() for n, t in batch.tensors().items()}
    with write_aside(folder / f"batch-{rank_info.rank:05d}.safetensors") as partial:
        save_file(tensors, partial)
    record = {"keys": batch.keys, "language": batch.language, "losses": losses, **circumstances}
    write_json(folder / f"rank-{rank_info.rank:05d}.json", record)


def replay(folder: Path) -> int:
    """Run the step of a bundle again on one process; prints each loss part and what is not finite. 0: all finite."""
    torch.manual_seed(0)
    settings = read_saved_settings(RunFolder.containing(folder).settings)
    checkpoint = folder / "checkpoint"
    model = FGCLIP2(FGCLIP2Config.from_pretrained(checkpoint))
    model.load_state_dict(read_weights(checkpoint))
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    failed = 0
    for record_file in sorted(folder.glob("rank-*.json")):
        record = json.loads(record_file.read_text(encoding="utf-8"))
        tensors = load_file(folder / record_file.name.replace("rank-", "batch-").replace(".json", ".safetensors"))
        batch = Batch(keys=record["keys"], language=record["language"], **tensors)
        losses = StageLosses(settings)
        losses.state.load_state_dict(read_objective(checkpoint, losses.state.state_dict()))
        model.zero_grad()
        output = losses(model(batch, regions=settings.trains_regions), batch)
        output.total.backward()
        values = {"total": float(output.total.detach()), **{n: float(v) for n, v in output.parts.items()}}
        wrong = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        print(f"{record_file.stem} keys={','.join(batch.keys[:8])}{'…' if len(batch) > 8 else ''}")
        print("  then: " + " ".join(f"{n}={v}" for n, v in record["losses"].items()))
        print("  now:  " + " ".join(f"{n}={v:.6g}" for n, v in values.items()))
        print(f"  inputs not finite: {[n for n, t in tensors.items() if not t.isfinite().all()] or 'none'}")
        print(f"  gradients not finite: {wrong[:10] or 'none'}")
        failed += bool(wrong) or not all(math.isfinite(v) for v in values.values())
    return 1 if failed else 0
