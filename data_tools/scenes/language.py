"""What is said about a scene: phrases, wrong phrases and captions, in English and in Chinese."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np

from data_tools.scenes.attributes import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    NUM_VALUES,
    PATTERNS,
    PLURALS,
    SHAPES,
    SIZES,
    Look,
)
from data_tools.scenes.layout import PlacedObject, Scene

NUM_NEGATIVES = 10
TRAIN_ONE_CHANGE = 8  # of a training region's ten negatives; the others change two attributes

# [row][column] by thirds of the image
POSITIONS = {
    "en": (
        ("in the upper left", "at the top", "in the upper right"),
        ("on the left", "in the middle", "on the right"),
        ("in the lower left", "at the bottom", "in the lower right"),
    ),
    "zh": (("左上角", "上方", "右上角"), ("左侧", "中间", "右侧"), ("左下角", "下方", "右下角")),
}
RELATIONS = {
    "en": {"left": "left of", "right": "right of", "above": "above", "below": "below"},
    "zh": {"left": "左边", "right": "右边", "above": "上面", "below": "下面"},
}
NUMBERS = {"en": ("", "one", "two", "three", "four"), "zh": ("", "一个", "两个", "三个", "四个")}


def short_phrase(look: Look, language: str, plural: bool = False) -> str:
    """As "large red striped circle" or "大的红色的条纹圆形": every attribute, always in this order."""
    shape = PLURALS[look.shape] if plural and language == "en" else SHAPES[look.shape].word(language)
    size, colour = SIZES[look.size][0].word(language), COLOURS[look.colour][0].word(language)
    return _phrase(size, colour, PATTERNS[look.pattern].word(language), shape, language)


def _phrase(size: str, colour: str, pattern: str, shape: str, language: str) -> str:
    if language == "en":
        return f"{size} {colour} {pattern} {shape}"
    # The second 的 is there for the tokenizer: without it 色 goes to either neighbour as easily.
    return f"{size}{colour}的{pattern}{shape}"


def region_templates(language: str, attribute: str = "shape") -> list[str]:
    """Prompts of a class: every short phrase with {} for the attribute, so that their mean says nothing else."""
    terms = {
        "size": [term for term, _ in SIZES],
        "colour": [term for term, _ in COLOURS],
        "pattern": PATTERNS,
        "shape": SHAPES,
    }
    words = {name: [term.word(language) for term in known] for name, known in terms.items()} | {attribute: ["{}"]}
    return [
        _phrase(size, colour, pattern, shape, language) for size, colour, pattern, shape in product(*words.values())
    ]


def position_words(placed: PlacedObject, scene: Scene) -> str:
    row, column = 3 * placed.y // scene.height, 3 * placed.x // scene.width
    return POSITIONS[scene.language][row][column]


def relation_word(placed: PlacedObject, other: PlacedObject, language: str) -> str:
    """Where ``placed`` lies as seen from ``other``, along the axis on which they are further apart."""
    dx, dy = placed.x - other.x, placed.y - other.y
    if abs(dx) >= abs(dy):
        return RELATIONS[language]["left" if dx < 0 else "right"]
    return RELATIONS[language]["above" if dy < 0 else "below"]


def long_phrase(number: int, scene: Scene) -> str:
    """The short phrase, the object's position, and its relation to its nearest neighbour if there is one."""
    placed = scene.objects[number]
    others = [other for i, other in enumerate(scene.objects) if i != number and other.look != placed.look]
    phrase, position = short_phrase(placed.look, scene.language), position_words(placed, scene)
    nearest = min(others, key=lambda o: (o.x - placed.x) ** 2 + (o.y - placed.y) ** 2, default=None)
    if scene.language == "en":
        text = f"the {phrase} {position}"
        if nearest is not None:
            text += f", {relation_word(placed, nearest, 'en')} the {short_phrase(nearest.look, 'en')}"
        return text
    text = f"{position}的{phrase}"
    if nearest is not None:
        text += f"，在{short_phrase(nearest.look, 'zh')}的{relation_word(placed, nearest, 'zh')}"
    return text


