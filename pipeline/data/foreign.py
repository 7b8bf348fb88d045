"""Samples of other people's tars: image bytes and a record of this project, whatever their captions lie in."""

from __future__ import annotations

from typing import Any

from pipeline.base.border import BorderError, one_line, parse_json
from pipeline.config import DataSettings
from pipeline.data.images import image_size
from pipeline.data.records import is_frame
from pipeline.data.schema import IMAGE_EXTENSIONS, Sample, SampleError, parse_sample

CAPTION_KEYS = ("caption", "text")  # of a KEY.json that is not this project's, where there is no KEY.txt
NO_CLIPS = "it is a clip, and data.streaming reads images alone; index the shards and set data.streaming=false"


def record_of(key: str, members: dict[str, Any], settings: DataSettings) -> tuple[bytes, Sample]:
    """Image bytes and record of a sample: this project's KEY.json, or a caption in KEY.txt or another KEY.json.

    Raises:
        SampleError, ImageFault: with their ``kind``.
    """
    extension = next((name for name in IMAGE_EXTENSIONS if name in members), None)
    if extension is None and any(map(is_frame, members)):
        raise SampleError("clip", NO_CLIPS, key=key)
    if extension is None:
        raise SampleError("missing_member", f"it has no image, only {sorted(members)!r:.80}", key=key)
    image = members[extension]
    data: Any = {}
    if "json" in members:
        try:
            data = parse_json(members["json"])
        except BorderError as error:
            raise SampleError("bad_json", f"the JSON member does not parse ({one_line(error)})", key=key) from error
        if isinstance(data, dict) and {"language", "width", "height"} <= set(data):
            sample = parse_sample(members["json"], key=key)
            if sample.frames is not None:
                raise SampleError("clip", NO_CLIPS, key=key)
            return image, sample
    caption = _caption(members, data, key)
    width, height = image_size(image, settings.max_image_megapixels)
    language = settings.streaming_language
    made = {"language": language, "width": width, "height": height, f"{settings.streaming_caption}_caption": caption}
    return image, parse_sample(made, key=key)


def _caption(members: dict[str, Any], data: Any, key: str) -> str:
    if "txt" in members:
        try:
            return members["txt"].decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise SampleError("bad_utf8", f"the .txt member is not UTF-8 ({error})", key=key) from error
    found = next(
        (data[name] for name in CAPTION_KEYS if isinstance(data, dict) and isinstance(data.get(name), str)), ""
    )
    if not found.strip():
        raise SampleError(
            "empty_caption", f"it has neither .txt nor one of {', '.join(CAPTION_KEYS)} in .json", key=key
        )
    return found.strip()
