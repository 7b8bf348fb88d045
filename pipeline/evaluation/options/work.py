"""How an evaluation is run; none of it changes a score beyond rounding, but ``dtype``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class WorkOptions(BaseModel):
    """Options of every command that encodes images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field("cpu", description="cpu, cuda, cuda:1; with several processes a host, cuda is each one's own")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the weights")
    batch_size: int = Field(32, ge=1, description="images that are encoded at one time")
    threads: int = Field(2, ge=1, description="that decode images")
    cache: Path | None = Field(None, description="folder for features, to go on after an interruption")
    json_file: Path | None = Field(
        None, description="write the result here", json_schema_extra={"flag": "--json", "metavar": "FILE"}
    )
    no_tracking: bool = Field(False, description="do not log to the MLflow run that made the model")
