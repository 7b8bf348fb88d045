"""What SC-CLIP costs over a plain forward: a ViT-B/16 of CLIP's shape at 224 px, random weights, batches of images.

The two are timed in turns, so that a machine whose speed drifts slows both, and the medians are compared. The
publication names about 1.2 times the plain forward.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.evaluation.scclip import PARTS, Calibration, calibrated_patches

PUBLISHED_RATIO = 1.2
SIDE, PATCH = 224, 16


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser(
        "benchmarks.scclip", __doc__, "  python -m benchmarks.scclip --device cuda --batch-size 64"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=4, help="images (default 4)")
    parser.add_argument("--repeats", type=int, default=7, help="timed turns (default 7)")
    parser.add_argument("--layers", type=int, default=12, help="blocks of the tower (default 12)")
    parser.add_argument("--width", type=int, default=768, help="of the tower, in multiples of 64 (default 768)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    heads = arguments.width // 64
    config = CLIPVisionConfig(
        hidden_size=arguments.width,
        intermediate_size=4 * arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        patch_size=PATCH,
        image_size=SIDE,
    )
    dtype = getattr(torch, arguments.dtype)
    model = CLIPVisionModelWithProjection(config).eval().to(device=arguments.device, dtype=dtype)
    pixels = torch.randn(arguments.batch_size, 3, SIDE, SIDE, device=arguments.device, dtype=dtype)
    forwards: dict[str, Callable[[], object]] = {
        "plain": partial(plain, model, pixels),
        "all parts": partial(calibrated, model, pixels, Calibration()),
    }
    for part in PARTS:
        forwards[f"without {part}"] = partial(calibrated, model, pixels, Calibration(off=frozenset({part})))
    seconds = in_turns(forwards, arguments.repeats, arguments.device)
    base = seconds.pop("plain")
    rows = [Row("plain forward", 1000 * base / arguments.batch_size, "ms/image")]
    rows += [
        Row(f"SC-CLIP, {name}", 1000 * value / arguments.batch_size, "ms/image", rows[0].value)
        for name, value in seconds.items()
    ]
    rows.append(Row("SC-CLIP over plain, against the published", seconds["all parts"] / base, "times", PUBLISHED_RATIO))
    report(rows, arguments.json)
    return 0


@torch.no_grad()
def plain(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Projected patch features, as a segmentation without calibration uses them."""
    tower = model.vision_model
    return model.visual_projection(tower.post_layernorm(tower(pixel_values=pixels).last_hidden_state[:, 1:]))


@torch.no_grad()
def calibrated(model: torch.nn.Module, pixels: torch.Tensor, settings: Calibration) -> torch.Tensor:
    tower = model.vision_model
    side = SIDE // PATCH
    patches = calibrated_patches(
        list(tower.encoder.layers),
        tower.pre_layrnorm(tower.embeddings(pixels)),
        lambda block, hidden: block(hidden, None),
        mask=torch.ones(len(pixels), side * side, dtype=torch.bool, device=pixels.device),
        grids=torch.tensor([[side, side]] * len(pixels), device=pixels.device),
        has_class_token=True,
        settings=settings,
    )
    return model.visual_projection(tower.post_layernorm(patches))


def in_turns(forwards: dict, repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each, one after the other in every turn, after one turn that does not count.

    On a CPU these are processor seconds of all threads: other programs on the machine do not lengthen them.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in forwards}
    for turn in range(repeats + 1):
        for name, forward in forwards.items():
            begun = clock()
            forward()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
