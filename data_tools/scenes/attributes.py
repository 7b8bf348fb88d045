"""What a scene is made of: the words in both languages, the values they stand for, and the held-out combinations."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Term:
    """One value of an attribute and its word in each language."""

    en: str
    zh: str

    def word(self, language: str) -> str:
        return getattr(self, language)


# Word -> RGB. Eight hues that stay apart under noise and JPEG; none of them is a background tint.
COLOURS = (
    (Term("red", "红色"), (214, 32, 38)),
    (Term("orange", "橙色"), (245, 134, 20)),
    (Term("yellow", "黄色"), (240, 212, 20)),
    (Term("green", "绿色"), (36, 150, 56)),
    (Term("cyan", "青色"), (26, 196, 206)),
    (Term("blue", "蓝色"), (34, 72, 204)),
    (Term("purple", "紫色"), (150, 44, 178)),
    (Term("black", "黑色"), (26, 26, 28)),
)
PATTERNS = (
    Term("solid", "素面"),
    Term("striped", "条纹"),
    Term("dotted", "波点"),
    Term("checkered", "格子"),
)
SHAPES = (
    Term("circle", "圆形"),
    Term("square", "方形"),
    Term("triangle", "三角形"),
    Term("star", "星形"),
    Term("cross", "十字形"),
    Term("heart", "心形"),
)
PLURALS = ("circles", "squares", "triangles", "stars", "crosses", "hearts")
# Word -> range of the drawn diameter in pixels. The gap between them is wider than either range.
SIZES = (
    (Term("small", "小的"), (27, 32)),
    (Term("large", "大的"), (47, 55)),
)
BACKGROUNDS = (
    (Term("white", "白色"), (250, 250, 250)),
    (Term("grey", "灰色"), (196, 196, 200)),
    (Term("pink", "粉色"), (250, 206, 214)),
    (Term("beige", "米色"), (238, 222, 186)),
)

ATTRIBUTES = (
    "colour",
    "pattern",
    "size",
)  # of an object, whose class is its shape; FG-OVD's wrong phrases change these
TERMS: dict[str, tuple[Term, ...]] = {
    "colour": tuple(term for term, _ in COLOURS),
    "pattern": PATTERNS,
    "size": tuple(term for term, _ in SIZES),
    "shape": SHAPES,
}
NUM_VALUES = {name: len(terms) for name, terms in TERMS.items()}


@dataclass(frozen=True)
class Look:
    """One object's attributes, as numbers into the tables above."""

    colour: int
    pattern: int
    shape: int
    size: int

    @property
    def unseen(self) -> bool:
        return is_held_out(self.colour, self.pattern, self.shape)

    def num_differences(self, other: Look) -> int:
        return sum(getattr(self, name) != getattr(other, name) for name in ("colour", "pattern", "shape", "size"))


def is_held_out(colour: int, pattern: int, shape: int) -> bool:
    """Whether no training image shows, and no training text names, this combination.

    24 of the 192. Every pair of two attributes stays in training: a held-out colour-pattern pair, say, is so with one
    shape of six at most, which makes the test one of composition and not of unknown parts.
    """
    return (colour + 2 * pattern + shape) % len(COLOURS) == 0


ALL_TRIPLES = tuple(product(range(len(COLOURS)), range(len(PATTERNS)), range(len(SHAPES))))
SEEN_TRIPLES = tuple(triple for triple in ALL_TRIPLES if not is_held_out(*triple))
UNSEEN_TRIPLES = tuple(triple for triple in ALL_TRIPLES if is_held_out(*triple))
