"""Texts to ids, as the text tower wants them: lower-cased, an end token, padded on the right.

FG-CLIP 2's tower pools the last position whatever the text's length, so padding takes part and no attention mask
exists: SigLIP 2 pads with id 0, the first SigLIP with its end token, and a tokenizer says which it is of. CLIP's is
causal and pools the end token: padding takes no part, and its own tokenizer, which pads with that token, begins every
text with a start token.
Shape letters: N texts, T tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from pipeline.base.border import one_line
from pipeline.base.files import write_bytes

SENTENCEPIECE_FILE = "tokenizer.model"
PAD_ID = 0  # SigLIP 2's, and of this project's own tokenizers
# A longer text would be cut to fewer tokens than this many characters make anyway, and cutting it first keeps the
# cost of a damaged caption bounded. Assumption: no token of such vocabularies stands for more than 32 characters.
CHARACTERS_PER_TOKEN = 32
# Where two implementations of one vocabulary are known to part: spaces, digits, marks, scripts, bytes, control pieces.
PROBES = (
    "A photo of two Dogs, 12 cats & 1/2 (red) umbrella!  Double  space\ttab\nline",
    " leading and trailing ",
    "一张照片：两只狗，3只猫。「红色」的伞！",
    "naïve café — “quoted” … 日本語 한국어 😀👩‍👩‍👧 \u200b\ufeff",
    "<eos> <pad> <bos> <unk> ▁▁",
    "",
)
PROBE_LENGTH = 512
# By which two vocabularies are told apart; without what two implementations of one vocabulary could part over.
DIGEST_TEXTS = (
    "a photo of two brown dogs that play with a red ball beside the old wooden bench in a quiet park",
    "一张照片里有两只棕色的狗在安静的公园里玩一个红色的球",
    "ein foto von zwei braunen hunden und drei grünen fahrrädern vor dem haus",
)
CLIP_FILES, CLIP_WORD_END = ("vocab.json", "merges.txt"), "</w>"
VOCABULARIES = ("tokenizer.json", SENTENCEPIECE_FILE, "vocab.json", "merges.txt", "model.safetensors.index.json")
TOKENIZER_DIGEST = "tokenizer_digest"  # in the config.json of an export
MAX_FILE_BYTES = 256 << 20  # of a vocabulary; Gemma's has 34 MB
MAX_CONFIG_BYTES = 1 << 20  # of the files beside it; Gemma's has 47 kB
# What transformers and tokenizers raise on damaged files, by experiment with them.
LOAD_ERRORS = (
    *(ValueError, OSError, KeyError, RuntimeError, TypeError, AttributeError, IndexError, OverflowError),
    StrictDataclassError,
)


class TokenizerError(ValueError):
    """A tokenizer folder is missing, incomplete or not of the kind that the text tower needs."""


class Tokenizer:
    """``tokenizer(texts, length)`` gives ids [N, length] int64. Made by ``load_tokenizer``; can be pickled.

    Args:
        pretrained: transformers' tokenizer; it is what ``save`` writes.
        sentencepiece_model: bytes of the ``tokenizer.model`` that it was made of, where there is one. SentencePiece
            then makes the ids, four times as fast; ``load_tokenizer`` has seen that they are the same.
    """

    def __init__(self, pretrained: Any, sentencepiece_model: bytes | None = None) -> None:
        self._pretrained, self._model = pretrained, sentencepiece_model
        self._pieces = _processor(sentencepiece_model) if sentencepiece_model is not None else None
        self._backend = pretrained.backend_tokenizer
        self._backend.encode_special_tokens = True  # "<eos>" inside a caption is text, not an end
        self._backend.no_padding()
        self._backend.no_truncation()
        self.end_id: int = pretrained.eos_token_id
        self.start_id: int | None = pretrained.bos_token_id if is_of_clip(pretrained) else None
        self.pad_id: int = PAD_ID if is_of_clip(pretrained) else pretrained.pad_token_id

    def __reduce__(
        self,
    ) -> tuple[type[Tokenizer], tuple[Any, bytes | None]]:  # the backend's switches are not part of its pickle
        return Tokenizer, (self._pretrained, self._model)

    @property
    def vocab_size(self) -> int:
        """Rows that the token embedding needs."""
        return len(self._pretrained)

    def digest(self) -> str:
        """What tells this vocabulary from others: of the ids of a few texts, whatever files it was read from."""
        ids: list[Any] = self.token_lists(DIGEST_TEXTS, PROBE_LENGTH)
        if self.pad_id != PAD_ID:  # which digests written before do not name
            ids = [*ids, self.pad_id]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()

    def __call__(self, texts: Sequence[str], length: int) -> Tensor:
        """Ids [N, length] int64; a text that is too long loses its last words, never its end token."""
        ids = np.full((len(texts), length), self.pad_id, dtype=np.int64)
        for row, tokens in zip(ids, self.token_lists(texts, length), strict=True):
            row[: len(tokens)] = tokens
        return torch.from_numpy(ids)

    def token_lists(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Ids of each text with the end token, at most ``length`` of them, not padded."""
        if length < 1:
            raise ValueError(f"length is {length}; a text has at least its end token, so it must be 1 or more")
        lowered = [text[: length * CHARACTERS_PER_TOKEN].lower() for text in texts]
        if self._pieces is not None:
            rows = self._pieces.encode(lowered, num_threads=1)  # its default of a thread a core stalls forked workers
        else:
            rows = [encoding.ids for encoding in self._backend.encode_batch_fast(lowered, add_special_tokens=False)]
        start = [] if self.start_id is None else [self.start_id]
        if length <= len(start):
            raise ValueError(f"length is {length}; a text has its start and its end token, so it must be 2 or more")
        return [start + row[: length - 1 - len(start)] + [self.end_id] for row in rows]

    def save(self, folder: str | Path) -> None:
        """Write a folder that ``load_tokenizer`` and transformers' AutoTokenizer read back."""
        self._pretrained.save_pretrained(str(folder))
        if self._model is not None:
            write_bytes(Path(folder) / SENTENCEPIECE_FILE, self._model)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a folder with a bare ``tokenizer.model``, or of a saved Hugging Face folder.

    Raises:
        TokenizerError: no such folder, no tokenizer in it, a vocabulary that does not match its SentencePiece
            model, or padding or end tokens that the text tower does not know.
    """
    # One text at a time is too little work for threads, and forked loader workers warn about them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # takes seconds to import; only loading needs it
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast, Siglip2Tokenizer

    folder = Path(path)
    if not folder.is_dir():
        raise TokenizerError(
            f"tokenizer folder {folder} does not exist; make one with `python -m data_tools tokenizer`, "
            "or give the folder of a downloaded SigLIP 2 tokenizer"
        )
    model_file, saved_file = folder / SENTENCEPIECE_FILE, folder / "tokenizer.json"
    is_clip = not model_file.is_file() and all((folder / name).is_file() for name in CLIP_FILES)
    if not model_file.is_file() and not saved_file.is_file() and not is_clip:
        raise TokenizerError(
            f"{folder} holds neither {SENTENCEPIECE_FILE} nor tokenizer.json, nor CLIP's {' and '.join(CLIP_FILES)}; "
            "give a folder with one of them"
        )
    # Not AutoTokenizer: an export's config.json names code of its own, which it would ask about.
    unsaved = CLIPTokenizer if is_clip else Siglip2Tokenizer
    pretrained = pretrained_tokenizer(PreTrainedTokenizerFast if saved_file.is_file() else unsaved, folder)
    if getattr(pretrained, "backend_tokenizer", None) is None:
        raise TokenizerError(f"{folder} holds a {type(pretrained).__name__} without tokenizer.json; save a fast one")
    model = model_file.read_bytes() if model_file.is_file() else None
    _check(pretrained, folder, model)
    tokenizer = Tokenizer(pretrained)
    fast = Tokenizer(pretrained, model) if model is not None else tokenizer
    # A saved tokenizer.json may have been changed without its model; then it alone counts.
    return fast if fast.token_lists(PROBES, PROBE_LENGTH) == tokenizer.token_lists(PROBES, PROBE_LENGTH) else tokenizer


def pretrained_tokenizer(kind: Any, folder: Path) -> Any:
    """A tokenizer of transformers from a local folder; no code of the folder runs.

    Raises:
        TokenizerError: a file is too large, or none of the kind.
    """
    for file in folder.iterdir():
        most = MAX_FILE_BYTES if file.name in VOCABULARIES else MAX_CONFIG_BYTES
        if file.suffix in (".json", ".model", ".txt") and file.stat().st_size > most:
            raise TokenizerError(f"{file} has {file.stat().st_size} bytes; at most {most} are read")
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizers raise Exception itself
        if type(error) is not Exception and not isinstance(error, LOAD_ERRORS):
            raise
        raise TokenizerError(
            f"the tokenizer in {folder} does not load ({one_line(error)}); make or download it again"
        ) from error


def _processor(model: bytes) -> Any:
    import sentencepiece  # only where a folder holds its model

    if not model:  # it would be taken, and fail at the first text
        raise TokenizerError(f"{SENTENCEPIECE_FILE} is empty; make or download it again")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise TokenizerError(f"{SENTENCEPIECE_FILE} is no SentencePiece model ({one_line(error)})") from error


def is_of_clip(pretrained: Any) -> bool:
    """Whether a tokenizer of transformers is CLIP's: pairs of bytes whose words end in ``</w>``, and a start token."""
    ends = getattr(pretrained.backend_tokenizer.model, "end_of_word_suffix", None)
    return ends == CLIP_WORD_END and pretrained.bos_token_id is not None


def _check(pretrained: Any, folder: Path, model: bytes | None) -> None:
    if pretrained.eos_token_id is None:
        raise TokenizerError(f"the tokenizer in {folder} has no end token; train it with eos_id=1")
    if pretrained.pad_token_id not in (PAD_ID, pretrained.eos_token_id) and not is_of_clip(pretrained):
        raise TokenizerError(
            f"the padding id of {folder} is {pretrained.pad_token_id}; text towers know {PAD_ID} (SigLIP 2) and the "
            f"end token, {pretrained.eos_token_id} (SigLIP), so train the tokenizer with pad_id=0"
        )
    size = len(pretrained)
    if model is not None:
        expected = _processor(model).get_piece_size()
        if size < expected:  # transformers falls back to five special tokens without an error
            raise TokenizerError(
                f"{folder} loads {size} tokens, but its {SENTENCEPIECE_FILE} has {expected}; "
                "delete its other tokenizer files or save the tokenizer again"
            )
    elif size < 16:
        raise TokenizerError(f"{folder} loads only {size} tokens; its tokenizer.json holds no vocabulary")
