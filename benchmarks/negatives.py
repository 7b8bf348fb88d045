"""Rule-based negatives on the FG-OVD hard phrases and on Chinese captions: rate, validity, and what is changed.

Rows ``rate_*`` are phrases a second on one core (CPU time), parsing, ten negatives and all validators included; the
baseline is the 2,000 that is asked for. ``ten_valid_*`` is the share of phrases with ten valid negatives, and the
baseline is the share asked for. ``share_*`` is the share of all changes that are of one attribute, and the baseline is
the same share among the negatives that FG-OVD gives for the same phrases. ``whole_fgovd_phrases`` is the share of
FG-OVD phrases that the phrase finder gives back whole.
"""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.reporting import Row, benchmark_parser, report
from data_tools.negatives.interface import Outcome, Request, outcomes, phrase_seed
from data_tools.negatives.rules import RuleGenerator
from data_tools.negatives.validate import Validator
from data_tools.phrases.finders import finder

ASKED_RATE, ASKED_ENGLISH, ASKED_CHINESE = 2000.0, 0.9, 0.6
REPEATS = 3


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser("benchmarks.negatives", __doc__, "  … --text ../shared/data/text --examples\n")
    parser.add_argument("--text", type=Path, required=True, help="folder with fgovd-hard.jsonl.gz, captions-zh.txt.gz")
    parser.add_argument("--examples", action="store_true", help="print a few phrases with their negatives as well")
    arguments = parser.parse_args(argv)
    with gzip.open(arguments.text / "fgovd-hard.jsonl.gz", "rt", encoding="utf-8") as lines:
        given = {row["positive"]: row["negatives"] for row in map(json.loads, lines)}
    with gzip.open(arguments.text / "captions-zh.txt.gz", "rt", encoding="utf-8") as lines:
        captions = [line.strip() for line in lines]
    chinese = [found.text for caption in captions for found in finder("zh")(caption)]
    rows = []
    for name, language, phrases, asked in (
        ("english", "en", sorted(given), ASKED_ENGLISH),
        ("chinese", "zh", chinese, ASKED_CHINESE),
    ):
        rate, found = _generate(phrases, language)
        ten = sum(len(outcome.negatives) == 10 for outcome in found) / len(phrases)
        rows += [Row(f"rate_{name}", rate, "phrases/s", ASKED_RATE), Row(f"ten_valid_{name}", ten, "of phrases", asked)]
        rows += _shares(name, found, given if language == "en" else {})
        if arguments.examples:
            _print_examples(phrases, found)
    rows.append(Row("phrases_per_chinese_caption", len(chinese) / len(captions), "phrases"))
    whole = sum(_is_whole(phrase) for phrase in given) / len(given)
    rows.append(Row("whole_fgovd_phrases", whole, "of phrases"))
    report(rows, arguments.json)
    return 0


def _generate(phrases: list[str], language: str) -> tuple[float, list[Outcome]]:
    requests = [Request(phrase, language, (), phrase_seed(0, "", n, phrase)) for n, phrase in enumerate(phrases)]
    generator = RuleGenerator()
    outcomes(generator, requests[:50])  # lexicons are loaded once a process
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        found = outcomes(generator, requests)
        seconds.append(time.process_time() - start)
    return len(phrases) / min(seconds), found


def _shares(name: str, found: list[Outcome], given: dict[str, list[str]]) -> Iterator[Row]:
    ours = Counter(
        attribute for outcome in found for negative in outcome.negatives for attribute in negative.attributes
    )
    theirs: Counter[str] = Counter()
    for phrase, negatives in given.items():
        validator = Validator("en", phrase)
        for text in negatives:
            theirs.update(validator.changed_attributes(text))
    for attribute in sorted(ours | theirs, key=lambda attribute: -ours[attribute]):
        baseline = theirs[attribute] / theirs.total() if theirs else None
        yield Row(f"share_{name}_{attribute}", ours[attribute] / ours.total(), "of changes", baseline)


def _is_whole(phrase: str) -> bool:
    def bare(text: str) -> str:
        return text.strip(" .")

    return any(bare(found.text) == bare(phrase) for found in finder("en")(phrase))


def _print_examples(phrases: list[str], found: list[Outcome]) -> None:
    step = max(1, len(phrases) // 6)
    for phrase, outcome in list(zip(phrases, found, strict=True))[step // 2 :: step]:
        print(phrase)
        for negative in outcome.negatives:
            print(f"    {'+'.join(negative.attributes)}: {negative.text}")


if __name__ == "__main__":
    raise SystemExit(main())
