"""τ of L_CMR: the mean lead of the true phrases over the pairs of the optimizer step before.

A tensor with a state, never a Python float, so that a resume goes on with it.
"""

from __future__ import annotations

import torch
from torch import Tensor


class AdaptiveMargin:
    """τ starts at 0. ``observe`` every micro-batch's sum and count over all ranks; ``advance`` once an optimizer step.

    ``maximum`` None: τ as it comes, also below 0 (paper). A number: τ is kept within 0 … maximum (public code: 10).
    A step without any pair leaves τ as it is.
    """

    def __init__(self, maximum: float | None = None) -> None:
        if maximum is not None and maximum < 0:
            raise ValueError(f"maximum is {maximum}; a margin's upper end must not be negative")
        self.maximum = maximum
        self.value = torch.zeros((), dtype=torch.float64)
        self.pending = torch.zeros(2, dtype=torch.float64)  # sum of leads, number of pairs

    def to(self, device: torch.device) -> None:
        """Keep τ on ``device``."""
        self.value, self.pending = self.value.to(device), self.pending.to(device)

    def observe(self, sum_and_count: Tensor) -> None:
        """Add [2] (Σ lead, number of pairs), already summed over the ranks."""
        self.pending = self.pending.to(sum_and_count.device) + sum_and_count.detach().double()

    def advance(self) -> None:
        """Make τ the mean of what was observed since the last call. No collective."""
        total, count = self.pending.unbind()
        mean = total / count.clamp(min=1)
        if self.maximum is not None:
            mean = mean.clamp(0.0, self.maximum)
        self.value = torch.where(count > 0, mean, self.value.to(mean.device))
        self.pending = torch.zeros_like(self.pending)

    def __float__(self) -> float:
        return float(self.value)

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": self.value.cpu().clone(), "pending": self.pending.cpu().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.value, self.pending = state["value"].clone(), state["pending"].clone()
