"""A few scenes and a tokenizer, made once a session with the project's own commands."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.fast import no_second_process
from tests.launcher_variables import no_launcher_variables
from tests.torch_settings import torch_settings_of_the_start

if TYPE_CHECKING:
    from tests.end_to_end.runs import Material

__all__ = ["no_launcher_variables", "no_second_process", "torch_settings_of_the_start"]


# Folders whose files take longest, since they start whole runs.
LONGEST = ("end_to_end", "multinode", "supervise", "training", "tracking")


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """What the imports make lives as long as the process: the garbage collector need not walk it again and again.

    Nor what the tests make, after every 700 objects: that took a twentieth of the time of all tests.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.set_threshold(50_000)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a worker that begins with one at the end is waited for."""
    places = {folder: place for place, folder in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.parent.name, len(LONGEST)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out the tests that start a second process")


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    # Here: it needs torch, and the workers start only when their controller has imported this file.
    from tests.end_to_end.runs import Material

    made = Material(tmp_path_factory.mktemp("material"))
    made.make()
    return made
