"""The browser of these tests, which is a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.chromium import browser
from tests.fast import REASON


@pytest.fixture(scope="module")
def chromium(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.config.getoption("--fast"):
        pytest.skip(REASON)
    with browser() as opened:
        yield opened
