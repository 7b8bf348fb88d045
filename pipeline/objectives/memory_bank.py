"""A first-in-first-out store of past regions and phrases, as further negatives of L_FGV for small batches.

It is counted in optimizer steps, not forward calls, holds the same rows in the same order on every rank, and lies in
the checkpoint. Rows of an optimizer step's micro-batches wait until ``advance`` and only then become candidates.

Shape letters: Q rows held, N rows of all ranks, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BankRows:
    """Detached past pairs: row q of ``region`` belongs to row q of ``text``."""

    region: Tensor  # [Q, D] float32
    text: Tensor  # [Q, D] float32
    phrase_hash: Tensor  # [Q] int64

    def last(self, count: int) -> BankRows:
        start = max(len(self.region) - count, 0)
        return BankRows(self.region[start:].clone(), self.text[start:].clone(), self.phrase_hash[start:].clone())


def _joined(parts: list[BankRows]) -> BankRows:
    return BankRows(*(torch.cat([getattr(part, name) for part in parts]) for name in ("region", "text", "phrase_hash")))


class MemoryBank:
    """The newest ``size`` pairs, from the end of optimizer step ``start_step`` on (size 0: switched off)."""

    def __init__(self, size: int, start_step: int = 0) -> None:
        if size < 0 or start_step < 0:
            raise ValueError(f"size is {size}, start_step is {start_step}; neither may be negative")
        self.size, self.start_step = size, start_step
        self._held: BankRows | None = None
        self._waiting: list[BankRows] = []

    @property
    def filled(self) -> int:
        """Pairs held now, at most ``size``."""
        return 0 if self._held is None else len(self._held.region)

    @property
    def rows(self) -> BankRows | None:
        """The pairs held, oldest first; None where there are none."""
        return self._held if self.filled else None

    def observe(self, region: Tensor, text: Tensor, phrase_hash: Tensor) -> None:
        """Put aside the pairs of one micro-batch: [N, D], [N, D], [N], of *all* ranks, in the global order."""
        if self.size and len(region):
            self._waiting.append(BankRows(region.detach(), text.detach(), phrase_hash).last(self.size))

    def advance(self, optimizer_step: int) -> None:
        """Take up what was put aside; ``optimizer_step`` counts the steps done, this one included. No collective."""
        waiting, self._waiting = self._waiting, []
        if optimizer_step < self.start_step or not waiting:
            return
        held = [] if self._held is None else [self._held]
        self._held = _joined([*held, *waiting]).last(self.size)

    def state_dict(self) -> dict[str, dict[str, Tensor] | None]:
        waiting = _joined(self._waiting) if self._waiting else None
        return {
            name: None if rows is None else {key: value.cpu() for key, value in vars(rows).items()}
            for name, rows in (("held", self._held), ("waiting", waiting))
        }

    def load_state_dict(self, state: dict[str, dict[str, Tensor] | None], device: torch.device | str = "cpu") -> None:
        """Go on with the state of another run; a smaller ``size`` keeps the newest rows, size 0 none."""

        def rows(name: str) -> BankRows | None:
            stored = state[name]
            if stored is None or not self.size:
                return None
            return BankRows(**{key: value.to(device) for key, value in stored.items()}).last(self.size)

        self._held = rows("held")
        waiting = rows("waiting")
        self._waiting = [] if waiting is None else [waiting]
