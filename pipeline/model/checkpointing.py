"""Which layers are computed again in the backward instead of keeping what they computed in the forward.

Shape letters: N images or texts, T patches or tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Recomputation:
    """``(patches, n)``: batches of images of at least so many patches recompute each n-th layer of both towers.

    The last entry that a batch reaches holds; n = 0 keeps everything.
    """

    from_patches: tuple[tuple[int, int], ...] = ()

    def every(self, patches: int) -> int:
        """n for a batch of images of ``patches``."""
        reached = [n for start, n in sorted(self.from_patches) if patches >= start]
        return reached[-1] if reached else 0


EVERY_LAYER = Recomputation(((0, 1),))


def run_layers(layers: Iterable[nn.Module], hidden: Tensor, mask: Tensor | None, every: int, first: int = 0) -> Tensor:
    """The layers one after another on [N, T, D]; each ``every``-th is recomputed in the backward, none for 0.

    ``first``: the number of the first one among the tower's.
    """
    for number, layer in enumerate(layers, first):
        if every and number % every == 0:
            # Without dropout there is no random state to bring back.
            hidden = checkpoint(layer, hidden, mask, use_reentrant=False, preserve_rng_state=False)
        else:
            hidden = layer(hidden, mask)
    return hidden
