"""Pictures of a demo's result: boxes of test scenes with the scores of their phrases, and the curves of both stages."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from pipeline.data.images import decode_image
from pipeline.data.reader import iterate_shards
from pipeline.data.schema import Sample
from pipeline.drawing.boxes import draw_regions
from pipeline.drawing.save import save_picture
from pipeline.model import FGCLIP2
from pipeline.tracking.figures import draw_losses

NUM_PHRASES = 4  # the true one and three wrong ones a box


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python launch/demo/pictures.py runs/demo --out runs/demo/pictures",
    )
    parser.add_argument("demo", type=Path, help="the demo's output folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--scenes", type=int, default=2, help="scenes a language (default 2)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = FGCLIP2.load(arguments.demo / "stage2")
    panels = [_panel(model, *scene) for scene in _choose(arguments.demo / "data" / "test", arguments.scenes)]
    save_picture(_stack(panels), arguments.out / "regions.png")
    save_picture(draw_losses(arguments.demo / "stage1", arguments.demo / "stage2"), arguments.out / "curves.png")
    return 0


def _choose(folder: Path, count: int) -> list[tuple[Image.Image, Sample]]:
    """The first scenes of each language with three objects or more."""
    chosen: dict[str, list[tuple[Image.Image, Sample]]] = {"en": [], "zh": []}
    for _, image, sample, _ in iterate_shards(folder):
        if len(sample.regions) >= 3 and len(chosen[sample.language]) < count:
            chosen[sample.language].append((decode_image(image), sample))
        if all(len(scenes) == count for scenes in chosen.values()):
            break
    return [scene for scenes in chosen.values() for scene in scenes]


def _panel(model: FGCLIP2, image: Image.Image, sample: Sample) -> Image.Image:
    """Softmax over each box's phrases at the learned scale, as stage 2 trains it."""
    boxes = [region.image_box for region in sample.regions]
    regions = model.encode_regions(image, boxes, box_format="normalised")
    labels = []
    for feature, region in zip(regions.embeds, sample.regions, strict=True):
        phrases = [region.phrase, *region.negatives[: NUM_PHRASES - 1]]
        texts = model.encode_text(phrases, kind="region").embeds
        with torch.no_grad():
            logits = feature @ texts.T * model.scales().hardneg
        pairs = zip(phrases, logits.softmax(-1).tolist(), strict=True)
        labels.append(sorted(pairs, key=lambda pair: -pair[1]))
    return draw_regions(image, boxes, labels, [region.phrase for region in sample.regions])


def _stack(panels: list[Image.Image]) -> Image.Image:
    """Two columns."""
    rows = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    width = max(sum(panel.width for panel in row) for row in rows)
    heights = [max(panel.height for panel in row) for row in rows]
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for panel in row:
            sheet.paste(panel, (left, top))
            left += panel.width
        top += height
    return sheet


if __name__ == "__main__":
    sys.exit(main())
