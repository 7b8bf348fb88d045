"""A folder of ONNX files, run by onnxruntime; ``python -m pipeline.export RUN --as onnx`` writes it.

Letters: B images, P patches, R boxes, N texts, T tokens, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .folder import StartError, read_object

DESCRIPTION = "onnx.json"
IMAGE, REGIONS, TEXT, LONG = "image.onnx", "regions.onnx", "text.onnx", "text-long.onnx"
WEIGHTS = "weights.bin"


class ONNXModel:
    """The graphs of a folder. Inputs and outputs are torch tensors on the CPU, as those of ``FGCLIP2``."""

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        """``threads``: of onnxruntime; 0: as many as there are cores.

        Raises:
            StartError: a file is missing, or onnxruntime is not installed or does not take it.
        """
        try:
            import onnxruntime  # an extra of the package; nothing else needs it
        except ImportError as error:
            raise StartError(
                f"{folder} is run by onnxruntime, which does not load ({error}); pip install -e '.[onnx]'"
            ) from error
        self.folder = Path(folder)
        self.description = read_object(self.folder / DESCRIPTION)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # its warnings speak of kernels that it chose, not of results
        self._sessions: dict[str, Any] = {}
        for name in (IMAGE, REGIONS, TEXT, LONG):
            if not (self.folder / name).is_file():
                raise StartError(f"{self.folder} holds no {name}; export it again")
            try:
                self._sessions[name] = onnxruntime.InferenceSession(str(self.folder / name), options)
            except RuntimeError as error:  # all of onnxruntime's own errors
                raise StartError(f"{self.folder / name} does not load ({str(error)[:160]}); export it again") from error

    def images(self, pixel_values: Tensor, mask: Tensor, grids: Tensor) -> tuple[Tensor, Tensor]:
        """[B, P, 768] in [-1, 1], [B, P], [B, 2] -> image embeddings [B, D] of unit norm, patch features [B, P, D].

        Raises:
            ValueError: a grid is longer than the file allows.
        """
        longest = int(self.description["longest_side"])
        if int(grids.max()) > longest:
            raise ValueError(
                f"a grid has {int(grids.max())} patches along one side; the file holds positions for {longest}: resize"
            )
        found = self._run(IMAGE, {"pixel_values": pixel_values.float(), "pixel_attention_mask": mask.long(),
                                  "spatial_shapes": grids.long()})  # fmt: skip
        return found[0], found[1]

    def regions(self, dense: Tensor, grid: Tensor, boxes: Tensor) -> Tensor:
        """Patch features [P, D] of one image with ``grid`` [2], boxes [R, 4] in 0..1 -> [R, D] of unit norm.

        A box without area gives a row of 0.
        """
        if not len(boxes):
            return dense.new_zeros(0, dense.shape[-1])
        return self._run(REGIONS, {"dense": dense.float(), "grid": grid.long(), "boxes": boxes.float()})[0]

    def texts(self, ids: Tensor, kind: str) -> Tensor:
        """Ids [N, T] padded on the right with 0 -> [N, D] of unit norm; ``kind`` is short, long or region."""
        if kind == "long":
            return self._run(LONG, {"input_ids": ids})[0]
        return self._run(TEXT, {"input_ids": ids})[0 if kind == "short" else 1]

    def _run(self, name: str, inputs: dict[str, Tensor]) -> list[Tensor]:
        arrays = {key: np.ascontiguousarray(value.numpy()) for key, value in inputs.items()}
        return [torch.from_numpy(found) for found in self._sessions[name].run(None, arrays)]
