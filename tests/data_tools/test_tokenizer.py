"""The trained tokenizer: as transformers reads it, deterministic, words of both languages."""

from __future__ import annotations

import pytest
import sentencepiece

from data_tools.__main__ import main
from data_tools.tokenizer import choose, train
from pipeline.data.tokenizer import load_tokenizer
from tests.shared_data import shared

COLOURS = {"en": ("red", "green", "blue", "black"), "zh": ("红色", "绿色", "蓝色", "黑色")}
THINGS = {"en": ("dog", "kite", "umbrella"), "zh": ("小狗", "风筝", "雨伞")}


def texts() -> list[str]:
    lines = []
    for i in range(4):
        for j in range(3):
            lines.append(f"A {COLOURS['en'][i]} {THINGS['en'][j]} next to the {COLOURS['en'][i - 1]} bench.")
            lines.append(f"一只{COLOURS['zh'][i]}的{THINGS['zh'][j]}，旁边是{COLOURS['zh'][i - 1]}的长凳。")
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizer")
    (root / "captions.txt").write_text("\n".join(texts()), encoding="utf-8")
    arguments = ["tokenizer", "--text", str(root / "captions.txt"), "--out", str(root / "out"), "--vocab-size", "150"]
    assert main(arguments) == 0
    return root / "out"


def test_transformers_gives_sentencepieces_ids_with_end_and_padding(folder):
    from transformers import Siglip2Tokenizer

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert [pieces.pad_id(), pieces.eos_id(), pieces.bos_id(), pieces.unk_id()] == [0, 1, 2, 3]
    tokenizer = Siglip2Tokenizer.from_pretrained(str(folder), padding_side="right", add_eos_token=True)
    for text in texts():
        ids = pieces.encode(text.lower())
        padded = tokenizer(text, padding="max_length", max_length=40).input_ids
        assert padded == ids + [1] + [0] * (39 - len(ids))
        assert load_tokenizer(folder)([text], 40)[0].tolist() == padded
        assert 3 not in ids and pieces.decode(ids) == text.lower()


def test_the_same_texts_give_the_same_bytes(folder):
    assert train(texts(), 150) == (folder / "tokenizer.model").read_bytes()


def test_no_piece_crosses_a_word_of_english_or_holds_a_chinese_sentence(folder):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert "▁umbrella" in pieces.encode("a red umbrella", out_type=str)
    for number in range(4, pieces.get_piece_size()):
        piece = pieces.id_to_piece(number)
        assert "▁" not in piece[1:]
        assert sum("一" <= c <= "鿿" for c in piece) <= 3, piece


def test_real_captions_of_both_languages_come_back_from_their_tokens():
    import gzip

    lines = []
    for name in ("captions-en.txt.gz", "captions-zh.txt.gz"):
        with gzip.open(shared(f"data/text/{name}"), "rt", encoding="utf-8") as stream:
            lines += [line.strip() for _, line in zip(range(1500), stream, strict=False)]
    pieces = sentencepiece.SentencePieceProcessor(model_proto=train(lines, 4000))
    assert pieces.get_piece_size() == 4000
    for line in lines[::50]:
        assert pieces.decode(pieces.encode(line.lower())) == line.lower()


def test_a_large_vocabulary_spells_unknown_characters_in_bytes(tmp_path):
    from data_tools.tokenizer import LARGE_VOCABULARY, save

    model = train(texts(), LARGE_VOCABULARY)
    save(model, tmp_path)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in ("a 🐕 in the 雪", "a red dog", "小狗🐕"):
        ids = load_tokenizer(tmp_path)([text], 40)[0].tolist()
        assert ids[: ids.index(1)] == pieces.encode(text) and 3 not in ids


def test_too_small_a_vocabulary_and_no_text_are_one_line_errors(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("\n".join(texts()), encoding="utf-8")
    common = ["--out", str(tmp_path / "o")]
    assert main(["tokenizer", "--text", str(tmp_path / "t.txt"), "--vocab-size", "20", *common]) == 2
    assert "--vocab-size 20" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["tokenizer", "--shards", str(tmp_path / "empty"), *common]) == 2
    assert "holds no shard" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_choice_of_texts_is_even_bounded_and_repeatable():
    chosen = choose((str(i) for i in range(10_000)), 500)
    assert len(chosen) == 500 and chosen == choose((str(i) for i in range(10_000)), 500)
    assert 4000 < sum(map(int, chosen)) / 500 < 6000
