"""Files are whole or not there, and nothing half written stays."""

import os
import subprocess
import sys

import pytest

from pipeline.base.files import (
    is_partial,
    partial_path,
    remove_leftovers,
    write_aside,
    write_folder_aside,
    write_json,
    write_text,
)


@pytest.mark.parametrize("durable", [False, True])
def test_a_failed_write_leaves_the_file_that_was_there_and_nothing_else(tmp_path, durable):
    path = tmp_path / "a.json"
    write_json(path, {"text": "灰色"}, durable=durable)
    with pytest.raises(OSError, match="disk full"), write_aside(path, durable=durable) as partial:
        partial.write_text("half")
        raise OSError("disk full")
    assert "灰色" in path.read_text(encoding="utf-8")
    assert os.listdir(tmp_path) == ["a.json"]


def test_text_is_written_as_it_is(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "one\r\ntwo\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"one\r\ntwo\n"


def test_a_folder_replaces_the_earlier_one_as_a_whole(tmp_path):
    for content in ("first", "second"):
        with write_folder_aside(tmp_path / "out", durable=True) as folder:
            (folder / content).write_text(content)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["second"]
    with pytest.raises(ValueError, match="wrong"), write_folder_aside(tmp_path / "out"):
        raise ValueError("wrong")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["second"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    path = tmp_path / "a[1].tar"
    code = f"from pipeline.base.files import partial_path; partial_path({str(path)!r}).write_text('half')"
    subprocess.run([sys.executable, "-c", code], check=True)
    [leftover] = tmp_path.iterdir()
    assert is_partial(leftover)
    mine = partial_path(path)
    mine.write_text("at work")
    other_host = leftover.with_name(leftover.name.replace("." + leftover.name.split(".")[-2], ".elsewhere-1"))
    other_host.write_text("at work there")
    remove_leftovers(path)
    assert set(tmp_path.iterdir()) == {mine, other_host}
