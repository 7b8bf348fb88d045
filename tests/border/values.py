"""What sound values are swapped with, and how what JSON cannot hold is spelled."""

from __future__ import annotations

import json
import random
from typing import Any

MARK = "\ue000"  # around the number of a value that is spelled by hand
HUGE_TEXT = 50_000_000  # characters
DEEP = 10_000
DEEP_LISTS = {"$": "nest", "open": "[", "count": DEEP}

# The last kinds of VALUES spell out what ``json`` would not write.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1e30, 2**31, 2**53 + 1, 2**63, -(2**63) - 1),
    *("", " ", "0", "-1", "nan", "a" * 300, "a\x00b", "\n", "%20", "一只红色的杯子", "😀", "\ufeff", "\u202e\u2066"),
    *("../../outside", "/etc/passwd", "~/.ssh/id_rsa", "file:///etc/passwd", "http://127.0.0.1:9/x"),
    *("\x1b[2J\x1b]0;title\x07", "<script>alert(1)</script>"),
    *([], {}, [[]], [None], [0, 0, 0, 0], [1, 2, 3], ["a", "b"], [[1]], {"a": 1}, {"": None}, {"0": []}),
    *({"$": "raw", "text": text} for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "-0.0")),
    *({"$": "raw", "text": text} for text in ('"\\ud800"', '"a \\udc00 cat"', '{"\\ud800": 1}', '{"a": 1, "a": 2}')),
    *({"$": "digits", "count": count} for count in (400, 5000)),
    *({"$": "text", "count": 30_000}, {"$": "list", "count": 100_000}),
    *(DEEP_LISTS, {"$": "nest", "open": '{"a":', "count": DEEP}),
]
HUGE: list[Any] = [{"$": "text", "count": HUGE_TEXT}, {"$": "list", "count": 5_000_000}]
HUGE_SHARE = 0.004
WHOLE: list[Any] = [None, [], {}, 0, "", "text", True, [[]], [None], [1, 2], {"a": []}, DEEP_LISTS]


def some_value(rng: random.Random) -> Any:
    """A value of ``VALUES``, rarely one of 10 to 50 megabytes."""
    return rng.choice(HUGE if rng.random() < HUGE_SHARE else VALUES)


def spell(value: Any) -> bytes:
    """JSON of a value that may hold ``{"$": …}``: raw text, digits, long texts and lists, deep nests."""
    by_hand: list[str] = []

    def replace(part: Any) -> Any:
        if isinstance(part, dict) and "$" in part:
            by_hand.append(_by_hand(part))
            return f"{MARK}{len(by_hand) - 1}{MARK}"
        if isinstance(part, dict):
            return {name: replace(one) for name, one in part.items()}
        return [replace(one) for one in part] if isinstance(part, list) else part

    text = json.dumps(replace(value), ensure_ascii=False)
    for number, one in enumerate(by_hand):
        text = text.replace(f'"{MARK}{number}{MARK}"', one)
    return text.encode("utf-8", "surrogatepass")


def _by_hand(part: dict[str, Any]) -> str:
    count = part.get("count", 0)
    if part["$"] == "raw":
        return part["text"]
    if part["$"] == "digits":
        return "9" * count
    if part["$"] == "text":
        return '"' + "a" * count + '"'
    if part["$"] == "list":
        return "[" + "0," * (count - 1) + "0]"
    close = "}" if part["open"].startswith("{") else "]"
    return part["open"] * count + "1" + close * count
