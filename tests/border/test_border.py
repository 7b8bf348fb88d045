"""Whatever is damaged on its way in is harmless or named: no traceback, no hang, nothing written elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.border.formats import MODULES
from tests.border.runner import Child, corpus, generated, run_format

CASES, LONG_CASES = 200, 3000
FEWER_CASES = dict.fromkeys(("model", "clip", "server", "suite"), 60)  # a tenth of a second each; all in the long test


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.close()


@pytest.mark.parametrize("name", MODULES)
def test_a_damage_is_harmless_or_named(child: Child, name: str) -> None:
    tally = run_format(
        child, name, lambda base: [*corpus(name), *generated(name, base, range(FEWER_CASES.get(name, CASES)))]
    )
    assert not tally.findings, "\n".join(map(str, tally.findings[:10]))
    assert tally.outcomes["named"], "none of the damages was noticed, so nothing was tried"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MODULES)
def test_thousands_of_damages_are_harmless_or_named(child: Child, name: str) -> None:
    first = FEWER_CASES.get(name, CASES)
    tally = run_format(child, name, lambda base: generated(name, base, range(first, CASES + LONG_CASES)))
    assert not tally.findings, "\n".join(map(str, tally.findings[:10]))
