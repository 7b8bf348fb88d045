"""Numbers of a step: reduced over the ranks and shown on the terminal."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

BAR = "{percentage:3.0f} % |{bar:24}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}, {rate_fmt}]"
SHOWN = ("loss", "global_short", "global_long", "fgv", "fgt", "cmr", "tic", "images_per_second", "data_wait_share")


def reduce_metrics(means: dict[str, float], sums: dict[str, float]) -> dict[str, float]:
    """Means and sums over the ranks; collective.

    Ranks may hold different names (a fault that one rank met): a mean is over the ranks that have the name.
    """
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (means, sums))
    reduced: dict[str, float] = {}
    for part, is_mean in ((0, True), (1, False)):
        for name in sorted({name for rank in gathered for name in rank[part]}):
            values = [rank[part][name] for rank in gathered if name in rank[part]]
            reduced[name] = math.fsum(values) / (len(values) if is_mean else 1)
    return reduced


class StepProgress:
    """A bar in a terminal, plain lines elsewhere: step, losses, images/s, time left; on the first rank only."""

    def __init__(self, total_steps: int, done_steps: int, enabled: bool) -> None:
        self.total, self.enabled = total_steps, enabled
        self.started, self.first = time.monotonic(), done_steps
        in_terminal = enabled and sys.stderr.isatty()
        self.bar, self.parts = None, None
        if in_terminal:  # the losses have a line of their own, so that the bar keeps its width
            self.bar = tqdm(total=total_steps, initial=done_steps, unit="step", bar_format=BAR, dynamic_ncols=True)
            self.parts = tqdm(total=0, position=1, bar_format="{desc}", leave=False, dynamic_ncols=True)

    def step(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def report(self, step: int, metrics: dict[str, float]) -> None:
        if not self.enabled:
            return
        shown = " ".join(f"{name}={metrics[name]:.4g}" for name in SHOWN if name in metrics)
        if self.bar is not None:
            assert self.parts is not None, "made with the bar"
            self.parts.set_description_str(shown)
            return
        left = (time.monotonic() - self.started) / max(1, step - self.first) * (self.total - step)
        print(f"step {step}/{self.total} {shown} time_left={format_seconds(left)}", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.parts is not None:
            self.parts.close()


def format_seconds(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
