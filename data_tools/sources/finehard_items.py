"""The items of a FineHARD annotation file, as types: what fits neither is named and costs itself alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from pipeline.base.border import BorderError, parse_json, validated
from pipeline.data.schema import MAX_TEXT_LENGTH

MAX_REGIONS = 10_000  # of an item; the release has 13 an image


def _filled(text: str | None) -> str | None:
    return text if text is not None and text.strip() else None


Written = Annotated[str, Field(max_length=MAX_TEXT_LENGTH)]
Text = Annotated[Written | None, AfterValidator(_filled)]
Corner = Annotated[float, Field(allow_inf_nan=False)]


class RegionItem(BaseModel):
    """One box with its expressions. ``bbox``: x1, y1, x2, y2 as fractions, and a score where there is one."""

    model_config = ConfigDict(frozen=True, strict=True)

    bbox: list[Corner] = Field(max_length=64)
    short_expr: Text = None
    long_expr: Text = None
    flag_short_neg: bool | int | None = None
    short_expr_negs: dict[str, Written] | None = None

    @property
    def negatives(self) -> tuple[str, ...]:
        """The altered phrases in the order of their numbers, unless the release flags them as not usable."""
        found = (self.short_expr_negs or {}) if self.flag_short_neg else {}
        ordered = sorted(found.items(), key=lambda pair: (len(pair[0]), pair[0]))
        return tuple(text for _, text in ordered if text.strip())


class Item(BaseModel):
    """One image with its captions; its regions are read one by one, each can be wrong alone."""

    model_config = ConfigDict(frozen=True, strict=True)

    f_path: str = Field(min_length=1, max_length=4096)
    short_caption: Text = None
    caption: Text = None
    is_cn: bool | int | None = None
    bbox_info: list[Any] | None = Field(None, max_length=MAX_REGIONS)


_ITEM, _REGION = TypeAdapter(Item), TypeAdapter(RegionItem)


def read_item(value: Any) -> Item:
    """An item as JSON gave it. Raises: BorderError."""
    return validated(_ITEM, value, "the item does not fit")


def read_region(value: Any) -> RegionItem:
    """An entry of ``bbox_info``. Raises: BorderError."""
    return validated(_REGION, value, "the region does not fit")


def parse_items(data: bytes) -> Iterator[Any]:
    """The values between the commas of ``data``; a BorderError in the place of one that is no JSON."""
    try:
        yield from parse_json(b"[" + data + b"]")
        return
    except BorderError:  # one of them, which is found by going through them
        pass
    text, decoder, place = data.decode("utf-8", "surrogateescape"), json.JSONDecoder(), 0
    while (place := _next(text, place)) < len(text):
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:  # the file has changed since it was cut into spans
            yield BorderError(f"what follows is no JSON ({error})")
            return
        try:
            yield parse_json(text[place:end].encode("utf-8", "surrogateescape"))
        except BorderError as error:
            yield error
        place = end


def _next(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n,":
        place += 1
    return place
