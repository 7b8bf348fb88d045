"""What every group of settings is: frozen, with known names only, and within what any name, path or number can be."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, model_validator

from pipeline.base.border import quoted

MAX_TEXT = 4096  # characters of a setting: the longest path of Linux
MAX_WHOLE = 2**31 - 1  # counts beyond it overflow the 32-bit numbers of indexes and kernels


def one_or_several(names: object) -> object:
    """A single text where a list of them is meant."""
    return [names] if isinstance(names, str) else names


class Group(BaseModel):
    """A frozen group of settings that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _bounded(self) -> Group:
        """What no name, path or number of a run can be, whichever setting holds it."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
            for part in parts:
                if isinstance(part, str) and (len(part) > MAX_TEXT or any(ord(letter) < 32 for letter in part)):
                    raise ValueError(f"{name} is {quoted(part)}; a text has at most {MAX_TEXT} characters on one line")
                if isinstance(part, int) and name != "seed" and abs(part) > MAX_WHOLE:
                    raise ValueError(f"{name} is {quoted(part)}; whole numbers go up to {MAX_WHOLE}")
        return self
