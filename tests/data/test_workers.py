"""What ends a loader's worker reaches the training process as one line."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.base.border import BorderError
from pipeline.config import DataSettings
from pipeline.data.faults import DataFaultLimit
from pipeline.data.index import index_folder
from pipeline.data.loader import Reading, make_loader
from pipeline.data.micro_batches import MicroBatches
from pipeline.data.tar_stream import TarStream
from pipeline.data.transport import StoreUnavailable
from pipeline.data.workers import lost_worker
from tests.data.shards import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, [[("en", 128), ("zh", 128)] * 4] * 2)
    index_folder(folder)
    return folder


def one_batch(shards, tokenizer, *, workers: int, streaming: bool = False):
    settings = DataSettings(shards=[str(shards)], num_workers=workers, streaming=streaming)
    with make_loader(Reading(settings, tokenizer, (24, 48), seed=5, global_batch_size=2)) as loader:
        return next(loader)


ERRORS = [
    (OSError(5, "Input/output error\n读取失败"), OSError),
    (FileNotFoundError(2, "No such file", "part-00000.tar"), OSError),
    (BorderError("part-00000.tar holds \x1b[2J; it must be a record"), ValueError),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), ValueError),
    (DataFaultLimit("64 samples in a row cannot be read"), DataFaultLimit),
    (StoreUnavailable("the store was away"), StoreUnavailable),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
def test_an_error_of_a_worker_is_one_line_of_its_kind(shards, tokenizer, monkeypatch, error, kind):
    def broken(*_):
        raise error

    monkeypatch.setattr(MicroBatches, "_batch", broken)  # the workers are forks of this process
    monkeypatch.setattr(TarStream, "_shards", broken)
    for streaming in (False, True):
        with pytest.raises(kind) as caught:
            one_batch(shards, tokenizer, workers=1, streaming=streaming)
        text = str(caught.value)
        assert text.startswith("loader worker 0: ") and "\n" not in text and "\x1b" not in text
        assert "Traceback" not in text and str(error).split("\n")[0][:20].split("\x1b")[0] in text


def test_a_defect_in_a_worker_keeps_its_traceback(shards, tokenizer, monkeypatch):
    def defect(*_):
        raise KeyError("a defect of this project")

    monkeypatch.setattr(MicroBatches, "_batch", defect)
    with pytest.raises(KeyError, match="Original Traceback"):
        one_batch(shards, tokenizer, workers=1)


def test_a_worker_that_was_killed_is_told_from_a_defect(shards, tokenizer, monkeypatch):
    monkeypatch.setattr(MicroBatches, "_batch", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError) as caught:
        one_batch(shards, tokenizer, workers=1)
    line = lost_worker(caught.value)
    assert line is not None and "\n" not in line and "data.num_workers" in line
    assert lost_worker(RuntimeError("shapes do not match")) is None
