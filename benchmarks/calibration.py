"""SC-CLIP on the embedded scenes: mIoU plain against calibrated, for a trained model of ours and for a CLIP-shaped one.

The CLIP-shaped model (class token, one text path) is trained here on the scenes' short captions with the contrastive
loss of CLIP, for a few hundred steps. Each is scored on maps of colours and of shapes, with every rule for the
background, with each part of the calibration switched off, and without the class token or, for ours, with each
of its substitutes and none. The signs are whatever they are.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, CLIPConfig, CLIPModel

from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.data.images import decode_image
from pipeline.data.tokenizer import Tokenizer
from pipeline.evaluation import evaluate
from pipeline.evaluation.formats.shards import read_shards
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.models.clip import CLIPEvaluation
from pipeline.evaluation.models.fgclip2 import FGCLIP2Evaluation
from pipeline.evaluation.models.load import load_model
from pipeline.evaluation.scclip import PARTS, SUBSTITUTES

SIDE, PATCH, TEXT_LENGTH = 128, 16, 32
RULES = ("none", "threshold")
CLASSES = ("colour", "shape")


class ClipTokens:
    """Our tokenizer, called as CLIP's is."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: list[str], **_: object) -> BatchEncoding:
        ids = self.tokenizer(texts, TEXT_LENGTH)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def main(argv: list[str] | None = None) -> int:
    example = "  python -m benchmarks.calibration --scenes runs/demo/data --model runs/demo/stage2 --steps 600"
    parser = benchmark_parser("benchmarks.calibration", __doc__, example)
    parser.add_argument(
        "--scenes", type=Path, default=Path("runs/demo/data"), help="folder that data_tools scenes wrote"
    )
    parser.add_argument("--model", type=Path, default=Path("runs/demo/stage2"), help="a run or a Hugging Face folder")
    parser.add_argument("--steps", type=int, default=400, help="of the CLIP-shaped model (default 400)")
    parser.add_argument("--train-images", type=int, default=3000, help="kept in memory (default 3000)")
    parser.add_argument("--test-images", type=int, default=1000, help="scored (default 1000)")
    parser.add_argument("--layers", type=int, default=6, help="of its vision tower (default 6)")
    arguments = parser.parse_args(argv)
    ours = load_model(arguments.model)
    if not isinstance(ours, FGCLIP2Evaluation):
        raise ValueError(f"--model {arguments.model} is no model of this project; give a run's folder or an export")
    clip = trained_clip(arguments, ours.tokenizer)
    rows = []
    for name, model in (("ours", ours), ("CLIP-shaped", clip)):
        for classes, rule in itertools.product(CLASSES, RULES):
            rows += compared(name, model, arguments.scenes / "test", arguments.test_images, classes, rule)
    report(rows, arguments.json)
    return 0


def compared(name: str, model: EvaluationModel, test: Path, max_images: int, classes: str, rule: str) -> list[Row]:
    """mIoU of all parts, and of all but one, against the plain features'."""

    what = f"{name}, {classes}s, background {rule}"

    def miou(**options: Any) -> float:
        found = evaluate(
            model, "segmentation", test, format=f"scenes-{classes}", background=rule, max_images=max_images, **options
        )
        value = 100 * found["scores"]["miou"]
        print(f"{what} {options or 'plain'}: {value:.1f} % mIoU", flush=True)
        return value

    plain = miou()
    rows = [Row(f"{what}: plain", plain, "% mIoU")]
    rows.append(Row(f"{what}: calibrated", miou(calibrate=True), "% mIoU", plain))
    if rule == RULES[0]:
        for part in PARTS:
            rows.append(Row(f"{what}: without {part}", miou(calibrate=True, switch_off=(part,)), "% mIoU", plain))
        value = miou(calibrate=True, class_token_weight=0.0)
        rows.append(Row(f"{what}: without class token or substitute", value, "% mIoU", plain))
        if not model.has_class_token:
            for substitute in SUBSTITUTES:
                value = miou(calibrate=True, class_token_substitute=substitute)
                rows.append(Row(f"{what}: substitute {substitute}", value, "% mIoU", plain))
    return rows


def trained_clip(arguments: argparse.Namespace, tokenizer: Tokenizer) -> CLIPEvaluation:
    """A small CLIP after ``--steps`` batches of 64 scenes."""
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    text = {**shape, "num_hidden_layers": 3, "vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.end_id}
    text |= {"max_position_embeddings": TEXT_LENGTH, "pad_token_id": 0, "bos_token_id": tokenizer.end_id}
    vision = {**shape, "num_hidden_layers": arguments.layers, "image_size": SIDE, "patch_size": PATCH}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))
    found = CLIPEvaluation(model, ClipTokens(tokenizer), name="CLIP-shaped")
    pixels, ids = training_set(arguments, found, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=arguments.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    begun = time.monotonic()
    for step in range(1, arguments.steps + 1):
        chosen = torch.randint(len(pixels), (64,), generator=generator)
        images = pixels[chosen].float().div(255).sub(found.mean).div(found.std)
        loss = model(input_ids=ids[chosen], pixel_values=images, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            rate = step / (time.monotonic() - begun)
            print(
                f"CLIP-shaped model: step {step} of {arguments.steps}, loss {loss.item():.3f}, {rate:.1f}/s", flush=True
            )
    return found


def training_set(arguments: argparse.Namespace, model: CLIPEvaluation, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Images [N, 3, H, W] uint8 and ids of their short captions [N, T]."""
    samples = read_shards(arguments.scenes / "train").samples[: arguments.train_images]
    pixels = torch.stack(
        [
            (model.prepare(decode_image(s.image.read()), dense=True).pixels * model.std + model.mean).mul(255)
            for s in samples
        ]
    )
    captions = [s.sample.short_caption or "" for s in samples]
    return pixels.round().clamp(0, 255).to(torch.uint8), tokenizer(captions, TEXT_LENGTH)


if __name__ == "__main__":
    sys.exit(main())
