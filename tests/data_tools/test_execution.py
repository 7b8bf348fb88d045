"""Steps over shards: the same result whatever the number of workers and however often a run is cut short."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from data_tools.execution import shard_work
from data_tools.execution.jobs import InProcess, StopRun
from data_tools.execution.journal import Journal
from data_tools.execution.local import LocalExecutor, WorkerFailed
from data_tools.execution.shards import read_members
from data_tools.execution.steps import FunctionStep, Step, run_step
from data_tools.model_server.limits import SharedLimits
from tests.data_tools.step_samples import Broken, Shout, contents, refuse_third, write_shards


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "in", 4)


@pytest.fixture
def undisturbed(shards, tmp_path):
    """What an undisturbed run in one process makes."""
    summary = run_step(Shout(tmp_path / "asked0"), shards, tmp_path / "reference", executor=InProcess(), index=False)
    assert summary.ok
    return contents(tmp_path / "reference")


def test_a_run_accounts_for_every_sample(shards, tmp_path, undisturbed):
    summary = run_step(Shout(tmp_path / "asked0"), shards, tmp_path / "reference", executor=InProcess(), index=False)
    assert (summary.shards, summary.skipped, summary.samples_in) == (4, 4, 24)
    assert summary.dropped == {"fifth": 8} and summary.counts == {"fifths": 8} and summary.samples_out == 16
    assert summary.samples_in == summary.samples_out + summary.dropped.total()
    assert len(undisturbed) == 8
    members = [members for name in sorted((tmp_path / "reference").glob("*.tar")) for _, members in read_members(name)]
    captions = [json.loads(m["json"])["long_caption"] for m in members]
    assert len(captions) == summary.samples_out and "PICTURE 1 OF 0！" in captions and "第0组的第2张图！" in captions


def test_workers_change_nothing(shards, tmp_path, undisturbed):
    summary = run_step(Shout(tmp_path / "asked"), shards, tmp_path / "out", executor=LocalExecutor(2), index=False)
    assert summary.ok and contents(tmp_path / "out") == undisturbed


def test_a_killed_worker_is_replaced_and_asks_nothing_twice(shards, tmp_path, undisturbed, capfd):
    step = Shout(tmp_path / "asked", kill_at="001004")
    assert run_step(step, shards, tmp_path / "out", executor=LocalExecutor(2), index=False).ok
    assert "a new one takes over" in capfd.readouterr().err
    assert contents(tmp_path / "out") == undisturbed
    asked = Counter((tmp_path / "asked").read_text().split())
    assert len(asked) == 24 and set(asked.values()) == {1}


def test_a_shard_that_kills_every_worker_is_named_and_the_others_are_done(shards, tmp_path):
    step = Shout(tmp_path / "asked", kill_at="001004", kills=3)
    summary = run_step(step, shards, tmp_path / "out", executor=LocalExecutor(1), index=False)
    assert not summary.ok and list(summary.unfinished) == ["s-000001"] and summary.shards == 3
    assert "signal 9" in summary.unfinished["s-000001"]


SCRIPT = """
from pathlib import Path
import sys
from data_tools.execution.local import LocalExecutor
from data_tools.execution.steps import run_step
from tests.data_tools.step_samples import Shout
if __name__ == "__main__":
    shards, out, asked = sys.argv[1:]
    summary = run_step(Shout(Path(asked), pause_seconds=0.1), shards, out, executor=LocalExecutor(2), index=False)
    sys.exit(0 if summary.ok else 1)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_run_that_is_killed_goes_on_where_it_was(shards, tmp_path, undisturbed, how):
    script, asked = tmp_path / "script.py", tmp_path / "asked"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(shards), str(tmp_path / "out"), str(asked)]
    # a background job of a shell inherits an ignored SIGINT, and with it a Python that never hears of Ctrl-C
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    first = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, preexec_fn=heard)
    until = time.monotonic() + 60
    while (not asked.exists() or len(asked.read_text().split()) < 9) and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(how)
    first.communicate(timeout=60)
    assert first.returncode != 0
    time.sleep(0.3)  # workers of a killed run notice at once that it is gone, but not in the same instant
    before = Counter(asked.read_text().split())
    assert len(before) < 24, "it was to be cut short"
    assert run_step(Shout(asked), shards, tmp_path / "out", executor=InProcess(), index=False).ok
    assert contents(tmp_path / "out") == undisturbed
    assert not list((tmp_path / "out").glob("*.partial*"))
    after = Counter(asked.read_text().split())
    # A kill can fall between an answer and its note: then that one answer, at most one a worker, is asked for again.
    assert len(after) == 24 and sum(after.values()) <= 24 + 2 and max(after.values()) <= 2


