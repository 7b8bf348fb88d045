"""A small bilingual tokenizer, trained once for all tests of the data path."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.tokenizer import save, train
from pipeline.data.tokenizer import load_tokenizer

TEXTS = [
    "a red cat on a mat",
    "a long story about cats and dogs",
    "the small cat at the left of the dog",
    "一只红猫在垫子上",
    "关于猫和狗的很长的故事",
    "a photo of two dogs, 12 cats and a blue umbrella near the 3 tables",
]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save(train(TEXTS * 20, 420), folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)
