"""Prompt templates for class names: from a file, from an installed package, or this project's own.

Published protocols use other people's templates. They are not copied here: ``--templates open_clip`` reads the 80 of
ImageNet from an installed open_clip, ``--templates FILE`` any list.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter

from pipeline.base.border import quoted
from pipeline.base.languages import primary
from pipeline.evaluation.formats.paths import read_typed_json, text_lines
from pipeline.evaluation.options.base import ClassNameOptions
from pipeline.evaluation.results import EvaluationError

# A small general set in this project's own wording, in the manner of CLIP's; the Chinese ones say the same.
IMAGE_TEMPLATES = {
    "en": (
        "a photo of a {}.",
        "a picture of the {}.",
        "a close-up photo of a {}.",
        "a bright photo of a {}.",
        "a photo of one {}.",
        "a photo of a small {}.",
        "a photo of a large {}.",
    ),
    "zh": (
        "一张{}的照片。",
        "一幅{}的图片。",
        "一张{}的特写照片。",
        "一张明亮的{}照片。",
        "一张小的{}的照片。",
        "一张大的{}的照片。",
    ),
}
NAME_ALONE = "{}"
PACKAGE = "open_clip"
WHERE = (
    "the 80 templates of ImageNet are in open_clip (pip install --no-deps open_clip_torch, then --templates open_clip) "
    "and in CLIP's notebook Prompt_Engineering_for_ImageNet.ipynb: save them one a line, with {} for the name"
)


def templates_of(options: ClassNameOptions, kind: str, language: str) -> list[str]:
    """The templates in force for images (``short``) or regions: those that the options name, else the project's own.

    Raises:
        EvaluationError: a template without ``{}``, a file that is not there, both ways at once, or a language for which
            the project has none.
    """
    if options.template and options.templates:
        raise EvaluationError("--template and --templates were both given; write the prompts in one way")
    if options.template:
        return [checked(template) for template in options.template]
    if options.templates is not None:
        return read_templates(options.templates)
    if kind == "region":
        return [NAME_ALONE]
    if primary(language) not in IMAGE_TEMPLATES:
        raise EvaluationError(
            f"--language is {language}, for which the project has no prompts (it has {', '.join(IMAGE_TEMPLATES)}); "
            "give --template or --templates, or --templates name for the bare name"
        )
    return list(IMAGE_TEMPLATES[primary(language)])


_LINES: TypeAdapter[list[str]] = TypeAdapter(list[str])


def read_templates(source: str) -> list[str]:
    """Templates of a file (text, one a line, or a JSON list; ``{}`` or ``{c}`` for the name), or of ``open_clip``, or
    the bare ``name``.

    Raises:
        EvaluationError: neither; the remedy says where the published ones are.
    """
    if source == "name":
        return [NAME_ALONE]
    if source == PACKAGE:
        return [checked(template(NAME_ALONE)) for template in open_clip_metadata().OPENAI_IMAGENET_TEMPLATES]
    path = Path(source)
    if not path.is_file():
        raise EvaluationError(f"--templates {source} is neither a file nor open_clip nor name; {WHERE}")
    is_json = path.suffix.lower() == ".json"
    lines = read_typed_json(path, _LINES, "a list of templates") if is_json else text_lines(path)
    if not lines:
        raise EvaluationError(f"{path} holds no list of templates; {WHERE}")
    return [checked(line.strip().replace("{c}", NAME_ALONE)) for line in lines]


def checked(template: str) -> str:
    """``template``, which must hold ``{}`` once."""
    if template.count("{}") != 1 or template.count("{") != 1:
        raise EvaluationError(f"template {quoted(template)} must hold {{}} once, where the class name goes")
    return template


def open_clip_metadata() -> ModuleType:
    """open_clip's file of templates and class names, by itself: importing the package would need torchvision.

    Raises:
        EvaluationError: open_clip is not installed.
    """
    package = importlib.util.find_spec(PACKAGE)
    folders = list(package.submodule_search_locations or []) if package else []
    file = next((Path(folder) / "zero_shot_metadata.py" for folder in folders), None)
    if file is None or not file.is_file():
        raise EvaluationError(f"open_clip is not installed; {WHERE}")
    spec: Any = importlib.util.spec_from_file_location("open_clip_zero_shot_metadata", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
