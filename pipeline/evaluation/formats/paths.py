"""Finding the image that an annotation names, and reading annotation files with errors that say which file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from pipeline.base.border import BorderError, one_line, parse_json, read_bounded, shown, validated
from pipeline.evaluation.formats.items import ImageItem
from pipeline.evaluation.results import EvaluationError

T = TypeVar("T")

MAX_NAME = 255  # bytes of a file name, and characters of a path below the folder
MAX_ANNOTATION_BYTES = 4 << 30  # LVIS has 1.1 GB
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


class ImageFinder:
    """Names to files below one folder. Each name is looked up once; a missing one gives None."""

    def __init__(self, folder: Path | None, near: Path) -> None:
        """``folder`` None: the folder of the annotation file ``near``, where names are usually relative to."""
        self.folder = folder or (near if near.is_dir() else near.parent)
        if not self.folder.is_dir():
            raise EvaluationError(f"image folder {self.folder} does not exist; give --images the folder of the images")
        self._known: dict[str, ImageItem | None] = {}

    def __call__(self, name: str) -> ImageItem | None:
        if name not in self._known:
            path = next((path for path in self._candidates(name) if path.is_file()), None)
            self._known[name] = None if path is None else ImageItem(name, path)
        return self._known[name]

    def _candidates(self, name: str) -> Iterator[Path]:
        bare = Path(name).name
        if len(name) > MAX_NAME or "\0" in name or bare in ("", ".."):
            return
        if Path(name).is_absolute() or ".." in Path(name).parts:  # a file may not lead out of the images' folder
            name = bare
        for part in (name, bare):
            yield self.folder / part
        if Path(name).suffix.lower() not in EXTENSIONS:  # lists often name an image without its ending
            for extension in EXTENSIONS:
                yield self.folder / f"{name}{extension}"
        if bare.startswith("COCO_"):  # the names of COCO 2014 end in those of 2017
            tail = bare.rpartition("_")[2]
            yield self.folder / tail
            yield self.folder / f"{tail}.jpg"


@contextmanager
def expecting(path: Path, form: str) -> Iterator[None]:
    """Names the file where its content is not built as ``form`` is."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise EvaluationError(
            f"{path} is not of the form of {form} ({type(error).__name__}: {str(error)[:80]}); give the published file"
        ) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; errors name it."""
    try:
        return parse_json(read_bounded(path, MAX_ANNOTATION_BYTES))
    except BorderError as error:
        raise EvaluationError(f"{path} is no annotation file ({one_line(error)}); give the file itself") from error


def read_typed_json(path: Path, adapter: TypeAdapter[T], form: str) -> T:
    """The content of a JSON file as the type of ``adapter``; ``form`` says in words what it must be.

    Raises:
        EvaluationError: it is not.
    """
    try:
        return validated(adapter, read_bounded(path, MAX_ANNOTATION_BYTES), shown(path), f"it must be {form}")
    except BorderError as error:
        raise EvaluationError(str(error)) from error


def text_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file without their ends, empty ones left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8 ({error}); convert it first") from error
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]
