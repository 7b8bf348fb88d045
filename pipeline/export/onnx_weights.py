"""The weights of several ONNX graphs in one file: each once, as float32, float16 or int8.

Smaller weights are expanded where they are used (Cast, DequantizeLinear), so the mathematics stays in float32 and any
runtime of ONNX runs them. int8 has one scale a row or a column of a matrix, whichever loses less, and no zero point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.model.onnx_runtime import WEIGHTS

LEAST_BYTES = 1024  # smaller tensors stay in the graph's own file
LEAST_NUMBERS = 4096  # smaller ones stay float32: there is nothing to gain
ALIGNMENT = 4096  # bytes: what a runtime can map into memory


class WeightFile:
    """``weights.bin`` while it is written; tensors of equal bytes are stored once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.places = folder, dict[str, int]()
        self._file: BinaryIO = (folder / WEIGHTS).open("wb")

    def close(self) -> None:
        self._file.close()

    def stored(self, array: np.ndarray, name: str) -> Any:
        """A tensor of onnx_ir that points into the file."""
        import onnx_ir as ir  # of the extra onnx

        data = np.ascontiguousarray(array).tobytes()
        digest = f"{array.dtype}{hashlib.sha256(data).hexdigest()}"
        if digest not in self.places:
            self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
            self.places[digest] = self._file.tell()
            self._file.write(data)
        return ir.ExternalTensor(
            WEIGHTS,
            self.places[digest],
            len(data),
            ir.DataType.from_numpy(array.dtype),
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=self.folder,
        )


def store(models: Mapping[str, Any], folder: Path, kind: str) -> None:
    """Write graphs (onnx_ir's models by file name) with their weights as ``kind``."""
    import onnx_ir as ir  # of the extra onnx

    weights = WeightFile(folder)
    try:
        for name, model in models.items():
            for value in list(model.graph.initializers.values()):
                array = value.const_value.numpy()
                if kind != "float32" and array.dtype == np.float32 and array.ndim >= 2 and array.size >= LEAST_NUMBERS:
                    _shrink(model.graph, value, array, kind, weights)
                elif array.nbytes >= LEAST_BYTES:
                    value.const_value = weights.stored(array, value.name)
            _forget_source(model)
            ir.save(model, folder / name)
    finally:
        weights.close()


def _forget_source(model: Any) -> None:
    """Remove the notes of torch's exporter on which line of which file made a node; they name this machine's paths."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
        graph.metadata_props.clear()


def _shrink(graph: Any, value: Any, array: np.ndarray, kind: str, weights: WeightFile) -> None:
    """Put a smaller tensor and the node that expands it in the place of an initializer."""
    import onnx_ir as ir  # of the extra onnx

    if kind == "float16":
        small = _initializer(graph, f"{value.name}_float16", weights, array.astype(np.float16))
        node = ir.node("Cast", [small], attributes={"to": ir.DataType.FLOAT})
    else:
        numbers, scales, axis = quantised(array)
        small = _initializer(graph, f"{value.name}_int8", weights, numbers)
        scale = _initializer(graph, f"{value.name}_scale", weights, scales)
        node = ir.node("DequantizeLinear", [small, scale], attributes={"axis": axis})
    expanded = node.outputs[0]
    expanded.name = f"{value.name}_expanded"
    expanded.shape, expanded.dtype = value.shape, ir.DataType.FLOAT
    graph.insert_before(graph[0], node)
    ir.convenience.replace_all_uses_with(value, expanded)
    del graph.initializers[value.name]


def _initializer(graph: Any, name: str, weights: WeightFile, array: np.ndarray) -> Any:
    import onnx_ir as ir  # of the extra onnx

    tensor = weights.stored(array, name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.initializers[name] = value
    return value


def quantised(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Numbers of -127..127, one scale along ``axis``, and that axis: the one of the last two with the smaller error."""
    tried = []
    for axis in (array.ndim - 2, array.ndim - 1):
        others = tuple(n for n in range(array.ndim) if n != axis)
        scales = np.abs(array).max(axis=others) / 127
        scales = np.where(scales > 0, scales, 1).astype(np.float32)
        broad = scales.reshape([-1 if n == axis else 1 for n in range(array.ndim)])
        numbers = np.clip(np.rint(array / broad), -127, 127).astype(np.int8)
        error = float(np.square(numbers * broad - array).sum(dtype=np.float64))
        tried.append((error, numbers, scales, axis))
    _, numbers, scales, axis = min(tried, key=lambda one: one[0])
    return numbers, scales, axis
