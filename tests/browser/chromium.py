"""A headless Chromium of the system, by Playwright; tests that need it are skipped where there is none.

``CHROMIUM`` names another executable. With ``SCREENSHOTS=folder`` every page that a test shows is kept there, at 1,400
and at 400 pixels.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (1400, 400)
LIMIT_SECONDS = 300.0  # for anything to appear; on a busy machine MLflow's page takes half a minute


def executable() -> str | None:
    """The browser's path; None where there is none."""
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Any]:
    """The browser; skips the test where it or Playwright is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = executable()
    if path is None:
        pytest.skip(f"no Chromium on this machine ({', '.join(NAMES)}); set CHROMIUM")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


class Watched:
    """A page whose console errors and requests are kept; what it asks elsewhere is not sent.

    Args:
        allowed: the beginning of addresses that it may ask.
        known: parts of messages that are not the project's.
    """

    def __init__(self, opened: Any, address: str, width: int, allowed: str, known: tuple[str, ...] = ()) -> None:
        self.page = opened.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(1000 * LIMIT_SECONDS)
        self.problems: list[str] = []
        self._known, mine = known, (allowed, "data:", "blob:")
        self.page.route(lambda asked: not asked.startswith(mine), lambda route: route.abort())
        self.page.on("console", lambda message: self._said(message))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url, mine))
        self.page.on("dialog", self._opened)
        self.page.goto(address)

    def _opened(self, dialog: Any) -> None:
        self.problems.append("a dialog opened")
        dialog.dismiss()

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in self._known):
            self.problems.append(message.text)

    def _asked(self, address: str, allowed: tuple[str, ...]) -> None:
        if not address.startswith(allowed):
            self.problems.append(f"asked {address}")

    def until(self, expression: str, limit_seconds: float = LIMIT_SECONDS) -> None:
        """Wait until it is true. Playwright's own way evaluates text in the page, which the page's policy forbids."""
        end = time.monotonic() + limit_seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def check(self, name: str, may_scroll: bool = False) -> None:
        """Nothing went wrong, and the page is as wide as its window (``may_scroll``: or wider)."""
        if folder := os.environ.get("SCREENSHOTS"):
            width = self.page.viewport_size["width"]
            self.page.screenshot(path=Path(folder) / f"{name}-{width}.png", full_page=True)
        assert self.problems == []
        overflow = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert may_scroll or overflow <= 0, f"{name} is {overflow} pixels wider than its window"
