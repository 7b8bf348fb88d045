"""Train a SentencePiece tokenizer on the captions of shards or on text files, English and Chinese together.

examples:
  python -m data_tools tokenizer --shards data/scenes/train --out data/scenes/tokenizer --vocab-size 512
  python -m data_tools tokenizer --text captions-en.txt captions-zh.txt --out tokenizer --vocab-size 32000

Writes OUT/tokenizer.model and OUT/tokenizer_config.json, which transformers' Siglip2Tokenizer and the settings'
tokenizer.path read. Texts are lower-cased; ids 0, 1, 2, 3 are padding, end, start, unknown. The same texts give the
same bytes.
"""

from __future__ import annotations

import argparse
import io
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from pipeline.base.files import write_bytes, write_json
from pipeline.data.records import walk_records
from pipeline.data.schema import Sample

MODEL_FILE = "tokenizer.model"
SPECIAL_PIECES = {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"}  # ids 0, 1, 2, 3
HAN_RUN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
WORD_BREAK = "\u2063"  # invisible separator: a mark for the trainer, never a token
MAX_PIECE_CHARACTERS = 16
LARGE_VOCABULARY = 8000  # pieces; assumption: from here on 256 of them are well spent on bytes
# Chinese has no spaces to stop at, and a trainer left alone learns whole phrases by heart. Words rarely have more.
MAX_HAN_CHARACTERS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--shards", nargs="+", type=Path, metavar="DIR", help="folders of shards")
    source.add_argument("--text", nargs="+", type=Path, metavar="FILE", help="UTF-8 files, one text a line")
    parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    parser.add_argument("--vocab-size", type=int, default=512, help="pieces, special ones included (default 512)")
    parser.add_argument(
        "--max-texts", type=int, default=2_000_000, help="train on a random choice of this many (default 2000000)"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.max_texts < 1:
        raise ValueError(f"--max-texts is {arguments.max_texts}; it must be at least 1")
    texts = shard_texts(arguments.shards) if arguments.shards else file_texts(arguments.text)
    chosen = choose(texts, arguments.max_texts)
    model = train(chosen, arguments.vocab_size)
    save(model, arguments.out)
    size = _loaded(model).get_piece_size()
    fewer = f" (all they give; {arguments.vocab_size} were asked for)" if size < arguments.vocab_size else ""
    print(f"{arguments.out / MODEL_FILE}: {size} pieces from {len(chosen)} texts{fewer}")
    return 0


def shard_texts(folders: Iterable[Path]) -> Iterator[str]:
    """Every caption, phrase and negative of the shards, in order of folder, shard name and sample.

    Raises:
        ValueError: a folder holds no shard, or a sample or shard is damaged.
    """
    for folder in folders:
        shards = sorted(folder.glob("*.tar"))
        if not shards:
            raise ValueError(f"{folder} holds no shard (*.tar); give a folder that data_tools wrote")
        for path in shards:
            for _, sample in walk_records(path, clips=True):
                yield from sample_texts(sample)


def sample_texts(sample: Sample) -> Iterator[str]:
    for text in (sample.short_caption, sample.long_caption):
        if text is not None:
            yield text
    for region in sample.regions:
        yield region.phrase
        if region.long_phrase is not None:
            yield region.long_phrase
        yield from region.negatives


def file_texts(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        with open(path, encoding="utf-8") as lines:
            yield from (line.strip() for line in lines if line.strip())


def choose(texts: Iterable[str], most: int) -> list[str]:
    """At most that many texts, each as likely as any other; the choice depends on the texts alone."""
    generator = random.Random(0)
    chosen: list[str] = []
    for number, text in enumerate(texts):
        if len(chosen) < most:
            chosen.append(text)
        elif (place := generator.randrange(number + 1)) < most:
            chosen[place] = text
    return chosen


def train(texts: list[str], vocab_size: int) -> bytes:
    """The bytes of a byte-pair SentencePiece model of ``vocab_size`` pieces, or fewer if the texts are few.

    Byte pairs, because that is what transformers' Siglip2Tokenizer runs; no space is put before a text, as in Gemma's.
    Chinese is first cut into short words by a model of its own, and no piece of the final one crosses such a cut.

    Raises:
        ValueError: no text, or a vocabulary too small for the texts' characters.
    """
    lowered = [text.lower().replace(WORD_BREAK, "") for text in texts]
    if not any(text.strip() for text in lowered):
        raise ValueError("there is no text to train on; give shards or files with captions")
    runs = [run for text in lowered for run in HAN_RUN.findall(text)]
    if runs:
        num_characters = len(set("".join(runs)))
        words = _trained(runs, num_characters + len(SPECIAL_PIECES) + vocab_size // 2, MAX_HAN_CHARACTERS)
        segmenter = _loaded(words)
        lowered = [_with_breaks(text, segmenter) for text in lowered]
    return _trained(lowered, vocab_size, MAX_PIECE_CHARACTERS, WORD_BREAK)


def save(model: bytes, folder: Path) -> None:
    """``tokenizer.model`` and the settings that make transformers pad on the right and add the end token."""
    config = {
        "tokenizer_class": "Siglip2Tokenizer",
        "padding_side": "right",
        "add_bos_token": False,
        "add_eos_token": True,
        "do_lower_case": True,
        **{f"{name}_token": piece for name, piece in SPECIAL_PIECES.items()},
    }
    write_bytes(folder / MODEL_FILE, model)
    write_json(folder / "tokenizer_config.json", config)


def _with_breaks(text: str, segmenter: SentencePieceProcessor) -> str:
    def cut(run: re.Match[str]) -> str:
        return WORD_BREAK + WORD_BREAK.join(segmenter.encode(run.group(), out_type=str)) + WORD_BREAK

    return HAN_RUN.sub(cut, text).strip(WORD_BREAK)


def _loaded(model: bytes) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=model)


def _trained(texts: list[str], vocab_size: int, max_characters: int, word_break: str = "") -> bytes:
    stream, small = io.BytesIO(), vocab_size < LARGE_VOCABULARY
    options: dict[str, Any] = {f"{name}_id": number for number, name in enumerate(SPECIAL_PIECES)}
    options |= {f"{name}_piece": piece for name, piece in SPECIAL_PIECES.items()}
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=stream,
            model_type="bpe",
            vocab_size=vocab_size,
            max_sentencepiece_length=max_characters,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            # A small vocabulary holds every character of its texts; a large one spells rare characters in bytes.
            character_coverage=1.0 if small else 0.9995,
            byte_fallback=not small,
            num_threads=1,  # so that the bytes do not depend on the machine
            minloglevel=2,
            hard_vocab_limit=False,
            pretokenization_delimiter=word_break,
            **options,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        raise ValueError(f"--vocab-size {vocab_size} does not suit these texts ({reason}); choose another") from error
    return stream.getvalue()