def test_a_second_run_beside_the_first_leaves_its_shards_alone(shards, tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(shard_work, "CLAIM_SECONDS", 0.2)
    (tmp_path / "out" / ".work").mkdir(parents=True)
    with open(tmp_path / "out" / ".work" / "s-000002.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        summary = run_step(Shout(tmp_path / "asked"), shards, tmp_path / "out", executor=InProcess(), index=False)
    assert "another run" in summary.unfinished["s-000002"] and summary.shards == 3 and not summary.ok


def test_other_settings_or_new_input_are_noticed(shards, tmp_path):
    def step(settings):
        return FunctionStep("plain", "1", refuse_third, settings)

    out = tmp_path / "out"
    assert run_step(step({"a": 1}), shards, out, executor=InProcess(), index=False).dropped == {"third": 4}
    other = run_step(step({"a": 2}), shards, out, executor=InProcess(), index=False)
    assert not other.ok and "--overwrite" in other.unfinished["s-000000"]
    assert run_step(step({"a": 2}), shards, out, executor=InProcess(), index=False, overwrite=True).skipped == 0
    newer = time.time() + 10
    os.utime(shards / "s-000001.tar", (newer, newer))
    assert run_step(step({"a": 2}), shards, out, executor=InProcess(), index=False).skipped == 3
    with pytest.raises(ValueError, match="another folder"):
        run_step(step({}), shards, shards)
    with pytest.raises(ValueError, match=r"no \*\.tar"):
        run_step(step({}), tmp_path, out)


class FailsOnce(Step):
    name = "fails"

    def __init__(self, fails):
        self.fails = fails

    def apply(self, records, shard):
        for record in records:
            if self.fails and record.key == "000001":
                shard.fail(record.key, "status_500: no answer")
        return records


def test_failed_samples_are_tried_again_when_asked(shards, tmp_path):
    out = tmp_path / "out"
    first = run_step(FailsOnce(True), shards, out, executor=InProcess(), index=False)
    assert not first.ok and first.failed == {"status_500": 1} and "--retry-failed" in "\n".join(first.lines())
    assert not run_step(FailsOnce(False), shards, out, executor=InProcess(), index=False).ok
    again = run_step(FailsOnce(False), shards, out, executor=InProcess(), index=False, retry_failed=True)
    assert again.ok and again.skipped == 3


def test_a_damaged_shard_is_named_and_none_of_it_is_used(shards, tmp_path):
    whole = (shards / "s-000001.tar").read_bytes()
    before_end_mark = -(-len(whole.rstrip(b"\0")) // 512) * 512
    for length in (before_end_mark, before_end_mark // 2, 700, 0):
        (shards / "s-000001.tar").write_bytes(whole[:length])
        out = tmp_path / f"out{length}"
        step = FunctionStep("plain", "1", refuse_third)
        summary = run_step(step, shards, out, executor=InProcess(), index=False)
        assert list(summary.unfinished) == ["s-000001"] and "damaged" in summary.unfinished["s-000001"], length
        assert sorted(path.name for path in out.glob("*.tar*")) == [f"s-00000{n}.tar" for n in (0, 2, 3)]


def test_a_defect_stops_the_run_with_its_trace(shards, tmp_path, capfd):
    with pytest.raises(WorkerFailed, match="s-00000"):
        run_step(Broken(), shards, tmp_path / "out", executor=LocalExecutor(1), index=False)
    assert "a defect" in capfd.readouterr().err


def test_earlier_reports_travel_with_the_shards(shards, tmp_path):
    folders = [shards, tmp_path / "1", tmp_path / "2", tmp_path / "3"]
    for name, before, after in zip(("one", "two", "three"), folders, folders[1:], strict=False):
        run_step(FunctionStep(name, "1", refuse_third), before, after, executor=InProcess(), index=False)
    report = json.loads((tmp_path / "3" / "reports" / "s-000000.json").read_text())
    assert [entry["made_by"]["step"] for entry in report["earlier"]] == ["one", "two"]
    assert report["earlier"][0]["dropped"] == [{"key": "000003", "reason": "third", "detail": ""}]


def test_a_journal_survives_a_cut_line_and_forgets_other_settings(tmp_path):
    journal = Journal(tmp_path / "j", "one")
    journal.put("a", {"text": "红色\n"})
    journal.put("b", 2)
    journal.close()
    with open(tmp_path / "j", "ab") as stream:
        stream.write(b'{"key": "c", "val')
    journal = Journal(tmp_path / "j", "one")
    assert journal.get("a") == {"text": "红色\n"} and "c" not in journal and len(journal) == 2
    journal.put("c", 3)
    journal.close()
    assert Journal(tmp_path / "j", "one").get("c") == 3
    assert len(Journal(tmp_path / "j", "two")) == 0


def test_a_damaged_line_of_a_journal_costs_its_answer_and_no_other(tmp_path):
    journal = Journal(tmp_path / "j", "one")
    for number in range(4):
        journal.put(f"k{number}", {"text": f"答{number}"})
    journal.close()
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    lines[2] = b"\x00\xff" + lines[2][2:]
    (tmp_path / "j").write_bytes(b"".join(lines))
    journal = Journal(tmp_path / "j", "one")
    assert "k1" not in journal and [journal.get(f"k{n}") for n in (0, 2, 3)] == [{"text": f"答{n}"} for n in (0, 2, 3)]
    journal.put("k1", {"text": "again"})
    journal.close()
    assert len(Journal(tmp_path / "j", "one")) == 4


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"shard": 1}', b"\xff"])
def test_a_shard_with_a_damaged_report_is_made_again(shards, tmp_path, undisturbed, damage):
    step = Shout(tmp_path / "asked2")
    assert run_step(step, shards, tmp_path / "out", executor=InProcess(), index=False).ok
    report = next((tmp_path / "out" / "reports").glob("*.json"))
    whole = report.read_bytes()
    report.write_bytes(damage)
    assert run_step(step, shards, tmp_path / "out", executor=InProcess(), index=False).ok
    assert report.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"requests": -1}', b'{"requests": 1e999}', b"\xff"])
def test_a_damaged_account_is_named_with_its_remedy(tmp_path, damage):
    limits = SharedLimits(2, budget_requests=5, folder=tmp_path)
    limits.charge_request()
    (tmp_path / "spent.json").write_bytes(damage)
    with pytest.raises(StopRun, match="delete the file to count anew"):
        limits.charge_request()
