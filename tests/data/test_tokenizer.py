"""Ids of the text tower: lower-cased, closed by the end token, padded with 0; never a silent toy vocabulary."""

from __future__ import annotations

import gzip
import json
import pickle

import pytest
import torch

from pipeline.data.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from tests.shared_data import shared


def test_ids_end_with_the_end_token_and_are_padded_with_zero(tokenizer):
    ids = tokenizer(["A red cat", "一只红猫", ""], 12)
    assert ids.shape == (3, 12) and ids.dtype == torch.int64
    for row in ids.tolist():
        end = row.index(tokenizer.end_id)
        assert not any(row[end + 1 :]) and all(row[:end])
    assert ids[2].tolist() == [tokenizer.end_id] + [0] * 11


def test_a_long_text_keeps_its_end_token_and_case_does_not_matter(tokenizer):
    ids = tokenizer(["a cat " * 500, "cat" * 40_000, "猫" * 3000], 8)
    assert (ids[:, -1] == tokenizer.end_id).all() and (ids != 0).all()
    assert torch.equal(tokenizer(["A RED Cat"], 12), tokenizer(["a red cat"], 12))
    assert tokenizer(["a cat"], 1).tolist() == [[tokenizer.end_id]]


def test_control_words_inside_a_caption_are_text(tokenizer):
    row = tokenizer(["<eos> a <pad> cat"], 32)[0].tolist()
    assert row.count(tokenizer.end_id) == 1 and row[0] != tokenizer.end_id


def test_sentencepiece_and_transformers_give_the_same_ids(tokenizer_folder):
    fast = load_tokenizer(tokenizer_folder)
    assert fast._pieces is not None, "the fast path is not used"
    slow = Tokenizer(fast._pretrained)
    texts = ["A photo of two Dogs, 12 cats!", "一张照片：两只狗 😀", " spaces  inside ", "naïve café"]
    for language in ("en", "zh"):
        file = shared(f"data/text/captions-{language}.txt.gz")
        texts += gzip.open(file, "rt", encoding="utf-8").read().splitlines()[:400]
    assert torch.equal(fast(texts, 64), slow(texts, 64))


def test_saving_loading_and_pickling_change_nothing(tokenizer, tmp_path):
    texts = ["A red cat <eos>", "一只红猫"]
    tokenizer.save(tmp_path)
    for other in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert torch.equal(other(texts, 16), tokenizer(texts, 16))
        assert other.vocab_size == tokenizer.vocab_size
    (tmp_path / "tokenizer.model").unlink()  # what a Hugging Face folder may hold: tokenizer.json alone
    assert torch.equal(load_tokenizer(tmp_path)(texts, 16), tokenizer(texts, 16))


def test_folders_that_are_not_tokenizers_are_refused(tokenizer, tmp_path):
    with pytest.raises(TokenizerError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match="neither"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path)
    tokenizer.save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    saved["model"]["vocab"], saved["model"]["merges"] = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}, []
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(TokenizerError, match="tokens"):
        load_tokenizer(tmp_path)
