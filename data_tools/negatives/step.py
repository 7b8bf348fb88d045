"""The negatives step: every region's phrase gets ten altered ones, or none where too few are valid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_tools.execution.steps import Drop, Record, Shard, Step
from data_tools.negatives.interface import NEGATIVES_A_PHRASE, Generator, Outcome, Request, phrase_seed
from data_tools.phrases.interface import found_phrases
from pipeline.data.schema import Region, Sample


class NegativesStep(Step):
    """Fills ``negatives`` of the regions that have none (of all with ``replace_existing``).

    A region for which fewer than ``minimum`` valid ones are found keeps none; its reason is counted in the shard's
    report. ``source.negatives`` names the generator and the regions it filled.
    """

    name, version = "negatives", "1"

    def __init__(
        self,
        generator: Generator,
        *,
        minimum: int = NEGATIVES_A_PHRASE,
        wanted: int = NEGATIVES_A_PHRASE,
        seed: int = 0,
        replace_existing: bool = False,
    ) -> None:
        if not 1 <= minimum <= wanted:
            raise ValueError(f"minimum is {minimum}; it must be at least 1 and at most the {wanted} that are wanted")
        self.generator, self.minimum, self.wanted = generator, minimum, wanted
        self.seed, self.replace_existing = seed, replace_existing
        self.batch_size = generator.batch_size

    def settings(self) -> dict[str, Any]:
        return {
            **self.generator.describe(),
            "minimum": self.minimum,
            "wanted": self.wanted,
            "seed": self.seed,
            "replace_existing": self.replace_existing,
        }

    def apply(self, records: list[Record], shard: Shard) -> list[Record | Drop]:
        asked: list[tuple[str, Request]] = []
        for record in records:
            asked += self._requests(record)
        found: dict[str, Outcome] = {}
        if self.generator.costs:
            kept = {key: Outcome.from_json(shard.journal.get(key)) for key, _ in asked if key in shard.journal}
            found = {key: outcome for key, outcome in kept.items() if outcome is not None}
        missing = [(key, request) for key, request in asked if key not in found]

        def note(number: int, outcome: Outcome) -> None:
            key = missing[number][0]
            found[key] = outcome
            if self.generator.costs and outcome.failure is None:  # a failure is no answer: the next run asks again
                shard.journal.put(key, outcome.to_json())

        if missing:
            self.generator.generate([request for _, request in missing], note)
        return [self._filled(record, found, shard) for record in records]

    def _requests(self, record: Record) -> list[tuple[str, Request]]:
        sample = record.sample
        truths = true_phrases(sample)
        requests = []
        for number, region in enumerate(sample.regions):
            if region.negatives and not self.replace_existing:
                continue
            seed = phrase_seed(self.seed, record.key, number, region.phrase)
            request = Request(region.phrase, sample.language, truths, seed, self.wanted)
            requests.append((f"{record.key}/{number}", request))
        return requests

    def _filled(self, record: Record, found: dict[str, Outcome], shard: Shard) -> Record:
        sample, regions, filled = record.sample, [], []
        for number, region in enumerate(sample.regions):
            outcome = found.get(f"{record.key}/{number}")
            if outcome is None:
                shard.count("regions_left_as_they_were")
            else:
                region = self._with_negatives(region, outcome, f"{record.key}/{number}", shard)
                if region.negatives:
                    filled.append(number)
            regions.append(region)
        source = dict(sample.source)
        if self.replace_existing:
            source.pop("negatives", None)
        if filled:
            by = {"by": f"{self.name}/{self.version}", **self.generator.describe(), "regions": filled}
            source["negatives"] = {**by, "others": source["negatives"]} if "negatives" in source else by
        return replace(record, sample=replace(sample, regions=tuple(regions), source=source))

    def _with_negatives(self, region: Region, outcome: Outcome, key: str, shard: Shard) -> Region:
        for reason, number in outcome.rejected.items():
            shard.count(f"candidates_refused_{reason}", number)
        if outcome.failure is not None:
            shard.fail(key, f"{outcome.reason}: {outcome.failure}")
        if len(outcome.negatives) < self.minimum:
            shard.count(f"regions_without_negatives_{outcome.reason}")
            return replace(region, negatives=())
        full = len(outcome.negatives) == self.wanted
        shard.count("regions_with_all_negatives" if full else f"regions_with_fewer_negatives_{outcome.reason}")
        for negative in outcome.negatives:
            shard.count(f"changed_{'+'.join(sorted(negative.attributes))}")
        return replace(region, negatives=tuple(negative.text for negative in outcome.negatives))


def true_phrases(sample: Sample) -> tuple[str, ...]:
    """All phrases known to hold in the image: of its regions, and those found in its captions."""
    texts = [text for region in sample.regions for text in (region.phrase, region.long_phrase) if text is not None]
    texts += [found.text for found in found_phrases(sample)]
    return tuple(dict.fromkeys(texts))