def changed_looks(look: Look, num_changes: int, random: np.random.Generator) -> list[Look]:
    """Every look that differs from ``look`` in exactly that many of colour, pattern and size; in random order."""
    changed = []
    for names in combinations(ATTRIBUTES, num_changes):
        choices = [[v for v in range(NUM_VALUES[name]) if v != getattr(look, name)] for name in names]
        for values in product(*choices):
            fields = {name: getattr(look, name) for name in ("colour", "pattern", "shape", "size")}
            changed.append(Look(**(fields | dict(zip(names, values, strict=True)))))
    return [changed[i] for i in random.permutation(len(changed))]


def training_negatives(look: Look, scene: Scene, random: np.random.Generator) -> tuple[str, ...]:
    """Ten wrong phrases, most with one attribute changed. None is true of the image and none names a held-out
    combination: a phrase that training only ever calls wrong could never be found right."""
    present = {placed.look for placed in scene.objects}
    one, two = (
        [other for other in changed_looks(look, n, random) if other not in present and not other.unseen] for n in (1, 2)
    )
    chosen = one[:TRAIN_ONE_CHANGE]
    chosen += two[: NUM_NEGATIVES - len(chosen)]
    return tuple(short_phrase(chosen[i], scene.language) for i in random.permutation(len(chosen)))


def _groups(scene: Scene) -> list[list[PlacedObject]]:
    """Alike objects together, in the order of the first of each."""
    groups: dict[Look, list[PlacedObject]] = {}
    for placed in scene.objects:
        groups.setdefault(placed.look, []).append(placed)
    return list(groups.values())


def _counted(group: list[PlacedObject], language: str) -> str:
    """As "a large red striped circle", "two small blue dotted squares", "两个小的蓝色的波点方形"."""
    phrase = short_phrase(group[0].look, language, plural=len(group) > 1)
    if language == "zh":
        return NUMBERS["zh"][len(group)] + phrase
    return f"a {phrase}" if len(group) == 1 else f"{NUMBERS['en'][len(group)]} {phrase}"


def short_caption(scene: Scene) -> str:
    """The main objects: at most two groups, the large ones first."""
    main = sorted(_groups(scene), key=lambda group: -group[0].look.size)[:2]
    return (" and " if scene.language == "en" else "和").join(_counted(group, scene.language) for group in main)


def long_caption(scene: Scene, random: np.random.Generator) -> str:
    """The number of objects and the background, every object with its position, and a relation."""
    items = []
    for group in _groups(scene):
        positions = list(dict.fromkeys(position_words(placed, scene) for placed in group))
        counted = _counted(group, scene.language)
        if scene.language == "en":
            items.append(f"{counted} {_listed(positions, ', ', ' and ')}")
        else:
            items.append(f"{_listed(positions, '、', '和')}有{counted}")
    background, count = BACKGROUNDS[scene.background][0].word(scene.language), len(scene.objects)
    if scene.language == "en":
        things = "object" if count == 1 else "objects"
        text = f"{NUMBERS['en'][count]} {things} on a {background} background: {', '.join(items)}."
    else:
        text = f"{background}背景上有{NUMBERS['zh'][count]}物体：{'，'.join(items)}。"
    return text + _relation_sentence(scene, random)


def _listed(words: list[str], comma: str, last: str) -> str:
    return last.join([*([comma.join(words[:-1])] if len(words) > 1 else []), words[-1]])


def _relation_sentence(scene: Scene, random: np.random.Generator) -> str:
    """One relation between two objects whose colour and shape name them uniquely, or nothing."""
    names = [(placed.look.colour, placed.look.shape) for placed in scene.objects]
    unique = [placed for placed, name in zip(scene.objects, names, strict=True) if names.count(name) == 1]
    if len(unique) < 2:
        return ""
    one, other = (unique[i] for i in random.permutation(len(unique))[:2])
    language = scene.language
    relation = relation_word(one, other, language)
    first, second = (
        (" " if language == "en" else "的").join(
            (COLOURS[placed.look.colour][0].word(language), SHAPES[placed.look.shape].word(language))
        )
        for placed in (one, other)
    )
    if language == "en":
        return f" the {first} is {relation} the {second}."
    return f"{first}在{second}的{relation}。"
