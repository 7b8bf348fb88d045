"""The kinds of device that an estimate knows, read from devices.yaml."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

TABLE = Path(__file__).with_name("devices.yaml")


class UnknownDevice(ValueError):
    """No such kind of device in the table."""


class Device(BaseModel):
    """Figures of one device; devices.yaml says what each means and where it is from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    bf16_teraflops: float = Field(gt=0)
    fp32_teraflops: float = Field(gt=0)
    memory_gigabytes: float = Field(gt=0)
    bandwidth: float = Field(gt=0)
    host_link: float = Field(gt=0)
    device_link: float = Field(gt=0)
    network: float = Field(gt=0)
    per_host: int = Field(ge=1)
    matrix_use: float = Field(gt=0, le=1)
    bandwidth_use: float = Field(gt=0, le=1)
    is_cpu: bool = False

    def flops_per_second(self, precision: str) -> float:
        """The matrix rate in ``precision`` (bf16 or fp32)."""
        return 1e12 * (self.bf16_teraflops if precision == "bf16" else self.fp32_teraflops)


def device_names() -> list[str]:
    """The names that ``--device`` takes."""
    return list(yaml.safe_load(TABLE.read_text(encoding="utf-8")))


def read_device(name: str) -> Device:
    """The device of a name.

    Raises:
        UnknownDevice: it is not in the table.
    """
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    if name not in table:
        raise UnknownDevice(f"--device is {name!r}; it must be one of {', '.join(table)}, or add it to {TABLE}")
    return Device(**table[name])
