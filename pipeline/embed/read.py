"""Embeddings as they were written, for searching."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.border import read_json
from pipeline.embed.embed import MANIFEST
from pipeline.evaluation.formats.items import ImageItem
from pipeline.evaluation.results import EvaluationError


@dataclass(frozen=True)
class Embeddings:
    """``vectors`` [N, D] float32 of unit norm; row n is of ``item(n)``."""

    vectors: np.ndarray
    rows: pa.Table

    def __len__(self) -> int:
        return len(self.vectors)

    def item(self, number: int) -> ImageItem:
        """Where the image of a row is."""
        row = self.rows.slice(number, 1).to_pylist()[0]
        return ImageItem(row["key"], Path(row["path"]), row["offset"], row["length"])

    def text(self, number: int) -> str | None:
        """The caption or phrase of a row."""
        return self.rows["text"][number].as_py()


def read_embeddings(folder: str | Path) -> Embeddings:
    """All rows of a folder that ``python -m pipeline.embed`` finished.

    Raises:
        EvaluationError: it has no manifest, or holds no row.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise EvaluationError(f"{folder} holds no {MANIFEST}; run python -m pipeline.embed to its end first")
    files = [folder / Path(name).name for name, rows in read_json(folder / MANIFEST)["files"].items() if rows]
    if not files:
        raise EvaluationError(f"{folder} holds no embedding: nothing could be embedded; its {MANIFEST} says why")
    table = pa.concat_tables([pq.read_table(file) for file in files])
    column = table["embedding"].combine_chunks()
    vectors = np.asarray(column.flatten()).astype(np.float32).reshape(len(table), -1)
    return Embeddings(vectors, table.drop_columns(["embedding"]))
